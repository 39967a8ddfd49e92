"""Checks that constants hold as many values as their shapes say, before anything reads them."""

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxq import memory
from onnxq.errors import ModelError
from onnxq.ir.proto import graphs_of

_BITS = {
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
}
"""Types of which several values share a byte -> bits of a value."""


def all_tensors(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield the tensors of a model, each with words for messages that say where it is; values of sparse ones too."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _of_node(node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in graph.initializer:
        yield f"initializer {tensor.name!r}", tensor
    for sparse in graph.sparse_initializer:
        yield from _of_sparse(f"sparse initializer {sparse.values.name!r}", sparse)
    for node in graph.node:
        yield from _of_node(node)


def _of_node(node: onnx.NodeProto) -> Iterator[tuple[str, TensorProto]]:
    for attribute in node.attribute:
        where = f"attribute {attribute.name!r} of {node_text(node)}"
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            yield where, tensor
        for sparse in (
            *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            *attribute.sparse_tensors,
        ):
            yield from _of_sparse(where, sparse)
        for graph in graphs_of(attribute):
            yield from _of_graph(graph)


def _of_sparse(where: str, sparse: onnx.SparseTensorProto) -> Iterator[tuple[str, TensorProto]]:
    yield f"the values of {where}", sparse.values
    yield f"the indices of {where}", sparse.indices


def node_text(node: onnx.NodeProto) -> str:
    """Return a node in words: its name or, without one, its first output, and its operator."""
    return f"node {node.name or next(iter(node.output), '')!r} ({node.op_type})"


def check_tensors(model: onnx.ModelProto) -> None:
    """Check the element type, the shape and the number of values of each tensor that is in the model itself.

    Raises:
        ModelError: a tensor is malformed.
    """
    for where, tensor in all_tensors(model):
        wrong = _fault(tensor)
        if wrong:
            raise ModelError(f"{where} {wrong}; export the model again")


def _fault(tensor: TensorProto) -> str:
    """Return what is wrong with a tensor; empty if nothing is."""
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        return f"has the element type {tensor.data_type}, which the installed onnx does not know"
    if any(dim < 0 for dim in tensor.dims):
        return f"has the shape {tuple(tensor.dims)}, with a negative length"
    if tensor.HasField("segment"):
        return "is a segment of a tensor, which no runtime reads"
    if not all(map(is_utf8, tensor.string_data)):
        return "has a string that is not UTF-8"
    if tensor.data_location == TensorProto.EXTERNAL:
        return ""  # its size was checked where it is read
    held, wanted, unit = _stored(tensor)
    return "" if held == wanted else f"has the shape {tuple(tensor.dims)}, and {held} {unit} instead of {wanted}"


def is_utf8(text: bytes) -> bool:
    """Return whether bytes are text in UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def byte_size(tensor: TensorProto) -> int:
    """Return the bytes that the values of a tensor with a known type take as `raw_data`."""
    name = TensorProto.DataType.Name(tensor.data_type)
    bits = _BITS.get(name) or 8 * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return -(-math.prod(map(int, tensor.dims)) * int(bits) // 8)


def _stored(tensor: TensorProto) -> tuple[int, int, str]:
    """Return how many bytes or values a tensor holds and should hold, and the word for them."""
    count = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        return len(tensor.string_data), count, "strings"
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), byte_size(tensor), "bytes"
    held = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return held, 2 * count, "values"
    if TensorProto.DataType.Name(tensor.data_type) in _BITS:
        return held, byte_size(tensor), "values"
    return held, count, "values"


def check_sparse(where: str, sparse: onnx.SparseTensorProto) -> None:
    """Check the shape and the indices of a sparse tensor whose values and indices are sound.

    Raises:
        ModelError: an index is outside of the shape, or the dense tensor would be too large.
    """
    dims, indices = tuple(sparse.dims), sparse.indices
    count = math.prod(sparse.values.dims)
    if any(dim < 0 for dim in dims):
        raise ModelError(f"{where} has the shape {dims}, which no constant can have; export the model again")
    dense = TensorProto(data_type=sparse.values.data_type, dims=dims)
    memory.require(
        byte_size(dense), f"{where}, of the shape {dims},", "export the model again", ModelError, memory.CONSTANT
    )
    if indices.data_type != TensorProto.INT64 or tuple(indices.dims) not in ((count,), (count, len(dims))):
        raise ModelError(
            f"{where} has {count} values and indices of the shape {tuple(indices.dims)}; export the model again"
        )
    values = onnx.numpy_helper.to_array(indices)
    limits = np.array([math.prod(dims)] if values.ndim == 1 else dims, np.int64)
    if np.any(values < 0) or np.any(values >= limits):
        raise ModelError(f"{where} has indices outside of its shape {dims}; export the model again")
