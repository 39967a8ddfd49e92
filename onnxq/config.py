"""Every option that decides what is written, once: the command line's flags are made from these fields."""

import dataclasses
import re
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from onnxq._text import size_text
from onnxq.errors import ConfigError
from onnxq.numerics.range_methods import METHODS
from onnxq.numerics.scheme import MAX_BITS, MIN_BITS
from onnxq.targets import TARGETS
from onnxq.yolo.preprocess import PREPROCESSES

__all__ = ["Config"]

AUTO = "auto"

HALF = "fp16"

FLOAT_TYPES = ("fp32", HALF)

INT4 = "int4"

PACKS = ("none", INT4)

_INT4_BITS = 4

BY_OUTPUTS = "output-error"

WEIGHT_METHODS = ("minmax", "mse")


_IMAGES = 100

_IMAGES_TO_RECONSTRUCT = 200
"""At 4 bits YOLOv5n keeps two points of AP more than with half of them."""


def _option(default: Any, help: str, choices: tuple[str | int, ...] | None = None, metavar: str | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "metavar": metavar})


_METHODS = "; ".join(f"{method.name} {method.summary}" for method in METHODS.values()).replace("%", "%%")

_WIDTHS = tuple(range(MIN_BITS, MAX_BITS + 1))


@dataclass(frozen=True)
class Config:
    """How to quantize.

    Raises:
        ConfigError: a value is not among an option's choices, or options do not go together.
    """

    target: str = _option("ort", "runtime that the result is for", tuple(TARGETS))
    method: str = _option(
        AUTO,
        f"how the ranges of activations are chosen: {_METHODS}; {BY_OUTPUTS} is the one with the least error in the "
        f"outputs of the layers; auto: uh, with reconstruction {BY_OUTPUTS}",
        (AUTO, *METHODS, BY_OUTPUTS),
    )
    weight_method: str = _option("minmax", "how the ranges of weights are chosen", WEIGHT_METHODS)
    weight_bits: int = _option(8, "width of weights", _WIDTHS, "2..8")
    act_bits: int = _option(8, "width of activations", _WIDTHS, "2..8")
    bits: tuple[str, ...] = _option((), "widths of single nodes, of weight and input", None, "NODE=W/A")
    symmetric: bool = _option(False, "zero points of activations in the middle of the grid")
    equalize: bool = _option(True, "bring the channels of a layer to one size where weights can undo it exactly (on)")
    reconstruct: bool | None = _option(
        None, "fit each layer to what quantization made of its input; default: below 8 bits (needs --calib)"
    )
    keep_bias: bool = _option(False, "do not correct biases for the rounding of the weights")
    float_type: str = _option("fp32", "type of what stays float, up to the decode", FLOAT_TYPES)
    pack: str = _option("none", "type that weights of at most 4 bits are stored in, for a smaller file", PACKS)
    requantize: bool = _option(False, "take Q/DQ out of a model that is quantized already, and quantize it anew")
    exclude: tuple[str, ...] = _option((), "nodes to keep float: a name, op:TYPE or re:REGEX", None, "NODE")
    count: int | None = _option(
        None,
        f"calibration images to take, evenly spaced, of a longer list; default: {_IMAGES}, with reconstruction "
        f"{_IMAGES_TO_RECONSTRUCT}",
        None,
        "N",
    )
    preprocess: str = _option(AUTO, "how images become inputs", (AUTO, *PREPROCESSES))
    image_size: tuple[int, int] | None = _option(None, "input size of a model with dynamic size", None, "N|HxW")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            value = getattr(self, field.name)
            if choices is not None and value not in choices:
                raise ConfigError(f"{field.name}: {value!r} is not one of {', '.join(map(str, choices))}")
        self._check_kinds()
        _ = self.widths
        if self.is_half and not TARGETS[self.target].takes_half:
            takers = ", ".join(name for name, target in TARGETS.items() if target.takes_half)
            raise ConfigError(
                f"float_type: {TARGETS[self.target].title} chooses the type of what stays float by itself; "
                f"{HALF} is for --target {takers}"
            )
        if self.packs:
            self._check_packing()
        if self.method == BY_OUTPUTS and not self.reconstructs:
            raise ConfigError(f"method: {BY_OUTPUTS} is part of the reconstruction; add --reconstruct")
        if self.images < 1:
            raise ConfigError(f"count: {self.count} is less than 1")

    def _check_kinds(self) -> None:
        """Refuse what is easily given in the place of a tuple or a number."""
        for name in ("bits", "exclude"):
            value: object = getattr(self, name)
            if isinstance(value, str):
                raise ConfigError(f"{name}: {value!r} is a text; give a tuple of texts, ({value!r},)")
        size: object = self.image_size
        if size is not None and not (isinstance(size, tuple | list) and len(size) == 2):
            raise ConfigError(f"image_size: {size!r} is not (height, width) in px")
        count: object = self.count
        if count is not None and not isinstance(count, Integral):
            raise ConfigError(f"count: {count!r} is no whole number")

    def _check_packing(self) -> None:
        if not TARGETS[self.target].takes_int4:
            takers = ", ".join(name for name, target in TARGETS.items() if target.takes_int4)
            raise ConfigError(
                f"pack: {TARGETS[self.target].title} takes {INT4} only in blocks with scales of their own; "
                f"leave --pack out, or use --target {takers}"
            )
        narrowest = min([self.weight_bits, *(weight for _, (weight, _) in self.widths)])
        if narrowest > _INT4_BITS:
            raise ConfigError(
                f"pack: {INT4} holds {_INT4_BITS} bits, and the narrowest weights have {narrowest}; "
                f"add --weight-bits {_INT4_BITS}, or leave --pack out"
            )

    @property
    def widths(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        """`bits`, read: patterns, and the widths of weight and input of the nodes that match."""
        return tuple(map(_parsed_widths, self.bits))

    @property
    def reconstructs(self) -> bool:
        """Whether layers are reconstructed."""
        widths = [self.weight_bits, self.act_bits, *(width for _, pair in self.widths for width in pair)]
        narrow = min(widths) < MAX_BITS
        return narrow if self.reconstruct is None else self.reconstruct

    @property
    def images(self) -> int:
        """How many calibration images are taken."""
        default = _IMAGES_TO_RECONSTRUCT if self.reconstructs else _IMAGES
        return default if self.count is None else self.count

    @property
    def ranges_by_outputs(self) -> bool:
        """Whether reconstruction adjusts ranges by the error of the layers' outputs."""
        return self.method == BY_OUTPUTS or (self.method == AUTO and self.reconstructs)

    @property
    def range_method(self) -> str:
        """What ranges are fitted by, before they are adjusted: a key of `range_methods.METHODS`."""
        return self.method if self.method in METHODS else "mse" if self.ranges_by_outputs else "uh"

    @property
    def chosen_method(self) -> str:
        """The method, where it was left open too."""
        return BY_OUTPUTS if self.ranges_by_outputs else self.range_method

    @property
    def is_half(self) -> bool:
        """Whether what stays float is computed in float16."""
        return self.float_type == HALF

    @property
    def packs(self) -> bool:
        """Whether narrow weights are stored as int4."""
        return self.pack == INT4

    @property
    def all_widths(self) -> str:
        """Every width that was given: `W4A8`, and behind it those of single nodes, as `bits` has them."""
        return " ".join([f"W{self.weight_bits}A{self.act_bits}", *self.bits])

    @property
    def flags(self) -> list[str]:
        """The options that are not the default, as the command line takes them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = [field.name for field in dataclasses.fields(self) if values[field.name] != field.default]
        return [word for name in changed for word in _flag(name.replace("_", "-"), values[name])]

    @property
    def suffix(self) -> str:
        """What the name of the result ends with: `int8`, or the widths, as `w4a8`."""
        plain = self.weight_bits == self.act_bits == MAX_BITS
        return "int8" if plain else f"w{self.weight_bits}a{self.act_bits}"


def _flag(name: str, value: object) -> list[str]:
    """An option on the command line; of its kinds of values see `cli._add_config`."""
    match value:
        case bool():
            return [f"--{name}" if value else f"--no-{name}"]
        case (int(height), int(width)):
            return [f"--{name}", size_text((height, width))]
        case tuple():
            return [f"--{name}", *value]
        case _:
            return [f"--{name}", str(value)]


def _parsed_widths(text: str) -> tuple[str, tuple[int, int]]:
    """Pattern, and widths of weight and input, of `PATTERN=W/A`."""
    pattern, _, widths = text.rpartition("=")
    found = re.fullmatch(r"(\d+)/(\d+)", widths)
    if not pattern or found is None:
        raise ConfigError(f"bits: {text}: give PATTERN=W/A, as in re:model.0/=8/8 or op:Conv=4/8")
    weight, activation = int(found[1]), int(found[2])
    if not all(MIN_BITS <= width <= MAX_BITS for width in (weight, activation)):
        raise ConfigError(f"bits: {text}: widths are {MIN_BITS} to {MAX_BITS}; exclude what is to stay float")
    return pattern, (weight, activation)
