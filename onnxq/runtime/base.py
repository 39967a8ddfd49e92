"""Interface of runtimes: run a model on this machine, time its operators, find the layers that run on integers."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.runtime.session import Feed

ModelSource = Path | onnx.ModelProto
"""A model, or the path of one."""


@dataclass(frozen=True)
class OperatorTime:
    """The time of all nodes of one operator within a run.

    Attributes:
        count: number of nodes.
        seconds: sum over the nodes of the least time of each.
    """

    count: int
    seconds: float


@dataclass(frozen=True)
class IntegerLayers:
    """The layers that a runtime runs on integers.

    Attributes:
        wanted: names of the requested layers among them.
        others: number of the other layers.
    """

    wanted: tuple[str, ...]
    others: int


class Runtime(ABC):
    """A model that is loaded and ready to run on the CPU.

    Args:
        model: a model, or the path of one.
        threads: threads of a run; 0 lets the runtime choose.
        at_once: runs at the same time, each called from a thread of its own.

    Attributes:
        title: name of the runtime in messages.

    Raises:
        ConfigError: the runtime is not installed.
        ModelError: the runtime cannot load the model; the message has its reason.
    """

    title: ClassVar[str]

    @abstractmethod
    def __init__(self, model: ModelSource, *, threads: int = 0, at_once: int = 1) -> None: ...

    @classmethod
    def inspected(cls, model: onnx.ModelProto) -> Self:
        """Load a model whose layers on integers are asked for later, without optimizing it once more for them.

        Raises:
            ModelError: as from the constructor.
        """
        return cls(model)

    @abstractmethod
    def run(self, feed: Feed) -> dict[str, NDArray[np.generic]]:
        """Return the outputs by name.

        Raises:
            ModelError: the runtime refuses the feed or fails; the message has its reason.
        """

    @classmethod
    @abstractmethod
    def is_installed(cls) -> bool:
        """Return whether the runtime can be used on this machine."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Return the version of the runtime, which must be installed: `1.32.0`."""

    @classmethod
    def described(cls) -> str:
        """Return title and version of the runtime, which must be installed."""
        return f"{cls.title} {cls.version()}"

    @classmethod
    @abstractmethod
    def without_saturation(cls, model: onnx.ModelProto) -> tuple[onnx.ModelProto, "Runtime"]:
        """Return a model in which no 16-bit sum of products saturates, to compare with, and that model as it runs.

        All else runs as in `model`: a fault that is gone there is saturation.

        Raises:
            ModelError: as from the constructor.
        """

    @classmethod
    @abstractmethod
    def operator_times(
        cls, model: ModelSource, feed: Feed, *, threads: int = 0, rounds: int = 10
    ) -> dict[str, OperatorTime]:
        """Return the time of each operator, named as the runtime does, the slowest first.

        Args:
            model: a model, or the path of one.
            feed: input of every run.
            threads: threads of a run; 0 lets the runtime choose.
            rounds: number of runs; each node counts with its least time.

        Raises:
            ModelError: as from the constructor and `run`.
        """

    @abstractmethod
    def integer_layers(self, model: onnx.ModelProto, layers: Sequence[str]) -> IntegerLayers:
        """Return the layers that run on integers in the optimized graph of the runtime.

        Args:
            model: the loaded model.
            layers: names of Convs and MatMuls whose weights come from a DequantizeLinear.

        Raises:
            ModelError: as from the constructor.
        """


def summed_times(spans: Iterable[tuple[str, str, float]]) -> dict[str, OperatorTime]:
    """Return the time of each operator, the slowest first, from (operator, node, seconds) of many runs."""
    least: dict[tuple[str, str], float] = {}
    for operator, node, seconds in spans:
        least[operator, node] = min(seconds, least.get((operator, node), seconds))
    count = Counter(operator for operator, _ in least)
    total = dict.fromkeys(count, 0.0)
    for (operator, _), seconds in least.items():
        total[operator] += seconds
    slowest_first = sorted(total, key=lambda name: (-total[name], name))
    return {name: OperatorTime(count[name], total[name]) for name in slowest_first}
