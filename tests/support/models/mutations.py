"""Models with one to three faults each, reproducible by their seeds."""

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from graphs import csp, silu_chain, v5_raw, v8
from onnx import helper, numpy_helper

BASES = (v8, csp, v5_raw, silu_chain)

NUMBERS = (0, -1, 1, 2, 3, 7, 2**31, 2**31 - 1, 2**40, 2**63 - 1, -(2**63), -5)

OPERATORS = (
    "", "Add", "BatchNormalization", "Cast", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Expand",
    "Gather", "Gemm", "If", "Loop", "MatMul", "MaxPool", "NonMaxSuppression", "Nonsense", "Pad", "Range", "Reshape",
    "Resize", "Shape", "Slice", "Split", "Tile", "TopK",
)  # fmt: skip

TYPES = (0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 17, 22, 99, -1)


def mutated(seed: int) -> onnx.ModelProto:
    """Return a small detector with faults."""
    rng = random.Random(seed)
    model = rng.choice(BASES)()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(IndexError):  # an earlier fault left nothing to change
            rng.choice(FAULTS)(model, rng)
    return model


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [*graph.initializer, *(a.t for node in _nodes(graph) for a in node.attribute if a.HasField("t"))]


def _name(graph: onnx.GraphProto, rng: random.Random) -> str:
    names = [tensor.name for tensor in graph.initializer] + [name for node in graph.node for name in node.output]
    return rng.choice([*names, *(value.name for value in graph.input), "nowhere", ""])


def _set_one(values, value, rng):
    if values:
        values[rng.randrange(len(values))] = value


def other_input(model, rng):
    _set_one(rng.choice(list(_nodes(model.graph))).input, _name(model.graph, rng), rng)


def other_output(model, rng):
    _set_one(rng.choice(list(_nodes(model.graph))).output, _name(model.graph, rng), rng)


def number_of_inputs(model, rng):
    node = rng.choice(list(_nodes(model.graph)))
    if rng.random() < 0.5:
        del node.input[rng.randrange(len(node.input) + 1) :]
    else:
        node.input.extend(_name(model.graph, rng) for _ in range(rng.choice((1, 5, 50))))


def number_of_outputs(model, rng):
    node = rng.choice(list(_nodes(model.graph)))
    if rng.random() < 0.5:
        del node.output[:]
    else:
        node.output.append(_name(model.graph, rng))


def other_operator(model, rng):
    node = rng.choice(list(_nodes(model.graph)))
    if rng.random() < 0.8:
        node.op_type = rng.choice(OPERATORS)
    else:
        node.domain = rng.choice(("com.microsoft", "x.y", "ai.onnx.ml", "ai.onnx"))


def shape_of_constant(model, rng):
    dims = rng.choice(_tensors(model.graph)).dims
    change = rng.randrange(3)
    if change == 0:
        _set_one(dims, rng.choice(NUMBERS), rng)
    elif change == 1:
        dims.append(rng.choice(NUMBERS))
    else:
        del dims[:]


def values_of_constant(model, rng):
    tensor = rng.choice(_tensors(model.graph))
    change = rng.randrange(4)
    if change == 0:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif change == 1:
        tensor.data_type = rng.choice(TYPES)
    elif change == 2:
        tensor.ClearField(rng.choice(("raw_data", "data_type", "dims", "name")))
    else:
        tensor.float_data.append(1)


def attribute(model, rng):
    node = rng.choice([node for node in _nodes(model.graph) if node.attribute])
    found = rng.choice(node.attribute)
    change = rng.randrange(5)
    if change == 0:
        found.type = rng.choice(range(12))
    elif change == 1:
        found.name = rng.choice(("axis", "perm", "", "group", "strides", "kernel_shape", "pads", "to", "value"))
    elif change == 2:
        node.attribute.remove(found)
    elif change == 3:
        _set_one(found.ints, rng.choice(NUMBERS), rng)
        found.i = rng.choice(NUMBERS)
    else:
        del found.ints[rng.randrange(len(found.ints) + 1) :]


def described_value(model, rng):
    graph = model.graph
    value = rng.choice([*graph.input, *graph.output, *graph.value_info])
    tensor = value.type.tensor_type
    change = rng.randrange(4)
    if change == 0 and tensor.shape.dim:
        rng.choice(tensor.shape.dim).dim_value = rng.choice(NUMBERS)
    elif change == 1:
        tensor.elem_type = rng.choice(TYPES)
    elif change == 2:
        value.ClearField("type")
    else:
        value.name = _name(graph, rng)


