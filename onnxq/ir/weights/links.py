"""Tensors whose values stay in a file: links, in the form of ONNX's external data, with absolute paths.

Inside onnxq, a model of more than `LARGE` bytes has links in place of its large constants. Such a model is small: it
can be copied, cut and given to a runtime, which reads the values from the files. What leaves onnxq is `embedded`.
"""

import mmap
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.ir.proto import copy_message

LARGE = 100_000_000
"""Bytes of weights of a model above which they stay in files."""

_STAMP = "stamp"
"""Key of what tells whether a file was changed since a tensor was linked to it."""

_OURS = "onnxq"
"""Key of what tells links of this process from paths that a model brings along, which may lead anywhere."""

_TOKEN = secrets.token_hex(16)


def is_linked(tensor: TensorProto) -> bool:
    """Return whether this process has linked a tensor to its values in a file."""
    return tensor.data_location == TensorProto.EXTERNAL and _entries(tensor).get(_OURS) == _TOKEN


def has_links(model: onnx.ModelProto) -> bool:
    """Return whether any initializer of a model links to a file."""
    return any(map(is_linked, model.graph.initializer))


def can_link(tensor: TensorProto) -> bool:
    """Return whether numpy reads the values of a tensor as they are stored: numbers of one byte or more."""
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING, TensorProto.BOOL):
        return False
    name = TensorProto.DataType.Name(tensor.data_type)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return dtype.isbuiltin == 1 and dtype.name.upper() in (name, {"FLOAT": "FLOAT32", "DOUBLE": "FLOAT64"}.get(name))


def link(tensor: TensorProto, path: str, offset: int, length: int, stamp: str = "") -> None:
    """Let a tensor link to its values in a file, in place of those that it holds.

    Args:
        tensor: edited in place; `can_link` is true for it.
        path: absolute path of the file.
        offset: place of the first value, bytes.
        length: of all values, bytes.
        stamp: of the file; empty if nobody else can change it.
    """
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    entries = {"location": path, "offset": offset, "length": length, _OURS: _TOKEN, _STAMP: stamp}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def stamp_of(found: os.stat_result) -> str:
    """Return what changes when a file is written or replaced."""
    return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def values_of(tensor: TensorProto) -> NDArray[np.generic]:
    """Return the values of a tensor, linked or not.

    Those of a linked one are read-only and mapped: they take memory as they are read, and only as long as the array is
    used. If the file has them at an odd place, they are a copy.

    Raises:
        ModelError: the file is gone, or was changed since the tensor was linked to it.
    """
    if not is_linked(tensor):
        return numpy_helper.to_array(tensor)
    entries = _entries(tensor)
    offset, length = int(entries["offset"]), int(entries["length"])
    dtype = np.dtype(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<").str)
    if length == 0:
        return np.zeros(tuple(tensor.dims), dtype)
    first = offset % mmap.ALLOCATIONGRANULARITY
    try:
        with open(entries["location"], "rb") as file:
            _require_same(entries, os.fstat(file.fileno()))
            mapped = mmap.mmap(file.fileno(), first + length, access=mmap.ACCESS_READ, offset=offset - first)
    except (OSError, ValueError) as error:
        raise _gone(entries, str(error)) from None
    values = np.frombuffer(mapped, dtype, length // dtype.itemsize, first).reshape(tuple(tensor.dims))
    return values if values.flags.aligned else values.copy()


def require_files(model: onnx.ModelProto) -> None:
    """Check that the files that a model links to are as they were; each is checked once.

    Raises:
        ModelError: one is gone or was changed.
    """
    seen = {}
    for tensor in filter(is_linked, model.graph.initializer):
        entries = _entries(tensor)
        seen[entries["location"], entries[_STAMP]] = entries
    for entries in seen.values():
        try:
            _require_same(entries, os.stat(entries["location"]))
        except OSError as error:
            raise _gone(entries, str(error.strerror)) from None


def embed(tensor: TensorProto) -> TensorProto:
    """Return a tensor that holds its values; one that holds them already is returned as it is.

    Raises:
        ModelError: as from `values_of`.
    """
    if not is_linked(tensor):
        return tensor
    held = copy_message(tensor)
    del held.external_data[:]
    held.ClearField("data_location")
    held.raw_data = values_of(tensor).tobytes()
    return held


def embedded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that holds all its weights; one without links is returned as it is.

    Raises:
        ModelError: as from `values_of`.
    """
    if not has_links(model):
        return model
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for tensor in whole.graph.initializer:
        if is_linked(tensor):
            tensor.raw_data = embed(tensor).raw_data
            tensor.ClearField("data_location")
            del tensor.external_data[:]
    return whole


def anchored(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str] | None:
    """Return a copy of a linked model whose paths start from one folder, and this folder; None if no folder has all.

    Runtimes refuse absolute paths and files outside of a model's folder.
    """
    linked = [tensor for tensor in model.graph.initializer if is_linked(tensor)]
    anchors = {Path(_entries(tensor)["location"]).anchor for tensor in linked}
    if len(anchors) != 1:
        return None
    [anchor] = anchors
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    for tensor in filter(is_linked, moved.graph.initializer):
        entries = _entries(tensor)
        place = Path(entries["location"]).relative_to(anchor).as_posix()
        del tensor.external_data[:]
        for key, value in (("location", place), ("offset", entries["offset"]), ("length", entries["length"])):
            tensor.external_data.add(key=key, value=value)
    return moved, anchor


def bytes_of(tensors: Iterable[TensorProto]) -> int:
    """Return the bytes that tensors hold or link to."""
    return sum(int(_entries(t)["length"]) if is_linked(t) else int(t.ByteSize()) for t in tensors)


def _entries(tensor: TensorProto) -> Mapping[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _require_same(entries: Mapping[str, str], found: os.stat_result) -> None:
    if entries[_STAMP] not in ("", stamp_of(found)):
        raise _gone(entries, "it was changed")


def _gone(entries: Mapping[str, str], cause: str) -> ModelError:
    return ModelError(
        f"{entries['location']}: the weights cannot be read from it any more ({cause}); leave the file as it is "
        "until the run ends"
    )
