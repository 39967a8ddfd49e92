"""to-float32: float16 and bfloat16 computations become float32; inputs and outputs of the model keep their types."""

from collections.abc import Iterable, Iterator

import numpy as np
from onnx import TensorProto, helper

from onnxq.errors import ModelError
from onnxq.ir import LAYERS, Builder, Constant, Graph, Model, Node, Tensor, Variable, dtype_of, remove, replace_uses
from onnxq.pipeline import Facts, Rewrite

_NARROW_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

_NARROW = frozenset(helper.tensor_dtype_to_np_dtype(kind) for kind in _NARROW_TYPES)

_FLOAT = np.dtype(np.float32)

_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype")
"""Attributes with the type of a node's output (ONNX Cast, EyeLike, RandomNormal, HannWindow, ...)."""


class ToFloat32(Rewrite):
    """Turns float16 and bfloat16 into float32, in which ranges are observed and Q and DQ are exact.

    - constants, tensors, and attributes that name a type, also in subgraphs
    - inputs and outputs of the model keep their types; a Cast follows each such input and precedes each such output
    - a Cast to the type that its input has already is removed (ONNX Cast, opset 13), unless it makes an output

    Raises:
        ModelError: the weights of a layer are neither float32 nor float16 nor bfloat16.
    """

    name = "to-float32"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of edits."""
        _refuse_others(model.graph)
        edits = _cast_borders(model)
        return edits + _widen(model.graph, kept=[*model.graph.inputs, *model.graph.outputs]) + _drop_casts(model.graph)


def _refuse_others(graph: Graph) -> None:
    for node in graph.nodes:
        weights = [t for t in node.inputs[1:2] if node.op in LAYERS and isinstance(t, Constant)]
        for weight in weights:
            kind = dtype_of(weight)
            if kind != _FLOAT and kind not in _NARROW and not np.issubdtype(kind, np.integer):
                raise ModelError(
                    f"layer {node.name!r} has the weight {weight.name!r} of type {kind}; "
                    "export the model in float32 or float16"
                )


def _cast_borders(model: Model) -> int:
    """Insert Casts so that the inner graph reads and produces float32; return the number of edits."""
    graph, builder = model.graph, Builder(model)
    # An output that is also an input or a constant is not computed.
    outputs = [t for t in graph.outputs if _is_narrow(t) and t.inputs and not _is_cast_only(t)]
    inputs = [t for t in graph.inputs if _is_narrow(t) and not all(map(_casts_to_others, t.outputs))]
    fixed = [t for t in graph.outputs if _is_narrow(t) and isinstance(t, Constant) and t.outputs]
    for tensor in fixed:
        replace_uses(tensor, builder.constant(f"{tensor.name}_float", np.asarray(tensor.values, np.float32)))
    before = [builder.cast(tensor, _wide_input(tensor, builder), TensorProto.FLOAT) for tensor in inputs]
    behind = [builder.cast(_wide_output(tensor, builder), tensor, _type_of(tensor)) for tensor in outputs]
    graph.nodes = [*before, *graph.nodes, *behind]
    return len(fixed) + len(before) + len(behind)


def _is_cast_only(output: Tensor) -> bool:
    """Return whether an output is a Cast of a tensor of another type, and has no reader."""
    [node] = output.inputs
    return node.op == "Cast" and not _is_narrow(node.inputs[0]) and not output.outputs


def _casts_to_others(node: Node) -> bool:
    return node.op == "Cast" and node.attrs["to"] not in _NARROW_TYPES


def _wide_input(tensor: Tensor, builder: Builder) -> Variable:
    wide = builder.variable(f"{tensor.name}_float", _FLOAT, tensor.shape)
    replace_uses(tensor, wide)
    return wide


def _wide_output(tensor: Tensor, builder: Builder) -> Variable:
    wide = _wide_input(tensor, builder)
    [node] = tensor.inputs
    node.outputs[next(k for k, output in enumerate(node.outputs) if output is tensor)] = wide
    return wide


def _type_of(tensor: Tensor) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype_of(tensor)))


def _is_narrow(tensor: Tensor) -> bool:
    return dtype_of(tensor) in _NARROW


def _widen(graph: Graph, kept: Iterable[Tensor]) -> int:
    """Make all narrow tensors float32, except those to keep and the Casts that produce them; return the edits."""
    spared = {id(tensor) for tensor in kept}
    edits = 0
    for tensor in _tensors(graph):
        if id(tensor) not in spared and _is_narrow(tensor):
            _widen_tensor(tensor)
            edits += 1
    for node in graph.nodes:
        if any(id(tensor) in spared and _is_narrow(tensor) for tensor in node.outputs):
            continue
        edits += _widen_attributes(node)
        edits += sum(_widen(inner, ()) for inner in node.attrs.values() if isinstance(inner, Graph))
    return edits


def _tensors(graph: Graph) -> Iterator[Tensor]:
    """Yield all tensors of a graph, each once, including its inputs and outputs."""
    used = (tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs))
    yield from {id(tensor): tensor for tensor in (*graph.inputs, *graph.outputs, *used)}.values()


def _widen_tensor(tensor: Tensor) -> None:
    if isinstance(tensor, Constant):
        tensor.values = np.asarray(tensor.values).astype(np.float32)
    else:
        tensor.dtype = _FLOAT


def _widen_attributes(node: Node) -> int:
    edits = 0
    for name in _TYPE_ATTRIBUTES:
        if node.attrs.get(name) in _NARROW_TYPES:
            node.attrs[name] = int(TensorProto.FLOAT)
            edits += 1
    for value in node.attrs.values():
        if isinstance(value, Constant) and _is_narrow(value):
            _widen_tensor(value)
            edits += 1
    return edits


def _drop_casts(graph: Graph) -> int:
    outputs = {id(tensor) for tensor in graph.outputs}
    dropped = []
    for node in graph.nodes:
        if node.op == "Cast" and id(node.outputs[0]) not in outputs and _changes_nothing(node):
            replace_uses(node.outputs[0], node.inputs[0])
            dropped.append(node)
    return remove(graph, dropped)


def _changes_nothing(cast: Node) -> bool:
    return dtype_of(cast.inputs[0]) == helper.tensor_dtype_to_np_dtype(cast.attrs["to"])