def whole_lists(model, rng):
    graph = model.graph
    del rng.choice((graph.input, graph.output, graph.initializer, graph.node))[-1:]
    if rng.random() < 0.5:
        graph.output.extend(graph.output[:1])


def versions(model, rng):
    change = rng.randrange(4)
    if change == 0:
        model.ir_version = rng.choice((0, 1, 3, 99, -1))
    elif change == 1:
        model.opset_import[0].version = rng.choice((0, -1, 1, 6, 9, 12, 99, 2**62))
    elif change == 2:
        del model.opset_import[:]
    else:
        model.opset_import[0].domain = "x"


def sparse_constant(model, rng):
    values = helper.make_tensor("sparse", 1, [2], [1.0, 2.0])
    indices = helper.make_tensor("indices", 7, [2], rng.choices(NUMBERS, k=2))
    dims = rng.choices(NUMBERS, k=rng.randrange(3))
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=indices, dims=dims))


def huge_constant(model, rng):
    model.graph.initializer.append(helper.make_tensor("huge_shape", 7, [2], rng.choices((3, 2**16, 2**20, 10**9), k=2)))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"]))
    rng.choice(model.graph.node).input.append("huge")


def metadata(model, rng):
    values = ("", "{", "{0: 1}", "[1,2]", "-5", "[99999999999,1]", "1e999", "{0:'a',5:'b'}", "[[1,2],[3]]")
    helper.set_model_props(model, {rng.choice(("names", "stride", "imgsz", "task")): rng.choice(values)})


def values_of_weights(model, rng):
    tensor = rng.choice([t for t in _tensors(model.graph) if t.data_type == 1] or [onnx.TensorProto()])
    values = numpy_helper.to_array(tensor).astype(np.float32) if tensor.data_type else np.zeros(0, np.float32)
    change = rng.randrange(4)
    if change == 0 and values.size:
        values.reshape(-1)[rng.randrange(values.size)] = rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e-44))
    else:
        values = values * np.float32(rng.choice((0, 1e-30, 1e18, -1)))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def growing_node(model, rng):
    graph, factor = model.graph, rng.choice((2, 3, 64, 4096, 2**20))
    node = rng.choice([node for node in graph.node if node.input and node.output])
    read = node.input[0]
    graph.initializer.append(helper.make_tensor("repeats", 7, [4], [1, 1, factor, rng.choice((1, factor))]))
    at = list(graph.node).index(node)
    graph.node.insert(at, helper.make_node("Tile", [read, "repeats"], ["grown"], "grow"))
    node.input[0] = "grown"


def hostile_names(model, rng):
    graph = model.graph
    old = rng.choice([name for node in graph.node for name in node.output if name])
    new = rng.choice(("\x1b[2J", "a\nb: error", "\u202e", "x" * 5000, "../../x", "", "<script>", "a'b\"c"))
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
        if rng.random() < 0.2:
            node.name = new


def attributes_in_range(model, rng):
    node = rng.choice([node for node in model.graph.node if node.attribute])
    found = rng.choice(node.attribute)
    if found.ints:
        _set_one(found.ints, rng.choice((0, 1, 2, 3, 5, 31, 100, 10_000)), rng)
    elif found.type == onnx.AttributeProto.INT:
        found.i += rng.choice((-1, 1, 2))
    elif found.type == onnx.AttributeProto.FLOAT:
        found.f = rng.choice((float("nan"), float("inf"), 0.0, -1.0, 1e30))


def dynamic_inputs(model, rng):
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim in rng.sample(list(dims), k=min(len(dims), rng.choice((1, 2, 4)))):
        dim.Clear()
        if rng.random() < 0.7:
            dim.dim_param = rng.choice(("n", "side", "side", ""))
    helper.set_model_props(model, {"imgsz": rng.choice(("[32, 32]", "32", "[31, 33]", "[100000, 100000]", "[0, 0]"))})


FAULTS: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    other_input, other_output, number_of_inputs, number_of_outputs, other_operator, shape_of_constant,
    values_of_constant, attribute, described_value, whole_lists, versions, sparse_constant, huge_constant, metadata,
    values_of_weights, growing_node, hostile_names, attributes_in_range, dynamic_inputs,
)  # fmt: skip
