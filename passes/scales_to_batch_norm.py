"""scales-to-batch-norm: in a float16 network, scales of a Conv's weight move into a BatchNormalization behind it."""

import math

import numpy as np

from onnxq.ir import Builder, Constant, Model, Node, bias_of, constant, consumers, producer
from onnxq.numerics.arrays import Float64Array
from onnxq.pipeline import EVERYTHING, Facts, Rewrite

_LARGEST = float(np.finfo(np.float16).max)

_LEAST_EXPONENT = -24
"""Of the powers of two that float16 has."""

_MOST = 128
"""The greatest magnitude of an int8 activation."""


class ScalesToBatchNorm(Rewrite):
    """Gives the int8 weight of a Conv that computes in float16 one scale, and the rest to a BatchNormalization.

    Conv(x, w, b), with a scale s of w for each output channel, becomes BatchNormalization(Conv(x, w)) with the factors
    s / c and the shifts b (ONNX BatchNormalization, opset 15), where w has the one scale c. The integers of the weight
    and the name of the output stay.

    TensorRT-RTX 1.7.1 lets an int8 Conv write float16 if its weight has one scale, and float32 if it has several
    (`findings/tensorrt_rtx_channel_scales.sh`). Factors and shifts cost nothing: a second kernel computes the
    activation and the next QuantizeLinear in any case. TensorRT fuses a BatchNormalization with the Conv in front of it
    (NVIDIA's documentation of TensorRT, "Q/DQ Layer-Placement Recommendations").

    c is the power of two nearest to the median of s, so that s / c is exact, or a smaller one if sums of products could
    exceed float16.
    """

    name = "scales-to-batch-norm"
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of Convs that a BatchNormalization follows."""
        builder = Builder(model)
        behind: dict[int, Node] = {}
        for node in model.graph.nodes:
            convs = _convs_of(node)
            scales = np.asarray(constant(node.inputs[1]), np.float64) if convs else np.ones(1)
            common = min((_common_scale(conv, node, scales) for conv in convs), default=1.0)
            for conv in convs:
                behind[id(conv)] = _batch_norm(conv, scales / common, builder)
                model.copy_doc(conv.name, [behind[id(conv)].name])
            if convs:
                _share(node, common, builder)
        model.graph.nodes = [
            each for node in model.graph.nodes for each in (node, behind.get(id(node))) if each is not None
        ]
        return len(behind)


def _convs_of(dequantize: Node) -> list[Node]:
    """Return the Convs that read an int8 weight with several float16 scales; [] if another node reads it, too."""
    if dequantize.op != "DequantizeLinear" or not isinstance(dequantize.inputs[0], Constant):
        return []
    scale = constant(dequantize.inputs[1])
    if scale is None or scale.dtype != np.float16 or scale.ndim != 1 or dequantize.attrs.get("axis", 1) != 0:
        return []
    readers = consumers(dequantize.outputs[0])
    return readers if all(node.op == "Conv" and _data_scale(node) is not None for node in readers) else []


def _data_scale(conv: Node) -> float | None:
    """Return the scale of the integers that a Conv reads; None if it reads floats, or several scales."""
    before = producer(conv.inputs[0])
    scale = constant(before.inputs[1]) if before is not None and before.op == "DequantizeLinear" else None
    return float(scale) if scale is not None and scale.ndim == 0 else None


def _common_scale(conv: Node, dequantize: Node, scales: Float64Array) -> float:
    integers = np.abs(np.asarray(constant(dequantize.inputs[0]), np.float64))
    sums = integers.reshape(len(integers), -1).sum(axis=1)
    greatest = _MOST * float(np.max(sums, initial=1.0)) * (_data_scale(conv) or 1.0)
    exponent = min(round(math.log2(float(np.median(scales)))), math.floor(math.log2(_LARGEST / greatest)))
    return 2.0 ** max(exponent, _LEAST_EXPONENT)


def _batch_norm(conv: Node, factors: Float64Array, builder: Builder) -> Node:
    """Return the node that takes over the output and the bias of a Conv."""
    output, bias = conv.outputs[0], bias_of(conv)
    channels = len(factors)
    shifts = np.zeros(channels, np.float16) if bias is None else np.asarray(constant(bias))
    conv.inputs = conv.inputs[:2]
    conv.outputs[0] = builder.variable(f"{output.name}_unscaled", np.dtype(np.float16), output.shape)
    parameters = {"factor": factors.astype(np.float16), "shift": shifts}
    parameters |= {"mean": np.zeros(channels, np.float16), "variance": np.ones(channels, np.float16)}
    inputs = [builder.constant(f"{conv.name}_{name}", values) for name, values in parameters.items()]
    name = f"{conv.name}_BatchNormalization"
    return builder.node("BatchNormalization", name, [conv.outputs[0], *inputs], [output], epsilon=0.0)


def _share(dequantize: Node, scale: float, builder: Builder) -> None:
    """Give a DequantizeLinear one scale."""
    kind = np.asarray(constant(dequantize.inputs[0])).dtype
    dequantize.inputs[1] = builder.constant(f"{dequantize.inputs[1].name}_common", np.array(scale, np.float16))
    if len(dequantize.inputs) > 2:
        dequantize.inputs[2] = builder.constant(f"{dequantize.inputs[2].name}_common", np.array(0, kind))
    del dequantize.attrs["axis"]
