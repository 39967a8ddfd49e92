"""The first layer on the image: what it gives shows whether the image has the scale that the network is trained for."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.ir import ProtoIndex, copy_message, names_read
from onnxq.runtime.session import Feed, open_session, run

LEAST_SPREAD, GREATEST_SPREAD = 0.03, 25.0
"""Bounds of the standard deviation of the first layer's output, mean over its channels. Activation functions bend near
1, so trained networks are near there: 2.3 (YOLOv5n), 2.9 (YOLOX-Nano); random weights give 0.2 to 0.3. A factor of 255
too much gives 58 and more, one too little 0.011 and less."""

_COLOURS = 3

_BY_VALUE = {"Add", "Cast", "Clip", "DequantizeLinear", "Div", "Identity", "Mul", "QuantizeLinear", "Sub"}
"""Operators that change or round the values of a weight one by one."""

_GRAINS = ((10, 0.6), (40, 0.3), (160, 0.1))
"""Number of squares along the shorter side of the painted image, and their contrast."""

_LONGEST = 16
"""Longer side of a picture, in shorter ones, up to which squares are as small as the shorter side says."""


class FirstLayer(NamedTuple):
    """The first Conv on the image.

    Attributes:
        name: of the Conv, or of its output if it has none.
        output: its result, (batch, channels, height, width), behind a BatchNormalization that follows it.
    """

    name: str
    output: str


def first_conv(index: ProtoIndex, image: str) -> FirstLayer | None:
    """Return the first Conv on the image that does not only change colours, or None if there is none."""
    made_of_image = {image}
    for node in index.nodes:
        if made_of_image.intersection(node.input):
            if node.op_type == "Conv" and node.input[0] in made_of_image and not is_of_colours(node, index):
                readers = index.consumers.get(node.output[0], [])
                is_normalized = len(readers) == 1 and readers[0].op_type == "BatchNormalization"
                output = readers[0].output[0] if is_normalized else node.output[0]
                return FirstLayer(node.name or node.output[0], output)
            made_of_image.update(node.output)
    return None


def is_of_colours(node: onnx.NodeProto, index: ProtoIndex) -> bool:
    """Return whether a layer only makes other colours of each pixel: a Conv of 1 x 1, or a MatMul of 3 x 3."""
    if node.op_type not in ("Conv", "MatMul"):
        return False
    dims = _constant_dims(node.input[1], index)
    if node.op_type == "MatMul":
        return dims == [_COLOURS, _COLOURS]
    return dims is not None and dims[:1] == [_COLOURS] and all(side == 1 for side in dims[2:])


def _constant_dims(tensor: str, index: ProtoIndex) -> list[int] | None:
    """Return the dimensions of a constant, or of what is made of constants value by value; None for others."""
    if tensor in index.constants:
        return list(index.constants[tensor].dims)
    node = index.producers.get(tensor)
    if node is None or node.op_type not in _BY_VALUE:
        return None
    parts = [_constant_dims(name, index) for name in node.input if name]
    known = [part for part in parts if part is not None]
    return max(known, key=len) if len(known) == len(parts) else None


def part_before(model: onnx.ModelProto, index: ProtoIndex, tensor: str, given: str = "") -> onnx.ModelProto:
    """Return the model of the operators that compute a tensor, with no weights but theirs, and without rounding.

    What a quantized model rounds passes as it is: beyond the range of calibration its scales would clip, so that images
    of any scale gave the same.

    Args:
        model: the model; may be quantized, with QuantizeLinear and DequantizeLinear.
        index: of its graph.
        tensor: becomes the only output.
        given: the image input.
    """
    tensor = unrounded(index, tensor)
    rounded = [index.nodes[place] for place in sorted(index.ancestors([tensor], given=[given]))]
    plain = ProtoIndex(onnx.GraphProto(node=[_without_rounding(node, index) for node in rounded]))
    nodes = [plain.nodes[place] for place in sorted(plain.ancestors([tensor], given=[given]))]
    read = {name for node in nodes for name in names_read(node)}
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(index.initializers[name] for name in sorted(read & index.initializers.keys()))
    part.graph.input.extend(value for value in index.inputs if value.name in read)
    part.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return part


def _without_rounding(node: onnx.NodeProto, index: ProtoIndex) -> onnx.NodeProto:
    """Return the node, reading what is in front of each QuantizeLinear that a DequantizeLinear follows."""
    inputs = [unrounded(index, name) for name in node.input]
    if inputs == list(node.input):
        return node
    copied = copy_message(node)
    copied.input[:] = inputs
    return copied


def unrounded(index: ProtoIndex, tensor: str) -> str:
    """Return what a DequantizeLinear gives before it was rounded; another tensor, or a weight, as it is."""
    node = index.producers.get(tensor)
    while node is not None and node.op_type == "DequantizeLinear":
        source = index.producers.get(node.input[0])
        while source is not None and source.op_type == "Clip":  # to fewer than 8 bits
            source = index.producers.get(source.input[0])
        if source is None or source.op_type != "QuantizeLinear":
            break
        tensor = source.input[0]
        node = index.producers.get(tensor)
    return tensor


def spread(model: onnx.ModelProto, layer: FirstLayer, feeds: Sequence[Feed]) -> float:
    """Return the standard deviation of the layer's output per channel and image, mean over both.

    Raises:
        ModelError: onnxruntime cannot run the part of the model up to the layer.
    """
    part = part_before(model, ProtoIndex(model.graph), layer.output)
    taken = {value.name for value in part.graph.input}
    session = open_session(part, threads=1, exact=True)
    found = (run(session, {name: values for name, values in feed.items() if name in taken})[0] for feed in feeds)
    # A quarter of the places deviates as all do.
    return float(np.mean([values[:, :, ::2, ::2].std(axis=(0, 2, 3), dtype=np.float64).mean() for values in found]))


def is_of_trained_network(deviation: float) -> bool:
    """Return whether a standard deviation of the first layer's output is one that trained networks give."""
    return LEAST_SPREAD <= deviation <= GREATEST_SPREAD


@lru_cache(1)
def painted_image(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return squares of several sizes and greys, slightly coloured, uint8 (*size, 3), as bright and rich as photos.

    The array is shared between calls and must not be changed.
    """
    rng = np.random.default_rng(0)
    image: NDArray[Any] = np.zeros((*size, 3))
    side = max(min(size), max(size) // _LONGEST)
    for count, contrast in _GRAINS:
        rows, columns = (np.arange(length) * count // side for length in size)
        squares = rng.normal(size=(rows[-1] + 1, columns[-1] + 1, 4))
        image += contrast * (0.8 * squares[:, :, :1] + 0.3 * squares[:, :, 1:])[rows][:, columns]
    painted = (115 + 90 * image).clip(0, 255).astype(np.uint8)
    painted.setflags(write=False)
    return painted
