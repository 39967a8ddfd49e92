"""Every option that decides what is written, once: the command line's flags are made from these fields."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from onnxq.errors import ConfigError
from onnxq.images import PREPROCESSES
from onnxq.ranges import METHODS
from onnxq.scheme import MAX_BITS, MIN_BITS
from onnxq.targets import TARGETS

AUTO = "auto"
HALF = "fp16"
RESTS = ("fp32", HALF)
WEIGHT_METHODS = ("minmax", "mse")


def _option(default: Any, help: str, choices: tuple[str | int, ...] | None = None, metavar: str | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "metavar": metavar})


_WIDTHS = tuple(range(MIN_BITS, MAX_BITS + 1))


@dataclass(frozen=True)
class Config:
    """How to quantize.

    Raises:
        ConfigError: a value is not among an option's choices.
    """

    target: str = _option("ort", "runtime that the result is for", tuple(TARGETS))
    method: str = _option("uh", "how the ranges of activations are chosen", tuple(METHODS))
    weight_method: str = _option("minmax", "how the ranges of weights are chosen", WEIGHT_METHODS)
    weight_bits: int = _option(8, "width of weights", _WIDTHS, "2..8")
    act_bits: int = _option(8, "width of activations", _WIDTHS, "2..8")
    symmetric: bool = _option(False, "zero points of activations in the middle of the grid")
    reconstruct: bool | None = _option(
        None, "fit each layer to what quantization made of its input; default: below 8 bits (needs --calib)"
    )
    keep_bias: bool = _option(False, "do not correct biases for the rounding of the weights")
    rest: str = _option("fp32", "type of what stays float, up to the decode", RESTS)
    exclude: tuple[str, ...] = _option((), "nodes to keep float: a name, op:TYPE or re:REGEX", None, "NODE")
    count: int = _option(100, "calibration images to take, evenly spaced, of a longer list", None, "N")
    preprocess: str = _option(AUTO, "how images become inputs", (AUTO, *PREPROCESSES))
    image_size: tuple[int, int] | None = _option(None, "input size of a model with dynamic size", None, "N|HxW")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            value = getattr(self, field.name)
            if choices is not None and value not in choices:
                raise ConfigError(f"{field.name}: {value!r} is not one of {', '.join(map(str, choices))}")
        if self.is_half and not TARGETS[self.target].takes_half:
            takers = ", ".join(name for name, target in TARGETS.items() if target.takes_half)
            raise ConfigError(
                f"rest: {TARGETS[self.target].title} chooses the type of what stays float by itself; "
                f"{HALF} is for --target {takers}"
            )
        if self.count < 1:
            raise ConfigError(f"count: {self.count} is less than 1")

    @property
    def reconstructs(self) -> bool:
        """Whether layers are reconstructed."""
        narrow = min(self.weight_bits, self.act_bits) < MAX_BITS
        return narrow if self.reconstruct is None else self.reconstruct

    @property
    def is_half(self) -> bool:
        """Whether what stays float is computed in float16."""
        return self.rest == HALF

    @property
    def suffix(self) -> str:
        """What the name of the result ends with: `int8`, or the widths, as `w4a8`."""
        plain = self.weight_bits == self.act_bits == MAX_BITS
        return "int8" if plain else f"w{self.weight_bits}a{self.act_bits}"
