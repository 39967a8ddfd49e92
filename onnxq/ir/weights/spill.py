"""A temporary file for weights that no other file has: those that a pass has changed, or that were given in memory."""

import weakref
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxq.errors import ConfigError
from onnxq.ir.temporary import no_room, temporary_folder
from onnxq.ir.weights.links import link

_ALIGNMENT = 64
"""Alignment of weights, bytes: that of a cache line."""


class Spill:
    """Writes weights to a file in the folder for temporary files, which is removed with this object."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._path: Path | None = None
        self._remove = weakref.finalize(self, self._stack.close)

    def linked(self, name: str, values: NDArray[np.generic]) -> TensorProto:
        """Write an array of numbers, and return a tensor that links to it.

        Raises:
            ConfigError: there is no room.
        """
        if self._path is None:
            self._path = self._stack.enter_context(temporary_folder()) / "weights"
        tensor = TensorProto(
            name=name, data_type=helper.np_dtype_to_tensor_dtype(values.dtype), dims=map(int, values.shape)
        )
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        try:
            with open(self._path, "ab") as file:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                offset = file.tell()  # behind what a write that failed may have left
                file.write(raw.data)
        except OSError as error:
            raise ConfigError(no_room(error, self._path.parent.parent)) from error
        link(tensor, str(self._path.absolute()), offset, raw.size)
        return tensor
