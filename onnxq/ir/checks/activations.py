"""The memory and the time that a run takes, estimated from their shapes before anything runs."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxq import memory
from onnxq._text import shape_text
from onnxq.errors import ModelError
from onnxq.ir.checks.tensors import node_text
from onnxq.ir.checks.work import check_work
from onnxq.ir.proto import names_read, with_weight_inputs
from onnxq.ir.shape_inference import inferred_graph

OVERHEAD = 3
"""Memory of a run in that of its tensors: onnxruntime's grows by doubling, and a Conv copies its windows."""


def check_activations(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]], overhead: int = OVERHEAD) -> None:
    """Check that the tensors which exist at the same time in a run fit into memory.

    Tensors whose shape depends on values are not counted.

    Args:
        model: not changed.
        inputs: shapes of the inputs by name.
        overhead: memory of the run in that of the tensors.

    Raises:
        ModelError: they exceed the limit of memory.
    """
    graph = _graph_of_run(model, inputs)
    if graph is not None:
        _require_memory(model.graph, graph, overhead)


def check_run(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> None:
    """Check that a run fits into memory, and ends in a time that a user can wait for; arguments as above.

    Raises:
        ModelError: it does not.
    """
    graph = _graph_of_run(model, inputs)
    if graph is not None:
        _require_memory(model.graph, graph, OVERHEAD)
        check_work(graph)


def _graph_of_run(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> onnx.GraphProto | None:
    """Return the graph with the shapes of a run, and without large constants; None if they cannot be inferred."""
    sketch = with_weight_inputs(model)
    for value in sketch.graph.input:
        for dim, length in zip(value.type.tensor_type.shape.dim, inputs.get(value.name, ()), strict=False):
            dim.dim_value = length
    for output in sketch.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        return inferred_graph(sketch)
    except ModelError:
        return None  # what runs the model says more of it


def _require_memory(graph: onnx.GraphProto, inferred: onnx.GraphProto, overhead: int) -> None:
    size, node, tensor = _greatest(
        graph, {v.name: v for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    )
    if node is not None:
        made = f", of which {node_text(node)} makes one of {_shape_text(tensor)}," if tensor is not None else ""
        what = f"the tensors of a run{made}"
        memory.require(overhead * size, what, "give a smaller --image-size, or export the model for one", ModelError)


def _greatest(
    graph: onnx.GraphProto, described: Mapping[str, onnx.ValueInfoProto]
) -> tuple[int, onnx.NodeProto | None, onnx.ValueInfoProto | None]:
    """Return the most bytes of tensors at the same time, and the node and its tensor that takes most of them."""
    constants = {tensor.name for tensor in graph.initializer}
    sizes = {name: value_bytes(value) for name, value in described.items() if name not in constants}
    last: dict[str, int] = {}
    for place, node in enumerate(graph.node):
        last.update(dict.fromkeys(names_read(node), place))
    last.update(dict.fromkeys((output.name for output in graph.output), len(graph.node)))
    living = {value.name: sizes.get(value.name, 0) for value in graph.input if value.name not in constants}
    makers: dict[str, onnx.NodeProto] = {}
    now = greatest = sum(living.values())
    found: tuple[onnx.NodeProto | None, onnx.ValueInfoProto | None] = next(iter(graph.node), None), None
    for place, node in enumerate(graph.node):
        for name in dict.fromkeys(node.output):
            if name and name not in living:
                living[name], makers[name] = sizes.get(name, 0), node
                now += living[name]
        for name in {*node.input, *node.output} & living.keys():
            if last.get(name, place) <= place:
                now -= living.pop(name)
        if now > greatest:
            greatest = now
            most = max((name for name in living if name in makers), key=lambda name: living[name], default="")
            found = makers.get(most, node), described.get(most)
    return greatest, *found


def value_bytes(value: onnx.ValueInfoProto) -> int:
    """Return the bytes of a tensor; 0 if its shape or its type is not known."""
    tensor = value.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        return 0
    dims = [dim.dim_value for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return max(0, math.prod(map(int, dims))) * int(np.dtype(dtype).itemsize)


def _shape_text(value: onnx.ValueInfoProto) -> str:
    return shape_text([dim.dim_value for dim in value.type.tensor_type.shape.dim])
