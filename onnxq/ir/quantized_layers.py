"""Quantized layers in the message of a finished model: each alone, made float, or with weights of fewer levels."""

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxq.ir.extract import Segment, ending_at
from onnxq.ir.index import ProtoIndex
from onnxq.ir.operators import MOVES_VALUES, QDQ_OPS
from onnxq.ir.proto import copy_message, names_read

_FUSED = frozenset({"Relu", "Clip", "LeakyRelu"})
"""Operators that runtimes fuse with the layer before them."""


def window(index: ProtoIndex, layer: onnx.NodeProto, layers: Collection[str], depth: int = 0) -> Segment:
    """Return a layer with the QuantizeLinear and DequantizeLinear in front of it and, if it is quantized, behind it.

    Args:
        index: of the model's graph.
        layer: a node of the graph.
        layers: names of all layers whose weights are quantized.
        depth: number of earlier layers on each path that come with it, with the nodes between.
    """
    output, behind = _end(index, layer.output[0])
    kept, ends, reached = {*behind, *layer.output}, set[str](), dict[str, int]()
    pending = [(name, depth) for name in names_read(layer)]
    while pending:
        tensor, left = pending.pop()
        node = index.producers.get(tensor)
        if node is None or reached.get(tensor, -1) >= left:
            continue
        reached[tensor] = left
        kept.update(node.output)
        if node.op_type == "QuantizeLinear" and left == 0:
            ends.add(node.input[0])
            pending += [(name, 0) for name in node.input[1:]]
        else:
            pending += [(name, max(0, left - (node.name in layers))) for name in names_read(node)]
    kept -= ends
    nodes = tuple(node for node in index.nodes if kept.intersection(node.output))
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in names_read(node) if name)
    inputs = tuple(name for name in read if name not in made and name not in index.initializers)
    return Segment(nodes, inputs, (output,))


def _end(index: ProtoIndex, tensor: str) -> tuple[str, set[str]]:
    """Return the tensor behind the DequantizeLinear that follows a tensor, and all tensors on the way to it.

    If none follows, or anything but an activation stands between, it is the tensor itself.
    """
    at, passed = tensor, set[str]()
    while True:
        readers = index.consumers.get(at, [])
        step = next((node for node in readers if node.op_type == "QuantizeLinear"), None)
        if step is None and len(readers) == 1 and readers[0].op_type in {*_FUSED, "DequantizeLinear"}:
            step = readers[0]
        elif step is None and readers and passed and any(node.op_type == "DequantizeLinear" for node in readers):
            step = next(node for node in readers if node.op_type == "DequantizeLinear")
        if step is None:
            return tensor, set()
        at = step.output[0]
        passed.add(at)
        if step.op_type == "DequantizeLinear":
            return at, passed


