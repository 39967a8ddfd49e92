"""Options that affect the quantized model; the flags of the command line are derived from these fields."""

import dataclasses
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from onnxq._text import size_text
from onnxq.errors import ConfigError
from onnxq.numerics.range_methods import METHODS
from onnxq.numerics.scheme import INT8, MIN_BITS
from onnxq.qdq.migration import LEAST_SAMPLES
from onnxq.reconstruction import RECONSTRUCT_BELOW
from onnxq.targets import TARGETS, Target
from onnxq.targets.base import ANY_CPU, CPUS, VNNI
from onnxq.yolo.columns import LAYOUT_HELP, parse_layout
from onnxq.yolo.preprocess import PREPROCESS_WORDS, parse_preprocess

__all__ = ["Config"]

AUTO = "auto"

HALF = "fp16"

FLOAT_TYPES = ("fp32", HALF)

INT4 = "int4"

PACKS = ("none", INT4)

_INT4_BITS = 4

BY_OUTPUTS = "output-error"
"""Reconstruction adjusts ranges by the error of the layers' outputs."""

WEIGHT_METHODS = ("minmax", "mse")

_IMAGES = 100

_IMAGES_TO_RECONSTRUCT = 200
"""At 4 bits YOLOv5n keeps two points of AP more than with 100 images."""


def _option(default: Any, help: str, choices: Collection[str | int] | None = None, metavar: str | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "metavar": metavar})


_METHODS = "; ".join(f"{method.name} {method.summary}" for method in METHODS.values()).replace("%", "%%")

_WIDTHS = f"{MIN_BITS}..{max(each.bits for t in TARGETS.values() for each in (*t.weights, *t.activations))}"
"""Widths in the help text; each target restricts them further."""


def _names(fits: Callable[[Target], bool]) -> str:
    """Return the names of the targets that fit, for messages."""
    return ", ".join(name for name, target in TARGETS.items() if fits(target))


NEAREST = "nearest"
"""Weights are rounded to the nearest integers, one by one."""

FEEDBACK = "feedback"
"""Weights are rounded with error feedback."""

_SWITCHES: dict[str, tuple[None, ...]] = {
    **dict.fromkeys(("symmetric", "equalize", "keep_bias", "requantize"), ()),
    **dict.fromkeys(("migrate", "reconstruct"), (None,)),
}
"""Options that are on or off -> what else they may be."""


