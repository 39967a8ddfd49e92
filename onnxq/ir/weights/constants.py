"""Constants of a graph whose values stay in files: each is read when it is used, and not kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon import Constant
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxq.ir.proto import is_large
from onnxq.ir.query import with_subgraphs
from onnxq.ir.weights import links
from onnxq.ir.weights.links import can_link, embed, is_linked, values_of
from onnxq.ir.weights.spill import Spill

_PARTS_OF_A_BYTE = frozenset({"float4_e2m1fn", "int2", "int4", "uint2", "uint4"})
"""Types of which ONNX stores several numbers in a byte."""


class _LinkedValues(LazyValues):  # type: ignore[misc]  # graphsurgeon has no types
    """Values in a file; graphsurgeon writes the tensor that links to them."""

    def __init__(self, tensor: TensorProto) -> None:
        super().__init__(tensor)
        self.shape: tuple[int, ...] = tuple(tensor.dims)

    def load(self) -> NDArray[np.generic]:
        """Return the values, as `values_of` does."""
        return values_of(self.tensor)


class _LinkedConstant(Constant):  # type: ignore[misc]
    """A constant that does not keep its values once they are read, unless it gets others."""

    @property
    def values(self) -> NDArray[np.generic]:
        held = self._values
        return held.load() if isinstance(held, _LinkedValues) else Constant.values.fget(self)

    @values.setter
    def values(self, values: NDArray[np.generic]) -> None:
        self._values = values


def link_constants(graph: gs.Graph) -> None:
    """Let the constants of an imported graph that link to files read them whenever they are used.

    Those that subgraphs read hold their values: they are written into the subgraphs, in which no tensor links to files.
    """
    for tensor in _read_by_subgraphs(graph):
        if isinstance(tensor._values, LazyValues) and is_linked(tensor._values.tensor):
            tensor._values = LazyValues(embed(tensor._values.tensor))
            tensor.data_location = None
    for tensor in graph.tensors().values():
        if isinstance(tensor, Constant) and isinstance(tensor._values, LazyValues) and is_linked(tensor._values.tensor):
            _link(tensor, tensor._values.tensor)


def move_to_files(graph: gs.Graph, spill: Spill) -> None:
    """Move the values of large constants that no file has to a temporary one, if they are many.

    Raises:
        ConfigError: there is no room for it.
    """
    stay = set(map(id, _read_by_subgraphs(graph)))
    constants = (t for t in graph.tensors().values() if isinstance(t, Constant) and id(t) not in stay)
    held = [t for t in constants if _is_movable(t)]
    if sum(tensor._values.nbytes for tensor in held) <= links.LARGE:
        return
    for tensor in held:
        values = tensor._values.load() if isinstance(tensor._values, LazyValues) else tensor._values
        _link(tensor, spill.linked(tensor.name, values))


@contextmanager
def without_values(graph: gs.Graph) -> Iterator[None]:
    """Within the block, large constants that hold their values are written without them."""
    held = {id(t): (t, t._values) for t in graph.tensors().values() if isinstance(t, Constant) and _is_movable(t)}
    try:
        for tensor, values in held.values():
            tensor._values = LazyValues(_described(tensor.name, values))
        yield
    finally:
        for tensor, values in held.values():
            tensor._values = values


def keep_unusual(graph: gs.Graph) -> None:
    """Let constants be written that graphsurgeon cannot write: strings, and numbers of less than a byte."""
    for each in with_subgraphs(graph):
        for tensor in each.tensors().values():
            if isinstance(tensor, Constant) and _is_unusual(tensor._values):
                tensor._values = LazyValues(numpy_helper.from_array(tensor._values, tensor.name))


def _is_unusual(values: "NDArray[np.generic] | LazyValues") -> bool:
    return isinstance(values, np.ndarray) and (values.dtype.kind in "OU" or values.dtype.name in _PARTS_OF_A_BYTE)


def _read_by_subgraphs(graph: gs.Graph) -> list[Constant]:
    _, *subgraphs = with_subgraphs(graph)
    return [t for each in subgraphs for t in each.tensors().values() if isinstance(t, Constant)]


def _link(tensor: Constant, linked: TensorProto) -> None:
    tensor.__class__ = _LinkedConstant
    tensor._values = _LinkedValues(linked)
    tensor.data_location = None


def _is_movable(tensor: Constant) -> bool:
    """Return whether a constant is large and holds numbers that can be linked to."""
    values = tensor._values
    if isinstance(values, LazyValues):
        proto = values.tensor
        return isinstance(proto, TensorProto) and not is_linked(proto) and is_large(proto) and can_link(proto)
    if tensor._export_dtype is not None or values.dtype.kind not in "fiu" or not values.dtype.isbuiltin:
        return False
    described = _described(tensor.name, values)
    return is_large(described) and can_link(described)


def _described(name: str, values: "NDArray[np.generic] | LazyValues") -> TensorProto:
    """Return a tensor of the type and shape of values, without them."""
    if isinstance(values, LazyValues):
        proto = values.tensor
        return TensorProto(name=name, data_type=proto.data_type, dims=proto.dims)
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    return TensorProto(name=name, data_type=kind, dims=map(int, values.shape))
