"""Arrays of one tensor for all samples, whose memory goes back to the system at once when they are freed."""

import math
import mmap
import os
import tempfile
import threading
from typing import Any

import numpy as np

from onnxq.errors import ConfigError
from onnxq.ir.temporary import no_room, temporary_place
from onnxq.numerics.arrays import AnyArray

_NOTHING: AnyArray = np.zeros(0)


class Memory:
    """Budget of bytes in memory; several threads may take some."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._taking = threading.Lock()

    def take(self, size: int) -> bool:
        """Take this number of bytes; return False if fewer are left."""
        with self._taking:
            if size > self._left:
                return False
            self._left -= size
            return True


class SampleArrays:
    """The arrays of one tensor, one per sample, in memory, or in a temporary file if the budget is spent.

    Attributes:
        arrays: of the samples, empty before they are put there.

    Args:
        count: number of samples.
        memory: the budget; None: it has no limit.
    """

    def __init__(self, count: int, memory: Memory | None = None) -> None:
        self.arrays: list[AnyArray] = [_NOTHING] * count
        self._memory = memory
        self._block: AnyArray | None = None
        self._making = threading.Lock()

    def put(self, sample: int, array: AnyArray, room: int = 0) -> None:
        """Copy an array; one that has no room, or is of another type than the first one, is kept itself.

        Several threads may do so.

        Args:
            sample: its number.
            array: of the sample.
            room: most values of an array; if it is 0, the first one has as many as any.

        Raises:
            ConfigError: the disk has no room.
        """
        with self._making:
            if self._block is None:
                self._block = self._made(array, max(room, array.size))
        if array.size > self._block.shape[1] or array.dtype != self._block.dtype:
            self.arrays[sample] = array
            return
        self.arrays[sample] = place = self._block[sample, : array.size].reshape(array.shape)
        place[...] = array

    def _made(self, array: AnyArray, room: int) -> AnyArray:
        shape = len(self.arrays), room
        is_free = self._memory is None or self._memory.take(math.prod(shape) * array.dtype.itemsize)
        return _in_memory(shape, array.dtype) if is_free else _on_disk(shape, array.dtype)


def is_in_file(array: AnyArray) -> bool:
    """Return whether an array of `SampleArrays` is in a temporary file."""
    return isinstance(array, np.memmap)


def _in_memory(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> AnyArray:
    """Return an array of its own pages, as malloc may keep what it is given back."""
    size = math.prod(shape) * dtype.itemsize
    if not size or not hasattr(mmap, "MAP_PRIVATE"):
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype).reshape(shape)


def _on_disk(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> AnyArray:
    """Return an array in a temporary file whose space is reserved: a full disk would end the process later."""
    size = math.prod(shape) * dtype.itemsize
    place = temporary_place()
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        told = no_room(error, place, f"{size / 1e6:.0f} MB that reconstruction sets aside")
        raise ConfigError(f"{told}, or give fewer images (--count)") from None
