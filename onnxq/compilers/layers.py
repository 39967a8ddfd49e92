"""The layers of a finished file, and which of them are meant for integers."""

from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto

from onnxq.ir import LAYERS, ProtoIndex
from onnxq.ir.proto import copy_message
from onnxq.runtime import Feed

_BEFORE_WEIGHTS = frozenset({"DequantizeLinear", "QuantizeLinear", "Cast", "Identity"})
"""Nodes that may stand between a constant and its layer; 4-bit weights have a Cast."""

_BEFORE_DATA = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Nodes that may stand between a DequantizeLinear and its layer: a 1x1 Conv as a Gemm has them."""

_FUSED = frozenset({"Relu", "Clip"})
"""Operators that may stand between a layer and its QuantizeLinear."""

NO_QUANTIZE = "no QuantizeLinear behind it"
"""Reason of a layer that NPUs run in float."""


@dataclass(frozen=True)
class FileLayer:
    """A layer of a file.

    Attributes:
        node: its node.
        data, weights: types of the integers that each was dequantized from, `uint8`; empty if it was not.
    """

    node: NodeProto
    data: str
    weights: str

    @property
    def name(self) -> str:
        """Name of its node."""
        return self.node.name

    @property
    def is_wanted(self) -> bool:
        """Whether the file means it to run on integers."""
        return bool(self.data and self.weights)

    @property
    def types(self) -> str:
        """The integers of its data and its weights."""
        return f"{self.data} x {self.weights}"

    def why_float(self) -> str:
        """Return why the file means it to run in float; empty if it does not."""
        if self.is_wanted:
            return ""
        only = "weights" if self.weights else "data" if self.data else ""
        return f"only its {only} are quantized in the file" if only else "not quantized in the file"


def file_layers(model: onnx.ModelProto) -> list[FileLayer]:
    """Return the layers of a model in the graph's order: Convs, ConvTransposes, Gemms and MatMuls with constants."""
    index = ProtoIndex(model.graph)
    return [
        FileLayer(node, *(_integers(index, name) for name in node.input[:2]))
        for node in model.graph.node
        if node.op_type in LAYERS and _is_constant(index, node.input[1])
    ]


def has_quantize_behind(index: ProtoIndex, layer: FileLayer) -> bool:
    """Return whether a QuantizeLinear follows a layer, directly or behind a Relu or Clip.

    Compilers for NPUs run a layer on integers only if its output is integers, too.
    """
    output = layer.node.output[0]
    while True:
        readers = index.consumers.get(output, [])
        if any(node.op_type == "QuantizeLinear" for node in readers):
            return True
        if len(readers) != 1 or readers[0].op_type not in _FUSED:
            return False
        output = readers[0].output[0]


def prepared(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """Return a copy of a model in which every node has a name of its own, and inputs have the shapes of a feed.

    Compilers tell layers by their names, and some of them take no unknown sizes.
    """
    copied = copy_message(model)
    taken: set[str] = set()
    for node in copied.graph.node:
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}:{node.output[0]}"
        taken.add(node.name)
    for value in copied.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in feed and not all(dim.dim_value for dim in dims):
            for dim, size in zip(dims, feed[value.name].shape, strict=True):
                dim.dim_value = size
            del copied.graph.value_info[:]  # it may be in terms of the unknown sizes
    return copied


def _is_constant(index: ProtoIndex, tensor: str) -> bool:
    while tensor not in index.constants:
        node = index.producers.get(tensor)
        if node is None or node.op_type not in _BEFORE_WEIGHTS:
            return False
        tensor = node.input[0]
    return True


def _integers(index: ProtoIndex, tensor: str) -> str:
    node = index.producers.get(tensor)
    while node is not None and node.op_type in _BEFORE_DATA:
        node = index.producers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return ""
    typed = node.input[2] if len(node.input) > 2 and node.input[2] else node.input[0]
    kind = index.types.get(typed, 0)
    return TensorProto.DataType.Name(kind).lower() if kind else "integers"
