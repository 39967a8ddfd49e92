"""Arrays in `.npy` and `.npz` files: headers are checked against the file before anything of an array is read."""

import io
import math
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from onnxq import memory
from onnxq.calibration.feeds import ArrayHeader
from onnxq.errors import DataError
from onnxq.ir.files import atomic_write

_READERS = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
"""Version of the format -> function that reads shape, order and dtype. Version 3 is for names of fields."""

_FIXED_DATE = (1980, 1, 1, 0, 0, 0)

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How numpy writes archives."""

_MOST_INFLATED = 1032
"""Bytes that a byte of a deflated stream can stand for at most."""


def is_archive(file: Path) -> bool:
    """Return whether a file is an archive of arrays, whatever its suffix."""
    with _reading(file):
        return zipfile.is_zipfile(file)


def read_headers(file: Path, single: str = "array") -> dict[str, ArrayHeader]:
    """Return the header of each array of a file by name.

    Args:
        file: the file.
        single: name for the array of an `.npy` file.

    Raises:
        DataError: the file is of another kind, or an array is not as long as its header says.
    """
    with _reading(file):
        if zipfile.is_zipfile(file):
            return headers_in_archive(file)
        with file.open("rb") as stream:
            return {single: _header(stream, file.stat().st_size)}


def headers_in_archive(file: Path) -> dict[str, ArrayHeader]:
    """Return the headers as `read_headers`; numpy, zipfile and zlib raise many types of exceptions on broken files."""
    found: dict[str, ArrayHeader] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in found:
                raise ValueError(f"{name} is in it twice")
            _check_packing(member, file.stat().st_size)
            with archive.open(member) as stream:
                found[name] = _header(stream, member.file_size)
    return found


def require_memory(file: Path, headers: Iterable[ArrayHeader]) -> None:
    """Check that these arrays of an `.npz` file fit into memory together.

    Raises:
        DataError: they exceed the limit of memory.
    """
    remedy = "write them as .npy, which is read sample by sample"
    memory.require(sum(_bytes(*header) for header in headers), f"{file}: its arrays", remedy)


def map_array(file: Path) -> NDArray[Any]:
    """Return the array of an `.npy` file, whose values are read when they are used.

    Raises:
        DataError: it cannot be read.
    """
    with _reading(file):
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def load_arrays(file: Path, names: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Read arrays of an `.npz` file whose headers were read before, and whose memory is known to suffice.

    Args:
        file: the file.
        names: key of the result -> name in the file.

    Raises:
        DataError: the file is damaged.
    """
    with _reading(file), np.load(file, allow_pickle=False) as archive:
        return {key: archive[name] for key, name in names.items()}


def write_archive(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as `.npz`, whole or not at all. Equal arrays give equal bytes.

    Raises:
        ConfigError: the file cannot be written.
    """
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            # numpy.savez writes the time of day; a fixed date keeps the bytes the same.
            member = zipfile.ZipInfo(f"{key}.npy", date_time=_FIXED_DATE)
            archive.writestr(member, buffer.getvalue(), zipfile.ZIP_DEFLATED)


def _header(stream: IO[bytes], size: int) -> ArrayHeader:
    """Read the header of an array, and check it.

    Args:
        stream: at the beginning of the array; it is left behind the header.
        size: bytes of the header and the values.

    Raises:
        ValueError: the header is malformed, or the values have another size.
    """
    version = read_magic(stream)
    if version not in _READERS:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = _READERS[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if any(isinstance(dim, bool) or not 0 <= dim <= sys.maxsize for dim in shape):
        raise ValueError(f"the shape is {shape}")
    held = size - stream.tell()
    if _bytes(shape, dtype) != held:
        raise ValueError(f"{held} bytes of values, and the shape {shape} of {dtype} takes {_bytes(shape, dtype)}")
    return ArrayHeader(shape, dtype)


def _bytes(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> int:
    return math.prod(shape) * dtype.itemsize


def _check_packing(member: zipfile.ZipInfo, size: int) -> None:
    """Check what the directory of an archive of `size` bytes says of a member.

    Raises:
        ValueError: it cannot be true, or is nothing that numpy writes.
    """
    if member.flag_bits & 1 or member.compress_type not in _METHODS:
        raise ValueError(f"{member.filename} is encrypted, or packed in a way that numpy does not use")
    most = member.compress_size * (_MOST_INFLATED if member.compress_type == zipfile.ZIP_DEFLATED else 1)
    if member.compress_size > size or member.file_size > most:
        raise ValueError(f"{member.filename} cannot have the {member.file_size} bytes that are stated")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # as in `headers_in_archive`
        raise DataError(f"{file}: cannot be read as arrays ({error}); write it with numpy.save or savez") from None
