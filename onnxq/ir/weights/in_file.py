"""Reads a model without its weights: their tensors link to their places in the model's own file.

A model in a file is a protocol buffer: fields, each with a number, a type and, for messages and bytes, a length
(protobuf.dev, "Encoding"). Only the lengths on the way to the values of the initializers are read here; all else is
left to the protobuf library.
"""

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxq.ir.checks.tensors import byte_size
from onnxq.ir.proto import is_large
from onnxq.ir.weights.links import can_link, link, stamp_of

_LEAST = 1024
"""Bytes of values below which they stay in the message in any case."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Types of fields in a protocol buffer."""

_SIZES = {_FIXED64: 8, _FIXED32: 4}


@dataclass(frozen=True)
class _Field:
    """A field of a message: its number, where it starts, where its content starts, and where both end."""

    number: int
    start: int
    content: int
    end: int


def linked_message(path: Path) -> onnx.ModelProto | None:
    """Return the model in a file with links in place of its large constants.

    None: the file is no model, cut short, or written in an unusual way; it must be read whole.

    Raises:
        OSError: the file cannot be read.
        google.protobuf.message.DecodeError: it is no model.
    """
    with open(path, "rb") as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                cut = _Cut.of(data)
            except (IndexError, ValueError):
                return None
            model = onnx.ModelProto()
            model.ParseFromString(cut.message)
            for tensor, field in zip(model.graph.initializer, cut.values, strict=True):
                if field is None:
                    continue
                length = field.end - field.content
                if _is_sound(tensor, length):
                    link(tensor, os.path.abspath(path), field.content, length, stamp)
                else:  # what is wrong is told by the checks that all models go through
                    tensor.raw_data = data[field.content : field.end]
    return model


def _is_sound(tensor: TensorProto, length: int) -> bool:
    known = tensor.data_type in TensorProto.DataType.values()
    plain = known and not tensor.HasField("segment") and not tensor.external_data and min(tensor.dims, default=0) >= 0
    return plain and is_large(tensor) and can_link(tensor) and byte_size(tensor) == length


@dataclass(frozen=True)
class _Cut:
    """A model without the values of its large constants.

    Attributes:
        message: the model as bytes.
        values: for each initializer, the field with its values, or None if they are in the message.
    """

    message: bytes
    values: list[_Field | None]

    @classmethod
    def of(cls, data: mmap.mmap) -> "_Cut":
        """Cut a model.

        Raises:
            IndexError, ValueError: it is not a protocol buffer as onnx writes it.
        """
        fields = list(_fields(data, 0, len(data)))
        [graph] = [field for field in fields if field.number == onnx.ModelProto.GRAPH_FIELD_NUMBER]
        parts, values = [], list[_Field | None]()
        for field in _fields(data, graph.content, graph.end):
            found = None
            if field.number == onnx.GraphProto.INITIALIZER_FIELD_NUMBER:
                found = _values(data, field)
                values.append(found)
            if found is None:
                parts.append(data[field.start : field.end])
            else:
                rest = data[field.content : found.start] + data[found.end : field.end]
                parts.append(_headed(field.number, rest))
        others = [data[field.start : field.end] for field in fields if field is not graph]
        return cls(b"".join([*others, _headed(graph.number, b"".join(parts))]), values)


def _values(data: mmap.mmap, tensor: _Field) -> _Field | None:
    """Return the field with the values of a large constant; None for others."""
    if tensor.end - tensor.content < _LEAST:
        return None
    fields = [f for f in _fields(data, tensor.content, tensor.end) if f.number == TensorProto.RAW_DATA_FIELD_NUMBER]
    return fields[0] if len(fields) == 1 and fields[0].end - fields[0].content >= _LEAST else None


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields between two places.

    Raises:
        IndexError, ValueError: there is something else.
    """
    while start < end:
        tag, content = _varint(data, start)
        kind = tag & 7
        if kind == _VARINT:
            _, stop = _varint(data, content)
        elif kind == _BYTES:
            length, content = _varint(data, content)
            stop = content + length
        elif kind in _SIZES:
            stop = content + _SIZES[kind]
        else:
            raise ValueError(f"type {kind} of a field")
        if stop > end:
            raise ValueError("a field that ends behind its message")
        yield _Field(tag >> 3, start, content, stop)
        start = stop


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """Return the number at a place, seven bits a byte, the lowest first, and the place behind it."""
    number, place = 0, start
    while True:
        byte = data[place]
        number |= (byte & 127) << 7 * (place - start)
        place += 1
        if byte < 128:
            return number, place
        if place - start == 10:
            raise ValueError("a number of more than 64 bits")


def _headed(number: int, content: bytes) -> bytes:
    """Return a field of bytes or a message."""
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
