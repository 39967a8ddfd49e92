"""Rewrite a model in equivalent forms."""

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from net import ULTRALYTICS
from onnx import TensorProto, helper, numpy_helper


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def with_constant_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make each initializer a Constant node."""
    model = copy(model)
    made = [helper.make_node("Constant", [], [w.name], f"{w.name}_node", value=w) for w in model.graph.initializer]
    nodes = [*made, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def with_initializers_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """List each initializer as an input, as before IR version 4."""
    model = copy(model)
    model.ir_version = 3
    for w in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(w.name, w.data_type, w.dims))
    return model


def with_node_names(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Give the nodes these names in turn, and the rest none."""
    model = copy(model)
    for node, name in zip(model.graph.node, itertools.chain(names, itertools.repeat("")), strict=False):
        node.name = name
    return model


def with_random_names(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Give nodes and tensors meaningless names; inputs and outputs of the model keep theirs."""
    model, rng = copy(model), np.random.default_rng(seed)
    kept = {t.name for t in (*model.graph.input, *model.graph.output)} | {""}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"n{rng.integers(2**60):x}")

    def rename(graph: onnx.GraphProto) -> None:
        for w in (*graph.initializer, *graph.input, *graph.output):
            w.name = new(w.name)
        for node in graph.node:
            node.name = f"m{rng.integers(2**60):x}"
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g)

    rename(model.graph)
    return model


def with_float16(model: onnx.ModelProto, ends: bool = True) -> onnx.ModelProto:
    """Make weights and activations float16.

    Without `ends` inputs and outputs stay float32, with a Cast after each input and before each output.
    """
    model = copy(model)
    graph = model.graph
    # The scales of Resize are always float32 (ONNX, opset 13).
    scales = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for w in graph.initializer:
        if w.data_type == TensorProto.FLOAT and w.name not in scales:
            w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w).astype(np.float16), w.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    floats = [t for t in (*graph.input, *graph.output) if t.type.tensor_type.elem_type == TensorProto.FLOAT]
    if ends:
        for t in floats:
            t.type.tensor_type.elem_type = TensorProto.FLOAT16
        return model
    names = {t.name: f"{t.name}_half" for t in floats}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    inputs = {t.name for t in graph.input}
    for name, half in names.items():
        if name in inputs:
            graph.node.insert(0, helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16))
        else:
            graph.node.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    return model


def with_levels(model: onnx.ModelProto, channels_last: bool = False, kind: int = TensorProto.UINT8) -> onnx.ModelProto:
    """Make the model take levels of 0 to 255 of a type, which it scales to 0 to 1, and perhaps with channels last."""
    model = copy(model)
    graph = model.graph
    [image] = graph.input
    for node in graph.node:
        node.input[:] = ["scaled" if name == image.name else name for name in node.input]
    steps = [("Cast", [], {"to": TensorProto.FLOAT}), ("Div", ["levels"], {})]
    if channels_last:
        dims = image.type.tensor_type.shape.dim
        planes = [dims[k].SerializeToString() for k in range(4)]
        for dim, k in zip(dims, (0, 2, 3, 1), strict=True):
            dim.ParseFromString(planes[k])
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    image.type.tensor_type.elem_type = kind
    names = [image.name, *(f"level{k}" for k in range(len(steps) - 1)), "scaled"]
    for k, (op, more, attributes) in enumerate(steps):
        graph.node.insert(k, helper.make_node(op, [names[k], *more], [names[k + 1]], f"of_image{k}", **attributes))
    graph.initializer.append(numpy_helper.from_array(np.float32(255), "levels"))
    return model


def with_opaque_nms(model: onnx.ModelProto, domain: str = "TRT") -> onnx.ModelProto:
    """Append TensorRT's NMS, which onnxruntime cannot run; its results become the outputs."""
    model = copy(model)
    graph = model.graph
    limit = helper.make_node("Constant", [], ["limit"], "limit_node", value_float=0.25)
    nms = helper.make_node("EfficientNMS_TRT", ["output", "limit"], ["count", "boxes"], "nms", domain=domain)
    shift = helper.make_node("Add", ["boxes", "offset"], ["shifted"], "shift")
    graph.node.extend([limit, nms, shift])
    graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "offset"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("count", TensorProto.INT32, [1, 1]))
    graph.output.append(helper.make_tensor_value_info("shifted", TensorProto.FLOAT, [1, 100, 4]))
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def with_outputs(model: onnx.ModelProto, *constants: str) -> onnx.ModelProto:
    """Return the model with these initializers as further outputs."""
    model = copy(model)
    stored = {w.name: w for w in model.graph.initializer}
    described = (helper.make_tensor_value_info(name, stored[name].data_type, stored[name].dims) for name in constants)
    model.graph.output.extend(described)
    return model


def with_metadata(model: onnx.ModelProto, metadata: Mapping[str, str] = ULTRALYTICS) -> onnx.ModelProto:
    """Replace the model's metadata."""
    model = copy(model)
    helper.set_model_props(model, dict(metadata))
    return model
