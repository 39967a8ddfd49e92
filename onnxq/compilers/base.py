"""Interface of compilers: build a file as its users do, tell how each layer runs, and run it where a CPU can."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import onnx

from onnxq.compilers.layers import FileLayer
from onnxq.numerics.arrays import NamedArrays
from onnxq.runtime import Feed


@dataclass(frozen=True)
class Ran:
    """How a compiler runs a layer.

    Attributes:
        types: data and weights, `uint8 x int8`; or the float type that it computes in.
        on_integers: both are integers.
        reason: why it does not run on integers, as far as it is known.
    """

    types: str
    on_integers: bool
    reason: str = ""


@dataclass(frozen=True)
class Job:
    """What a compiler is to build.

    Attributes:
        model: the file; every layer has a name of its own, and the inputs have known shapes.
        layers: its layers.
        feeds: inputs to run.
        folder: an empty folder for the compiler's files.
        device: what to build for; empty: `Compiler.device`.
        python: the interpreter whose environment has the compiler.
        timeout: time for all of it, s.
    """

    model: onnx.ModelProto
    layers: Sequence[FileLayer]
    feeds: Sequence[Feed]
    folder: Path
    device: str
    python: str
    timeout: float


@dataclass(frozen=True)
class Built:
    """What a compiler made of a file.

    Attributes:
        version: of the compiler.
        layers: layer -> how it runs; those that the compiler does not mention are missing.
        outputs: outputs of each feed by name; empty if the result runs on the device only.
        on_cpu: nodes that the device leaves to the CPU, with their operators: `/Concat (Concat)`.
        notes: sentences on what the numbers are and are not.
    """

    version: str
    layers: Mapping[str, Ran]
    outputs: Sequence[NamedArrays] = ()
    on_cpu: Sequence[str] = ()
    notes: Sequence[str] = field(default=())


class Compiler(ABC):
    """A compiler.

    Attributes:
        name: value of `--with`.
        title: name in messages.
        device: what it builds for unless `--device` says more; empty: it has no choice.
        device_help: what `--device` means to it.
        in_own_process: it runs in a process, and maybe an environment, of its own.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    device: ClassVar[str] = ""
    device_help: ClassVar[str] = ""
    in_own_process: ClassVar[bool] = True

    @abstractmethod
    def require(self, python: str) -> None:
        """Check that the compiler is installed.

        Args:
            python: the interpreter whose environment has it.

        Raises:
            ConfigError: it is not; the message says how to get it.
        """

    @abstractmethod
    def build(self, job: Job) -> Built:
        """Build a file and run its feeds.

        Raises:
            ModelError: the compiler refuses the file, crashes or takes too long; the message has its last words.
        """