def made_float(model: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """Return the model with these layers in float: they read the unrounded tensor, and their weights are dequantized.

    Args:
        model: not changed.
        layers: names of layers; one that reads no dequantized tensor only gets a dequantized weight.
    """
    changed = copy_message(model)
    index = ProtoIndex(model.graph)
    del changed.graph.node[:]
    stored: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        if node.name in layers:
            copied = copy_message(node)
            moves, copied.input[0] = _unrounded(index, node.input[0], node.name)
            changed.graph.node.extend(moves)
            weight = _dequantized(index, node.input[1])
            if weight is not None:
                copied.input[1] = f"{node.input[1]}_float"
                stored[copied.input[1]] = numpy_helper.from_array(weight, copied.input[1])
            node = copied
        changed.graph.node.append(node)
    changed.graph.initializer.extend(stored.values())
    return ending_at(changed, [output.name for output in model.graph.output])


def _unrounded(index: ProtoIndex, tensor: str, layer: str) -> tuple[list[onnx.NodeProto], str]:
    """Return the nodes that bring the values of a tensor to a layer without any rounding, and the layer's new input.

    The nodes are copies of those that move the values between one rounding and the next, and to the layer.
    """
    at, last, moves, copies = tensor, tensor, list[onnx.NodeProto](), list[onnx.NodeProto]()
    while (node := index.producers.get(at)) is not None:
        if node.op_type == "DequantizeLinear":
            quantize = index.producers.get(node.input[0])
            while quantize is not None and quantize.op_type == "Clip":
                quantize = index.producers.get(quantize.input[0])
            if quantize is None or quantize.op_type != "QuantizeLinear":
                break
            at = last = quantize.input[0]
            copies = list(moves)
        elif node.op_type in MOVES_VALUES - QDQ_OPS and len(node.output) == 1 and node.op_type != "Concat":
            moves.append(copy_message(node))
            at = node.input[0]
        else:
            break
    for move in reversed(copies):
        move.name, move.input[0], last = f"{layer}/{move.name}", last, f"{layer}/{move.output[0]}"
        move.output[0] = last
    return copies[::-1], last


def _dequantized(index: ProtoIndex, tensor: str) -> NDArray[np.floating] | None:
    """Return the values of a constant behind a DequantizeLinear (ONNX, opset 13), or None for any other tensor."""
    node = index.producers.get(tensor)
    parts = _integers(index, node) if node is not None else None
    if parts is None:
        return None
    integers, scale, zero_point = parts
    return ((integers.astype(np.float32) - zero_point) * scale.astype(np.float32)).astype(scale.dtype)


def _integers(
    index: ProtoIndex, node: onnx.NodeProto
) -> tuple[NDArray[np.generic], NDArray[np.floating], NDArray[np.float32]] | None:
    """Return the constant integers, the scale and the zero point of a DequantizeLinear, shaped to be computed with."""
    if node.op_type != "DequantizeLinear" or any(a.name == "block_size" and a.i for a in node.attribute):
        return None
    integers, scale = (index.values(name) for name in node.input[:2])
    zero_point = index.values(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if integers is None or scale is None or zero_point is None:
        return None
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    zeros = zero_point.astype(np.float32)
    steps: NDArray[np.floating] = scale.reshape(shape)  # type: ignore[assignment]  # ONNX has no other scales
    return integers, steps, zeros.reshape(shape if zeros.size > 1 else [1] * integers.ndim)


def with_narrow_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every int8 weight at half its levels and twice its scale: two products fit into 16 bits.

    It is another model, with more noise, whose integer layers run in the same kernels.

    Args:
        model: not changed.
    """
    changed = copy_message(model)
    index = ProtoIndex(model.graph)
    for node in changed.graph.node:
        parts = _integers(index, node)
        if parts is None or parts[0].dtype != np.int8 or parts[2].any():
            continue
        halved = np.rint(parts[0].astype(np.float32) / 2).astype(np.int8)
        doubled = (2 * parts[1]).reshape(tuple(index.constants[node.input[1]].dims))
        for place, values in enumerate((halved, doubled)):
            name = f"{node.name or node.output[0]}_narrow_{place}"
            changed.graph.initializer.append(numpy_helper.from_array(values, name))
            node.input[place] = name
    return changed


def with_unshared_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in which each node that reads dequantized constants reads a copy of its own.

    Args:
        model: not changed; itself if no such constant has several readers.
    """
    index = ProtoIndex(model.graph)
    taken: set[str] = set()
    changed = copy_message(model)
    del changed.graph.node[:]
    for node in model.graph.node:
        reading = copy_message(node)
        for place, tensor in enumerate(node.input):
            source = index.producers.get(tensor)
            if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in index.initializers:
                continue
            if source.input[0] in taken:
                dequantize = copy_message(source)
                dequantize.name, dequantize.output[0] = f"{node.name}/{source.name}", f"{node.name}/{tensor}"
                for constant in (0, 2)[: len(source.input) - 1]:
                    initializer = copy_message(index.initializers[source.input[constant]])
                    initializer.name = dequantize.input[constant] = f"{node.name}/{initializer.name}"
                    changed.graph.initializer.append(initializer)
                changed.graph.node.append(dequantize)
                reading.input[place] = dequantize.output[0]
            taken.add(source.input[0])
        changed.graph.node.append(reading)
    return changed if len(changed.graph.initializer) > len(model.graph.initializer) else model