@dataclass(frozen=True)
class Config:
    """Options of a quantization.

    Raises:
        ConfigError: a value is not among the choices of its option, or options exclude each other.
    """

    target: str = _option("ort", "runtime that the result is for", TARGETS)
    cpu: str = _option(
        ANY_CPU,
        "CPU that the result is for: any, which is right on all; vnni, whose weights use all 8 bits, so that it may be "
        "wrong on others",
        CPUS,
    )
    method: str = _option(
        AUTO,
        f"how the ranges of activations are chosen: {_METHODS}; {BY_OUTPUTS} searches the bounds with the least error "
        f"in the outputs of the layers; auto is uh, or {BY_OUTPUTS} with reconstruction",
        (AUTO, *METHODS, BY_OUTPUTS),
    )
    weight_method: str = _option("minmax", "how the ranges of weights are chosen", WEIGHT_METHODS)
    weight_bits: int = _option(
        None, "width of weights; default: the target's, 8; both ends and layers of few weights keep 8", None, _WIDTHS
    )
    act_bits: int = _option(
        None,
        f"width of activations; default: 8, or 16 for {_names(lambda target: target.activations[0].bits == 16)}",
        None,
        _WIDTHS,
    )
    rounding: str = _option(
        AUTO,
        f"how weights are rounded: {NEAREST}; or {FEEDBACK}, so that later ones compensate the errors of earlier ones; "
        f"{AUTO} is {FEEDBACK}, where weights are symmetric signed integers and biases are corrected",
        (AUTO, NEAREST, FEEDBACK),
    )
    bits: tuple[str, ...] = _option((), "widths of the weight and the input of single nodes", None, "NODE=W/A")
    symmetric: bool = _option(False, "put the zero points of activations in the middle of their integers")
    equalize: bool = _option(True, "equalize channels across layers if the result is exactly the same (on)")
    migrate: bool | None = _option(
        None,
        "divide channels of unequal size in front of Convs and multiply the weights instead; default: for "
        f"{_names(lambda target: target.scaling_stride is not None)}, with {LEAST_SAMPLES} real images or more, unless "
        "weights have fewer bits than activations and are not reconstructed",
    )
    reconstruct: bool | None = _option(
        None,
        f"reconstruct each layer on its quantized input; default: only below {RECONSTRUCT_BELOW} bits (needs --calib)",
    )
    keep_bias: bool = _option(False, "do not correct biases for the rounding of the weights")
    float_type: str = _option(
        "fp32", "data type of operators that are not quantized; the decode stays float32", FLOAT_TYPES
    )
    pack: str = _option("none", "data type that stores weights of at most 4 bits, for a smaller file", PACKS)
    requantize: bool = _option(False, "remove Q/DQ from a model that is already quantized, and quantize it again")
    exclude: tuple[str, ...] = _option((), "nodes to keep float: a name, op:TYPE or re:REGEX", None, "NODE")
    include: tuple[str, ...] = _option(
        (), "nodes to run on integers although the target prefers float; written as for --exclude", None, "NODE"
    )
    count: int | None = _option(
        None,
        f"number of calibration images, evenly spaced if there are more; default: {_IMAGES}, or "
        f"{_IMAGES_TO_RECONSTRUCT} with reconstruction",
        None,
        "N",
    )
    preprocess: str = _option(AUTO, f"how images become inputs: {PREPROCESS_WORDS}", None, "NAME|WORDS")
    layout: tuple[str, ...] = _option((), LAYOUT_HELP, None, "WORD")
    image_size: tuple[int, int] | None = _option(None, "input size, for models with a dynamic one", None, "N|HxW")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            value = getattr(self, field.name)
            if choices is not None and value not in choices:
                raise ConfigError(f"{field.name}: {value!r} is not one of {', '.join(map(str, choices))}")
        self._check_kinds()
        parse_preprocess(self.preprocess)
        for name, allowed in (("weight_bits", self.placement.weights), ("act_bits", self.placement.activations)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, allowed[0].bits)
        if self.layout:
            parse_layout(self.layout)
        self._check_widths()
        if self.is_half and not self.placement.strongly_typed:
            raise ConfigError(
                f"float_type: {self.placement.title} chooses the type of float operators by itself; "
                f"{HALF} is for --target {_names(lambda target: target.strongly_typed)}"
            )
        if self.packs:
            self._check_packing()
        if self.reconstruct and not self._can_reconstruct:
            raise ConfigError(
                f"reconstruct: weights for {self.placement.title} are not symmetric signed integers; "
                "leave --reconstruct out"
            )
        if self.migrate:
            self._check_migration()
        if self.reconstructs:
            self._check_reconstruction()
        if self.cpu != ANY_CPU and not self.placement.runs_on_cpus:
            raise ConfigError(f"cpu: files for {self.placement.title} run on no CPU; leave --cpu out")
        if self.rounding != AUTO:
            self._check_rounding()
        if self.method == BY_OUTPUTS and not self.reconstructs:
            raise ConfigError(f"method: {BY_OUTPUTS} is part of the reconstruction; add --reconstruct")
        if self.images < 1:
            raise ConfigError(f"count: {self.count} is less than 1")

    def _check_reconstruction(self) -> None:
        for name, default in (("weight_method", WEIGHT_METHODS[0]), ("keep_bias", False)):
            if getattr(self, name) != default:
                option = name.replace("_", "-")
                raise ConfigError(
                    f"{name}: reconstruction fits weights and biases by itself; leave --{option} out, or add "
                    "--no-reconstruct"
                )

    def _check_rounding(self) -> None:
        if self.reconstructs:
            raise ConfigError(f"rounding: reconstruction rounds with {FEEDBACK} by itself; leave --rounding out")
        if self.rounding == FEEDBACK and self.keep_bias:
            raise ConfigError(
                f"rounding: {FEEDBACK} shifts the mean of the outputs, which biases take up; leave --keep-bias out"
            )
        if self.rounding == FEEDBACK and not self._can_reconstruct:
            raise ConfigError(
                f"rounding: weights for {self.placement.title} are not symmetric signed integers; leave --rounding out"
            )

    def _check_migration(self) -> None:
        if self.placement.scaling_stride is None:
            raise ConfigError(
                f"migrate: {self.placement.title} spends time on the division; --migrate is "
                f"for --target {_names(lambda target: target.scaling_stride is not None)}"
            )

    @property
    def placement(self) -> Target:
        """The record of the target: its placement, and the requirements of its files."""
        return TARGETS[self.target]

    def _check_kinds(self) -> None:
        """Refuse values that are easily given instead of those of an option, as text from a file is."""
        for name in ("bits", "exclude", "include", "layout"):
            value: object = getattr(self, name)
            if isinstance(value, str):
                raise ConfigError(f"{name}: expected a tuple of strings, got {value!r}; write ({value!r},)")
            if not isinstance(value, tuple | list) or not all(isinstance(each, str) for each in value):
                raise ConfigError(f"{name}: expected a tuple of strings, got {value!r}")
        size: object = self.image_size
        is_size = isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(each, Integral) for each in size)
        if size is not None and not is_size:
            raise ConfigError(f"image_size: expected (height, width) in px, got {size!r}")
        for name in ("weight_bits", "act_bits", "count"):
            number: object = getattr(self, name)
            if number is not None and not isinstance(number, Integral):
                raise ConfigError(f"{name}: expected an integer, got {number!r}")
        for name, others in _SWITCHES.items():
            switch: object = getattr(self, name)
            if not isinstance(switch, bool) and switch not in others:
                expected = "True or False" + ", or None for the default" * bool(others)
                raise ConfigError(f"{name}: expected {expected}, got {switch!r}")
        words: object = self.preprocess
        if not isinstance(words, str):
            raise ConfigError(f"preprocess: expected text, got {words!r}")

    def _check_widths(self) -> None:
        for option, scheme_of, bits in (
            ("weight_bits", self.placement.weight_scheme, self.weight_bits),
            ("act_bits", self.placement.activation_scheme, self.act_bits),
        ):
            try:
                scheme_of(bits)
            except ConfigError as error:
                raise ConfigError(f"{option}: {error}") from None
        for text, (_, (weight, activation)) in zip(self.bits, self.widths, strict=True):
            try:
                self.placement.weight_scheme(weight)
                self.placement.activation_scheme(activation)
            except ConfigError as error:
                raise ConfigError(f"bits: {text}: {error}; --exclude keeps a node float") from None

    def _check_packing(self) -> None:
        if not self.placement.takes_int4:
            raise ConfigError(
                f"pack: {self.placement.title} takes {INT4} only in blocks with scales of their own; "
                f"leave --pack out, or use --target {_names(lambda target: target.takes_int4)}"
            )
        narrowest = min([self.weight_bits, *(weight for _, (weight, _) in self.widths)])
        if narrowest > _INT4_BITS:
            raise ConfigError(
                f"pack: {INT4} holds {_INT4_BITS} bits, and the narrowest weights have {narrowest}; "
                f"add --weight-bits {_INT4_BITS}, or leave --pack out"
            )

    @property
    def widths(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        """`bits`, parsed: patterns, and the widths of weight and input of the nodes that match."""
        return tuple(map(_parsed_widths, self.bits))

    @property
    def reconstructs(self) -> bool:
        """Whether layers are reconstructed."""
        widths = [self.weight_bits, self.act_bits, *(width for _, pair in self.widths for width in pair)]
        by_default = min(widths) < RECONSTRUCT_BELOW and self._can_reconstruct
        return by_default if self.reconstruct is None else self.reconstruct

    @property
    def migrates(self) -> bool:
        """Whether scales migrate if the samples are suitable."""
        if self.migrate is not None:
            return self.migrate
        suits = self.divides_at_sources or self.reconstructs
        return self.placement.scaling_stride is not None and suits

    @property
    def divides_at_sources(self) -> bool:
        """Whether scales also migrate where no Mul divides, so that reconstruction cannot choose them again.

        Weights become less equal, which costs more than activations gain if weights have the fewer levels.
        """
        return bool(self.migrate) or self.weight_bits >= self.act_bits

    @property
    def rounds_with_feedback(self) -> bool:
        """Whether weights are rounded with error feedback, outside of reconstruction."""
        if self.rounding != AUTO:
            return self.rounding == FEEDBACK
        return self._can_reconstruct and not self.reconstructs and not self.keep_bias

    @property
    def rounding_used(self) -> str:
        """`rounding`, with `auto` resolved; reconstruction rounds with feedback too."""
        return FEEDBACK if self.rounds_with_feedback or self.reconstructs else NEAREST

    @property
    def _can_reconstruct(self) -> bool:
        return self.placement.symmetric_weights and all(each.is_signed for each in self.placement.weights)

    @property
    def limits_weights(self) -> bool:
        """Whether weights are kept so small that CPUs without VNNI saturate no sum."""
        return self.placement.runs_on_cpus and self.cpu != VNNI

    @property
    def images(self) -> int:
        """Number of calibration images to take."""
        default = _IMAGES_TO_RECONSTRUCT if self.reconstructs else _IMAGES
        return default if self.count is None else self.count

    @property
    def method_used(self) -> str:
        """`method`, with `auto` resolved."""
        if self.method != AUTO:
            return self.method
        return BY_OUTPUTS if self.reconstructs else "uh"

    @property
    def is_half(self) -> bool:
        """Whether float operators compute in float16."""
        return self.float_type == HALF

    @property
    def packs(self) -> bool:
        """Whether narrow weights are stored as int4."""
        return self.pack == INT4

    @property
    def all_widths(self) -> str:
        """All widths: `W4A8`, then those of single nodes as `bits` has them."""
        return " ".join([f"W{self.weight_bits}A{self.act_bits}", *self.bits])

    @property
    def flags(self) -> list[str]:
        """The options that differ from the default, as words of the command line."""
        default = Config(target=self.target)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = [name for name, value in values.items() if value != getattr(default, name)]
        changed = (["target"] if self.target != Config.target else []) + changed
        return [word for name in changed for word in _flag(name.replace("_", "-"), values[name])]

    @property
    def suffix(self) -> str:
        """Suffix of the name of the result: `int8`, or the widths, such as `w4a8`."""
        is_int8 = self.weight_bits == self.act_bits == INT8.bits
        return "int8" if is_int8 else f"w{self.weight_bits}a{self.act_bits}"


def _flag(name: str, value: object) -> list[str]:
    """Return an option as the words of a command line, as `console.arguments` takes it."""
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
    """Return the pattern and the widths of weight and input of `PATTERN=W/A`."""
    pattern, _, widths = text.rpartition("=")
    found = re.fullmatch(r"(\d+)/(\d+)", widths)
    if not pattern or found is None:
        raise ConfigError(f"bits: {text}: give PATTERN=W/A, as in re:model.0/=8/8 or op:Conv=4/8")
    return pattern, (int(found[1]), int(found[2]))
