"""Reading and writing model files, and passing models to runtimes.

A protocol buffer holds at most 2 GB, in a file and in memory. A larger model has its weights in a second file.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxq.errors import ModelError
from onnxq.ir.checks.external_data import read_external_data
from onnxq.ir.checks.layers import check_layers
from onnxq.ir.checks.nodes import check_nodes, check_texts, check_values
from onnxq.ir.checks.tensors import check_tensors
from onnxq.ir.files import atomic_write, why_missing
from onnxq.ir.proto import clear_negative_dims, large_initializers, without_weights
from onnxq.ir.temporary import sweep, temporary_folder

LARGEST = 2**31 - 1
"""Greatest size of one message, bytes."""

_ALIGNMENT = 4096
"""Alignment of weights in a file, bytes; runtimes map them into memory by pages."""


def size(model: onnx.ModelProto) -> int:
    """Return the bytes that a model takes, or would take, as one message."""
    weights = sum(int(tensor.ByteSize()) for tensor in large_initializers(model))
    return weights + int(without_weights(model).ByteSize())


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
            onnx.save(model, temporary)
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
    return sum(file.stat().st_size for file in files_of(path) if file.is_file())


def files_of(path: Path) -> list[Path]:
    """Return the path of a model and of the files with its weights, as it names them; they need not exist."""
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (OSError, DecodeError):
        return [path]
    named = {ExternalDataInfo(t).location for t in proto.graph.initializer if uses_external_data(t)}
    return [path, *(path.parent / name for name in sorted(named))]


def digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of a model with its weights."""
    sha = hashlib.sha256(without_weights(model).SerializeToString(deterministic=True))
    for tensor in large_initializers(model):
        sha.update(tensor.SerializeToString(deterministic=True))
    return sha.hexdigest()


@contextmanager
def loadable(model: onnx.ModelProto | Path) -> Iterator[bytes | str]:
    """Yield the bytes or the path from which a runtime loads a model; a temporary file is removed after the block."""
    if isinstance(model, Path):
        yield str(model)
    elif is_one_message(model):
        yield model.SerializeToString()
    else:
        with temporary_folder() as folder:
            path = folder / "model.onnx"
            save(model, path)
            yield str(path)


def _external(model: onnx.ModelProto, data: Path, location: str) -> onnx.ModelProto:
    """Write the large weights of a model to a file, and return the model that refers to it as `location`."""
    shell = without_weights(model)
    with data.open("wb") as file:
        for tensor in large_initializers(model):
            file.write(bytes(-file.tell() % _ALIGNMENT))
            stored = shell.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            stored.data_location = TensorProto.EXTERNAL
            entries = {"location": location, "offset": file.tell(), "length": file.write(_raw(tensor))}
            for key, value in entries.items():
                stored.external_data.add(key=key, value=str(value))
    return shell


def _raw(tensor: TensorProto) -> bytes:
    """Return the bytes of the values, little-endian."""
    return tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def load_proto(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data.

    Raises:
        ModelError: the file is missing, is not an ONNX file, or is cut short; a tensor or node is malformed, or data
            is in no file beside the model.
    """
    path = Path(path)
    if not os.path.isfile(path):
        is_folder = os.path.isdir(path)
        wrong = "is a folder, not an ONNX file; name the file" if is_folder else why_missing(path)
        raise ModelError(f"{path}: {wrong}")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX file, or cut short; export or copy it again") from None
    if not proto.graph.node:
        raise ModelError(f"{path}: not an ONNX file, or one without nodes; export it again")
    check_texts(proto)
    check_tensors(proto)
    read_external_data(proto, path)
    check_values(proto.graph)
    check_nodes(proto)
    check_layers(proto.graph)
    clear_negative_dims(proto.graph)
    return proto
