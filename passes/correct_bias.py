"""correct-bias: corrects biases for the shift of the mean output that rounding the weights causes."""

import numpy as np

from onnxq.facts import CorrectedBiases, Plan, QuantizationParameters, Statistics
from onnxq.ir import Model, Node, bias_of, constant, has_plain_bias
from onnxq.numerics.arrays import Float64Array
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.channel_statistics import channel_statistics


class CorrectBias(Analysis[CorrectedBiases]):
    """Computes biases with which the mean outputs of Convs equal those of the float weights.

    With W' the rounded weight and E[x] the mean of each input channel over the calibration data, the output is shifted
    by the sum over c and k of (W' - W)[o, c, k] E[x_c] (Nagel et al., arXiv 1906.04721, section 4.2, for the error of
    the weights). The shift is the same at every position, so it adds up, while other errors average out. The padding at
    the borders is ignored.

    Convs whose input has no known mean, or whose bias is computed, keep their bias; so do ConvTransposes.
    """

    name = "correct-bias"
    gives = CorrectedBiases
    needs = (Plan, Statistics, QuantizationParameters)

    def run(self, model: Model, facts: Facts) -> CorrectedBiases:
        """Return the corrected biases."""
        nodes, parameters, observed = model.nodes, facts[QuantizationParameters], facts[Statistics].channels
        biases = {}
        for weight in facts[Plan].weights:
            for node in (nodes[name] for name in weight.users):
                channels = channel_statistics(node.inputs[0], observed)
                if node.op != "Conv" or channels is None or not has_plain_bias(node):
                    continue
                values = np.asarray(constant(node.inputs[1]), np.float32)
                integers = parameters.quantized(weight.tensor, values)
                error = np.asarray(parameters.weights[weight.tensor].dequantize(integers) - values, np.float64)
                biases[node.name] = (_bias(node) - _shift(error, channels.means)).astype(np.float32)
        return CorrectedBiases(biases)


def _bias(conv: Node) -> Float64Array:
    """Return the bias of a Conv, float64 (output channels,); zeros if it has none."""
    bias = bias_of(conv)
    channels = np.asarray(constant(conv.inputs[1])).shape[0]
    return np.zeros(channels) if bias is None else np.asarray(constant(bias), np.float64)


def _shift(error: Float64Array, mean: Float64Array) -> Float64Array:
    """Return the mean shift of each output channel, float64 (output channels,).

    Args:
        error: of the weight, float64 (output channels, input channels of a group, *kernel).
        mean: of the input, float64 (input channels,).
    """
    outputs, inputs = error.shape[:2]
    groups = mean.size // inputs
    summed = error.reshape(groups, outputs // groups, inputs, -1).sum(axis=3)
    return np.asarray(np.einsum("goi,gi->go", summed, mean.reshape(groups, inputs)).reshape(-1))
