"""What runs the models on this machine: to compare, to time, and to see which operators run on integers."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.runtime.session import Feed

Source = Path | onnx.ModelProto


@dataclass(frozen=True)
class OperatorTime:
    """What one type of operator takes within a run.

    Attributes:
        count: how many of them run.
        seconds: all of them together, each by its least time.
    """

    count: int
    seconds: float


@dataclass(frozen=True)
class IntegerLayers:
    """Which layers a runtime runs on integers.

    Attributes:
        wanted: names of those that were asked for and do.
        others: how many more do.
    """

    wanted: tuple[str, ...]
    others: int


class Runtime(ABC):
    """A model that is loaded and ready to run on the CPU.

    Args:
        model: a model, or the path of one.
        threads: within a run; 0 lets the runtime choose.

    Raises:
        ConfigError: the runtime is not installed.
        ModelError: it cannot load the model; with its reason.
    """

    title: ClassVar[str]

    @abstractmethod
    def __init__(self, model: Source, *, threads: int = 0) -> None: ...

    @abstractmethod
    def run(self, feed: Feed) -> dict[str, NDArray[np.generic]]:
        """The outputs by name.

        Raises:
            ModelError: the runtime refuses the feed or fails; with its reason.
        """

    @classmethod
    @abstractmethod
    def is_installed(cls) -> bool:
        """Whether it can be used here."""

    @classmethod
    @abstractmethod
    def operator_times(
        cls, model: Source, feed: Feed, *, threads: int = 0, rounds: int = 10
    ) -> dict[str, OperatorTime]:
        """Operator, as the runtime calls it -> what it takes, the slowest first.

        Args:
            rounds: runs, of which each node counts by the fastest.

        Raises:
            ModelError: as from the constructor and `run`.
        """

    @abstractmethod
    def integer_layers(self, model: onnx.ModelProto, layers: Sequence[str]) -> IntegerLayers:
        """Which of the layers run on integers in the graph that the runtime makes of the model.

        Args:
            model: the one that is loaded.
            layers: names of Convs and MatMuls with weights behind a DequantizeLinear.

        Raises:
            ModelError: as from the constructor.
        """


def summed_times(spans: Iterable[tuple[str, str, float]]) -> dict[str, OperatorTime]:
    """Operator -> sum over its nodes of the least seconds of each, from (operator, node, seconds) of many runs."""
    least: dict[tuple[str, str], float] = {}
    for operator, node, seconds in spans:
        least[operator, node] = min(seconds, least.get((operator, node), seconds))
    count = Counter(operator for operator, _ in least)
    total = dict.fromkeys(count, 0.0)
    for (operator, _), seconds in least.items():
        total[operator] += seconds
    slowest_first = sorted(total, key=lambda name: (-total[name], name))
    return {name: OperatorTime(count[name], total[name]) for name in slowest_first}
