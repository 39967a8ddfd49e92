"""Where each runtime wants its Q/DQ pairs, as data.

A target is a table of rules by operator. The placement of each follows what its runtime was measured to fuse: a Q/DQ
pair that is not fused away costs a pass over memory, and one that is missing leaves the node in float.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from onnxq.scheme import Scheme


class Role(Enum):
    """What kind of thing a node does to the integers that it is given."""

    LAYER = "has weights: runs on integers whenever its target can"
    ELEMENTWISE = "computes: runs on integers where what it makes is wanted as integers"
    CARRIER = "moves values or picks among them: its output stands on the grid of its input"


@dataclass(frozen=True)
class Rule:
    """How nodes of one operator are quantized.

    Attributes:
        role: see `Role`.
        output: a Q stands behind the node.
        weight_axis: axis of the output channels of a constant weight (ONNX Conv: 0, ConvTranspose: 1).
        shared: input and output are on one grid; a Concat's inputs only where nothing else reads them.
        behind_integers: stays float where what it reads is made by a float node, as it is no slower then.
    """

    role: Role
    output: bool = True
    weight_axis: int | None = None
    shared: bool = False
    behind_integers: bool = False


@dataclass(frozen=True)
class Target:
    """A runtime.

    Attributes:
        name: on the command line.
        title: in words.
        rules: operator -> rule. Operators without a rule stay float.
        signed: activations are int8 rather than uint8.
        symmetric: activations have their zero point in the middle.
        last_layers: the last Convs run on integers.
        pointwise_matmul: 1x1 Convs run as MatMuls of integers with a float output, where it is the model's or goes into
            a SiLU. Then it need not stand on a grid, which is the costliest of all to accuracy and saves no time.
        fused_activations: operators that are one with the Conv before them when the Q stands behind both.
        expand_softmax: a Softmax over another axis than the last is faster in the steps that it is defined by.
        upsample_to_concat: a nearest Resize of integers is faster as copies of rows and columns.
        float_depthwise: depthwise Convs stay float. Each convolves a channel by itself, so that channels of small
            values drown in a scale shared with those of large ones; and they gain little, as they wait for memory.
        stem_channels: the Convs on the image stay float, and those behind them as long as none has given more channels
            than this; None: they do not. So near the image a Conv waits for memory, and saves less time on integers
            than it takes to make them; and its outputs are the costliest to put on one grid.
        float_readers: nodes that stay float go on reading the float tensor, not the dequantized one.
        runtime: what runs it, of those that may be on this machine, so that its work can be checked.
    """

    name: str
    title: str
    rules: Mapping[str, Rule]
    signed: bool = False
    symmetric: bool = False
    last_layers: bool = True
    pointwise_matmul: bool = False
    fused_activations: frozenset[str] = frozenset()
    expand_softmax: bool = False
    upsample_to_concat: bool = False
    float_depthwise: bool = False
    stem_channels: int | None = None
    float_readers: bool = False
    runtime: str | None = None

    def scheme(self, bits: int, symmetric: bool = False) -> Scheme:
        """Scheme of this target's activations."""
        return Scheme(bits, self.signed, self.symmetric or symmetric)


_CONV_IN_OUT = {
    "Conv": Rule(Role.LAYER, weight_axis=0),
}
_CONV_IN = {
    "Conv": Rule(Role.LAYER, output=False, weight_axis=0),
}
_CARRIERS = {
    op: Rule(Role.CARRIER, shared=True)
    for op in (
        "MaxPool", "Resize", "Split", "Slice", "Concat", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze",
    )
}  # fmt: skip
_ELEMENTWISE = {
    op: Rule(Role.ELEMENTWISE) for op in ("Sigmoid", "Mul", "Add", "LeakyRelu", "AveragePool", "GlobalAveragePool")
}
_RELU = {op: Rule(Role.ELEMENTWISE) for op in ("Relu", "Clip")}

ORT = Target(
    name="ort",
    title="onnxruntime on CPUs",
    rules={
        **_CONV_IN_OUT,
        **_ELEMENTWISE,
        **_RELU,
        **_CARRIERS,
        "MaxPool": Rule(Role.CARRIER, shared=True, behind_integers=True),
    },
    last_layers=False,
    pointwise_matmul=True,
    expand_softmax=True,
    upsample_to_concat=True,
    fused_activations=frozenset({"Relu", "Clip"}),
    float_depthwise=True,
    stem_channels=32,
    runtime="ort",
)

OPENVINO = Target(
    name="openvino",
    title="OpenVINO",
    rules=_CONV_IN,
    float_depthwise=True,
    runtime="openvino",
)

TENSORRT = Target(
    name="tensorrt",
    title="TensorRT",
    rules={**_CONV_IN, "ConvTranspose": Rule(Role.LAYER, output=False, weight_axis=1)},
    signed=True,
    symmetric=True,
)

GENERIC = Target(
    name="generic",
    title="runtimes that want every operator quantized",
    rules={
        **_CONV_IN_OUT,
        "ConvTranspose": Rule(Role.LAYER, weight_axis=1),
        **_ELEMENTWISE,
        "HardSwish": Rule(Role.ELEMENTWISE),
        **_RELU,
        **_CARRIERS,
    },
    fused_activations=frozenset({"Relu", "Clip"}),
)

TARGETS: dict[str, Target] = {target.name: target for target in (ORT, OPENVINO, TENSORRT, GENERIC)}
