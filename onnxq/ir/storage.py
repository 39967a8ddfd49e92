"""Reading and writing model files, and passing models to runtimes.

A protocol buffer holds at most 2 GB, in a file and in memory. A larger model has its weights in a second file. Models
that are read have links in place of their weights, if these are large; see `onnxq.ir.weights.links`.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxq.errors import ModelError
from onnxq.ir.checks.external_data import read_external_data
from onnxq.ir.checks.layers import check_layers
from onnxq.ir.checks.nodes import check_nodes, check_texts, check_values
from onnxq.ir.checks.tensors import all_tensors, check_tensors
from onnxq.ir.files import atomic_write, why_missing
from onnxq.ir.proto import clear_negative_dims, large_initializers, without_weights
from onnxq.ir.temporary import sweep, temporary_folder
from onnxq.ir.weights import links
from onnxq.ir.weights.in_file import linked_message
from onnxq.ir.weights.links import (
    anchored,
    bytes_of,
    embed,
    embedded,
    has_links,
    is_linked,
    require_files,
    values_of,
)

LARGEST = 2**31 - 1
"""Greatest size of one message, bytes."""

_ALIGNMENT = 4096
"""Alignment of weights in a file, bytes; runtimes map them into memory by pages."""


def size(model: onnx.ModelProto) -> int:
    """Return the bytes that a model takes, or would take, as one message."""
    return bytes_of(large_initializers(model)) + int(without_weights(model).ByteSize())


def is_one_message(model: onnx.ModelProto) -> bool:
    """Return whether a model fits into one message."""
    return size(model) <= LARGEST


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, whole or not at all; the weights of one over 2 GB go to `PATH.data`.

    Raises:
        ConfigError: the file cannot be written.
    """
    sweep(Path(os.path.realpath(path)).parent)
    if is_one_message(model):
        with atomic_write(path) as temporary:
            onnx.save(embedded(model), temporary)
        return
    data = data_path(path)
    # The file opened last is in place first: the model file never exists without its weights.
    with atomic_write(path) as temporary, atomic_write(data) as weights:
        onnx.save(_external(model, weights, data.name), temporary)


def data_path(path: Path) -> Path:
    """Return the path of the second file of a model that is too large for one."""
    return path.with_name(f"{path.name}.data")


def size_on_disk(path: Path) -> int:
    """Return the bytes of a model's file and of the files with its weights."""
    return sum(file.stat().st_size for file in files_of(path) if os.path.isfile(file))


def files_of(path: Path) -> list[Path]:
    """Return the path of a model and of the files with its values, as it names them; they need not exist."""
    if not os.path.isfile(path):  # reading a pipe may wait forever
        return [path]
    try:
        proto = _message(path)
    except (OSError, DecodeError):
        return [path]
    outside = (t for _, t in all_tensors(proto) if uses_external_data(t) and not is_linked(t))
    named = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    return [path, *(path.parent / name for name in sorted(named))]


def digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of a model with its weights."""
    sha = hashlib.sha256(without_weights(model).SerializeToString(deterministic=True))
    for tensor in large_initializers(model):
        sha.update(embed(tensor).SerializeToString(deterministic=True))
    return sha.hexdigest()


@contextmanager
def loadable(model: onnx.ModelProto | Path) -> Iterator[bytes | str]:
    """Yield the bytes or the path from which a runtime loads a model; a temporary file is removed after the block."""
    if isinstance(model, Path):
        yield str(model)
    elif is_one_message(model) and not has_links(model):
        yield model.SerializeToString()
    else:
        with temporary_folder() as folder:
            path = folder / "model.onnx"
            data = data_path(path)
            onnx.save(_external(model, data, data.name), path)
            yield str(path)


def linked(model: onnx.ModelProto) -> tuple[bytes, str] | None:
    """Return the bytes of a model whose weights are in files, and the folder that its paths start from.

    None: it holds its weights, or the files are on several drives.

    Raises:
        ModelError: a file is gone or was changed.
    """
    require_files(model)
    moved = anchored(model) if has_links(model) else None
    return (moved[0].SerializeToString(), moved[1]) if moved is not None else None


def _external(model: onnx.ModelProto, data: Path, location: str) -> onnx.ModelProto:
    """Write the large weights of a model to a file, and return the model that refers to it as `location`."""
    shell = without_weights(model)
    with data.open("wb") as file:
        for tensor in large_initializers(model):
            file.write(bytes(-file.tell() % _ALIGNMENT))
            stored = shell.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            stored.data_location = TensorProto.EXTERNAL
            offset, raw = file.tell(), _raw(tensor)
            entries = {"location": location, "offset": offset, "length": file.write(raw)}
            for key, value in entries.items():
                stored.external_data.add(key=key, value=str(value))
    return shell


def _raw(tensor: TensorProto) -> bytes | memoryview:
    """Return the bytes of the values, little-endian."""
    if is_linked(tensor):
        return np.ascontiguousarray(values_of(tensor)).reshape(-1).view(np.uint8).data
    return tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def load_proto(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data. If they are large, its weights stay in the file and are linked to.

    Raises:
        ModelError: the file is missing, is not an ONNX file, or is cut short; a tensor or node is malformed, or data
            is in no file beside the model.
    """
    path = Path(path)
    require_file(path)
    try:
        proto = _message(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX file, or cut short; export or copy it again") from None
    if not proto.graph.node:
        raise ModelError(f"{path}: not an ONNX file, or one without nodes; export it again")
    check_texts(proto)
    check_tensors(proto)
    read_external_data(proto, path, most=links.LARGE)
    check_values(proto.graph)
    check_nodes(proto)
    check_layers(proto.graph)
    clear_negative_dims(proto.graph)
    return proto


def require_file(path: Path) -> None:
    """Check that there is a file, before work that only later reads it.

    Raises:
        ModelError: there is none.
    """
    if not os.path.isfile(path):
        is_folder = os.path.isdir(path)
        wrong = "is a folder, not an ONNX file; name the file" if is_folder else why_missing(path)
        raise ModelError(f"{path}: {wrong}")


def _message(path: Path) -> onnx.ModelProto:
    """Return the model in a file; large weights are linked to.

    Raises:
        OSError: the file cannot be read.
        DecodeError: it is no model.
    """
    found = linked_message(path) if os.path.getsize(path) > links.LARGE else None
    return found if found is not None else onnx.load(path, format="protobuf", load_external_data=False)
