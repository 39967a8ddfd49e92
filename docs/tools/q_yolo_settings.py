"""The settings that the tables of Q-YOLO compare: range methods, bit widths, symmetry, first and last Convs."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onnxq.config import Config
from onnxq.qdq.placement import ENDS_BITS

TARGET = "openvino"

_RANGES_ONLY = {"reconstruct": False, "rounding": "nearest", "migrate": False}

METHODS: dict[str, dict[str, Any]] = {
    **{name: {"method": name, "keep_bias": True, **_RANGES_ONLY} for name in ("minmax", "percentile", "mse", "uh")},
    "uh, biases corrected": {"method": "uh", **_RANGES_ONLY},
    "ours": {},
}
"""Row -> options. The paper's methods only choose ranges; `ours` is the default of onnxq."""

ENDS = {
    "float": "first and last Convs float, as in the paper",
    "8": "first and last Convs at 8 bits",
    "narrow": "all Convs at these widths",
}
BITS = ("8-8", "4-4", "6-6", "4-8")
ACTIVATIONS = {"asymmetric": False, "symmetric": True}


@dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes:
        ends: a key of `ENDS`.
        activations: a key of `ACTIVATIONS`.
        bits: bit widths of weights and activations, as "4-8".
        method: a key of `METHODS`.
    """

    ends: str
    activations: str
    bits: str
    method: str

    def config(self, ends: Sequence[str], count: int, wide: Sequence[str] = ()) -> Config:
        """Return the options of onnxq.

        Args:
            ends: names of the first and the last layers.
            count: number of calibration images.
            wide: names of the layers that keep 8 bits at both ends.
        """
        weight, activation = map(int, self.bits.split("-"))
        narrow = min(weight, activation) < ENDS_BITS
        # By default the last layers stay float or keep 8 bits, and so do other layers that read the same tensor. Layers
        # of few weights keep 8 bits if activations do.
        forced: tuple[str, ...] = ()
        if narrow and self.ends != "8":
            forced = (f"op:Conv={weight}/{activation}",)
        elif narrow and activation >= ENDS_BITS:
            forced = (f"op:Conv={weight}/{activation}", *(f"{name}={ENDS_BITS}/{activation}" for name in wide))
        return Config(
            target=TARGET,
            weight_bits=weight,
            act_bits=activation,
            symmetric=ACTIVATIONS[self.activations],
            bits=forced,
            exclude=tuple(ends) if self.ends == "float" else (),
            include=tuple(ends) if self.ends != "float" else (),
            count=count,
            **METHODS[self.method],
        )


def settings(
    ends: Sequence[str], activations: Sequence[str], bits: Sequence[str], methods: Sequence[str]
) -> Iterator[Setting]:
    """Yield all rows in the order in which they are measured: table by table."""
    for end, activation, width, method in itertools.product(ends, activations, bits, methods):
        if not (end == "8" and width == "8-8"):  # the same file as with all Convs at 8 bits
            yield Setting(end, activation, width, method)
