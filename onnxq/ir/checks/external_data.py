"""Finds the values of tensors in files beside the model, and nowhere else.

onnx checks the paths too, each version otherwise; what is read must not depend on its version.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import TensorProto

from onnxq.errors import ModelError
from onnxq.ir.checks.tensors import all_tensors, byte_size
from onnxq.ir.proto import is_large
from onnxq.ir.weights.links import can_link, is_linked, link, stamp_of


class _Place(NamedTuple):
    """Where the values of a tensor are: file, first byte, number of bytes, and the stamp of the file."""

    file: str
    offset: int
    length: int
    stamp: str


def read_external_data(model: onnx.ModelProto, path: Path, *, most: int) -> None:
    """Put the values of all tensors into the model, whose element types and shapes are sound.

    Args:
        model: edited in place.
        path: its file. Data is read from the folder that it is in and, if it is a link, from that of the file itself.
        most: bytes of all values beyond which initializers of numbers only link to theirs.

    Raises:
        ModelError: a file is missing, outside of the folder or no file, or a tensor has no such place in it.
    """
    folders = {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}
    outside = [
        (where, tensor)
        for where, tensor in all_tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL and not is_linked(tensor)
    ]
    initializers = {tensor.name for tensor in model.graph.initializer}
    links = sum(byte_size(tensor) for _, tensor in outside if tensor.data_type != TensorProto.STRING) > most
    for where, tensor in outside:
        try:
            place = _place(tensor, path.parent, folders)
            if links and tensor.name in initializers and is_large(tensor) and can_link(tensor):
                link(tensor, place.file, place.offset, place.length, place.stamp)
                continue
            values = _read(place)
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else error
            name = _entries(tensor).get("location", "")
            raise ModelError(
                f"{path}: its external data cannot be read ({where}: {name!r}: {cause}); copy the data files beside it"
            ) from None
        tensor.raw_data = values
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _place(tensor: TensorProto, folder: Path, allowed: set[str]) -> _Place:
    """Return where the values of a tensor are.

    Raises:
        OSError: the file cannot be read.
        ValueError: the tensor may not or cannot be in the file.
    """
    entries = _entries(tensor)
    location = entries.get("location", "")
    if not location or os.path.isabs(location):
        raise ValueError("not a path from the model's folder")
    file = os.path.realpath(folder / location)
    if not any(Path(file).is_relative_to(place) for place in allowed):
        raise ValueError("leads out of the model's folder")
    if tensor.data_type == TensorProto.STRING:
        raise ValueError("strings cannot be in another file")
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a file")
    wanted, offset = byte_size(tensor), int(entries.get("offset") or 0)
    length = int(entries.get("length") or wanted)
    if offset < 0 or length != wanted or offset + wanted > found.st_size:
        raise ValueError(
            f"{wanted} bytes are expected, but {length} of {found.st_size} from byte {offset} on are stated"
        )
    if not os.access(file, os.R_OK):
        raise ValueError("may not be read")
    return _Place(file, offset, wanted, stamp_of(found))


def _read(place: _Place) -> bytes:
    with open(place.file, "rb") as data:
        data.seek(place.offset)
        return data.read(place.length)
