"""Models as files and for runtimes: those that are too large for one message have their weights in a file beside it.

Protocol buffers hold 2 GB at most, in a file as well as in memory that is handed on to a runtime.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxq._files import atomic_write
from onnxq.errors import ModelError
from onnxq.ir.proto import large_initializers, without_weights

LARGEST = 2**31 - 1
"""Bytes of a model that is one message."""

_ALIGNMENT = 4096
"""Bytes; runtimes map weights into memory by pages."""


def size(model: onnx.ModelProto) -> int:
    """Bytes that a model takes in one message, or would take."""
    weights = sum(int(tensor.ByteSize()) for tensor in large_initializers(model))
    return weights + int(without_weights(model).ByteSize())


def is_one_message(model: onnx.ModelProto) -> bool:
    """Whether a model is small enough for one file, and to be handed on in memory."""
    return size(model) <= LARGEST


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, whole or not at all; one of over 2 GB with its weights beside it, as `PATH.data`.

    Raises:
        ConfigError: the place cannot be written to.
    """
    if is_one_message(model):
        with atomic_write(path) as temporary:
            onnx.save(model, temporary)
        return
    data = data_path(path)
    # The last to be opened is the first to be in place: a model is never there without its weights.
    with atomic_write(path) as temporary, atomic_write(data) as weights:
        onnx.save(_external(model, weights, data.name), temporary)


def data_path(path: Path) -> Path:
    """Where the weights of a model are that is too large for one file."""
    return path.with_name(f"{path.name}.data")


def size_on_disk(path: Path) -> int:
    """Bytes of a model's file and of the files beside it that hold its weights."""
    proto = onnx.load(path, load_external_data=False)
    named = {ExternalDataInfo(t).location for t in proto.graph.initializer if uses_external_data(t)}
    files = [path, *(path.parent / name for name in named)]
    return sum(file.stat().st_size for file in files if file.is_file())


def digest(model: onnx.ModelProto) -> str:
    """SHA-256 of all that a model is."""
    sha = hashlib.sha256(without_weights(model).SerializeToString(deterministic=True))
    for tensor in large_initializers(model):
        sha.update(tensor.SerializeToString(deterministic=True))
    return sha.hexdigest()


@contextmanager
def loadable(model: onnx.ModelProto | Path) -> Iterator[bytes | str]:
    """What runtimes load a model from: its bytes, or the path of its file, which may be gone when the block ends."""
    if isinstance(model, Path):
        yield str(model)
    elif is_one_message(model):
        yield model.SerializeToString()
    else:
        with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
            path = Path(folder) / "model.onnx"
            save(model, path)
            yield str(path)


def _external(model: onnx.ModelProto, data: Path, location: str) -> onnx.ModelProto:
    """Write the large weights of a model to a file, and give the model that refers to it under the name `location`."""
    made = without_weights(model)
    with data.open("wb") as file:
        for tensor in large_initializers(model):
            file.write(bytes(-file.tell() % _ALIGNMENT))
            stored = made.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            stored.data_location = TensorProto.EXTERNAL
            entries = {"location": location, "offset": file.tell(), "length": file.write(_raw(tensor))}
            for key, value in entries.items():
                stored.external_data.add(key=key, value=str(value))
    return made


def _raw(tensor: TensorProto) -> bytes:
    """The values as they stand in a file, little-endian."""
    return tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def load_proto(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data.

    Raises:
        ModelError: the file is missing, is not an ONNX file, or is cut short.
    """
    path = Path(path)
    if not os.path.isfile(path):
        is_folder = os.path.isdir(path)
        wrong = "is a folder, not an ONNX file; name the file" if is_folder else "no such file; check the path"
        raise ModelError(f"{path}: {wrong}")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX file, or cut short; export or copy it again") from None
    if not proto.graph.node:
        raise ModelError(f"{path}: not an ONNX file, or one without nodes; export it again")
    try:
        external_data_helper.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: its external data cannot be read ({error}); copy the data files beside it") from None
    return proto
