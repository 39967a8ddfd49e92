"""The limit of a weight's integers within which no CPU saturates the sums of its layers."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.ir import CONVS, Model, Node, constant, downstream, is_depthwise, is_layer, output_axis
from onnxq.numerics.arrays import AnyArray, Float64Array, Int64Array
from onnxq.numerics.channel_statistics import ChannelStatistics
from onnxq.numerics.pair_sums import LARGEST_SUM, greatest_pair_sums
from onnxq.numerics.scheme import INT8, QParams, Scheme
from onnxq.qdq.channel_statistics import channel_statistics

_MARGIN = 2
"""Steps by which an activation of the quantized graph may exceed that of the float graph, which is observed."""


@dataclass(frozen=True)
class PairLimit:
    """The integers that the inputs of a weight's layers reach; see `onnxq.numerics.pair_sums`.

    Attributes:
        peaks: greatest integer of each input channel, as an unsigned one, float64 (1, c), or (outputs, c) with groups.
        pair_peaks: greatest sum of channels 2i and 2i + 1 at one position, (1, c // 2) or (outputs, c // 2).
    """

    peaks: Float64Array
    pair_peaks: Float64Array

    def shares_of(self, weight: AnyArray, axis: int) -> Float64Array:
        """Return `shares` for a weight of the layer's shape, with its output channels along an axis."""
        return self.shares(by_output(weight, axis))

    def at(self, outputs: Int64Array) -> "PairLimit":
        """Return the limit of some of the output channels."""
        return self if len(self.peaks) == 1 else PairLimit(self.peaks[outputs], self.pair_peaks[outputs])

    def shares(self, weight: AnyArray) -> Float64Array:
        """Return the greatest sum of two products of each output channel as a share of the limit, float64 (outputs,).

        Args:
            weight: integers, (output channels, input channels of a group, kernel positions).
        """
        return greatest_pair_sums(weight, self.peaks, self.pair_peaks) / LARGEST_SUM


def by_output(weight: AnyArray, axis: int) -> AnyArray:
    """Return a weight as (output channels, input channels of a group, kernel positions).

    Args:
        weight: of a Conv, Gemm or MatMul.
        axis: of its output channels.
    """
    channels = np.moveaxis(weight, axis, 0)
    return channels.reshape(*channels.shape[:2], -1)


class PairLimits:
    """The limits of the weights of a graph.

    Args:
        model: the graph.
        observed: tensor -> statistics of its channels. They do not count for layers that no other layer precedes: these
            read images, in which any channel of any pixel can have the greatest value.
    """

    def __init__(self, model: Model, observed: Mapping[str, ChannelStatistics]) -> None:
        self._behind_layers = downstream(model.graph.nodes, is_layer)
        self._observed = observed

    def of(self, layers: Sequence[Node], scheme: Scheme, activations: Mapping[str, QParams]) -> PairLimit | None:
        """Return the limit of a weight; None if no integers of its scheme saturate.

        7 bits never do, nor do Convs with one filter per channel, which have kernels of their own that add in 32 bits,
        nor ConvTransposes with groups, which run in float, nor unsigned weights, for which runtimes use other
        instructions.

        Args:
            layers: all consumers of the weight.
            scheme: of the weight.
            activations: tensor of a point -> its scale and zero point.
        """
        widths = {scheme.bits, *(activations[layer.inputs[0].name].scheme.container.bits for layer in layers)}
        is_signed = scheme.symmetric and scheme.container.is_signed
        if widths != {INT8.bits} or not is_signed:
            return None
        found = [self._of_layer(layer, activations[layer.inputs[0].name]) for layer in layers if _saturates(layer)]
        if not found:
            return None
        peaks, pair_peaks = ([getattr(each, name) for each in found] for name in ("peaks", "pair_peaks"))
        return PairLimit(_greatest(peaks), _greatest(pair_peaks))

    def _of_layer(self, layer: Node, activation: QParams) -> PairLimit:
        outputs, channels = _weight_shape(layer)
        groups = _groups(layer)
        # The channels of a MatMul are not those of an image.
        counts = layer.op in CONVS and layer.name in self._behind_layers
        known = channel_statistics(layer.inputs[0], self._observed) if counts else None
        peaks, pair_peaks = _integer_peaks(activation, known, groups * channels)
        peaks = peaks.reshape(groups, channels)
        pair_peaks = np.zeros((groups, 0)) if channels % 2 else pair_peaks.reshape(groups, channels // 2)
        repeats = outputs // groups if groups > 1 else 1
        return PairLimit(np.repeat(peaks, repeats, axis=0), np.repeat(pair_peaks, repeats, axis=0))


def _weight_shape(layer: Node) -> tuple[int, int]:
    """Return the outputs, and the input channels of a group, of a layer's weight."""
    outputs, channels = np.moveaxis(np.asarray(constant(layer.inputs[1])), output_axis(layer), 0).shape[:2]
    return outputs, channels


def _groups(layer: Node) -> int:
    return int(layer.attrs.get("group", 1))


def _saturates(layer: Node) -> bool:
    """Return whether the kernel of a layer adds products of 8-bit integers in 16 bits."""
    groups = _groups(layer)
    one_filter = is_depthwise(layer) and _weight_shape(layer)[0] == groups
    return groups == 1 or not (layer.op == "ConvTranspose" or one_filter)


def _greatest(peaks: Sequence[Float64Array]) -> Float64Array:
    """Return the elementwise greatest of arrays, (1, n) or (outputs, n)."""
    return functools.reduce(np.maximum, peaks)


def _integer_peaks(
    qparams: QParams, channels: ChannelStatistics | None, inputs: int
) -> tuple[Float64Array, Float64Array]:
    """Return the greatest integers of channels, (inputs,), and of the sums of pairs, (inputs // 2,).

    Runtimes turn signed integers into unsigned ones by adding 128. The padding has the zero point.
    """
    scheme, scale = qparams.scheme, float(qparams.scale)
    least = -float(1 << scheme.container.bits - 1) if scheme.container.is_signed else 0.0
    zero, most = float(qparams.zero_point) - least, scheme.qmax - least
    if channels is None or len(channels.peaks) != inputs:
        return np.full(inputs, most), np.full(inputs // 2, 2 * most)
    peaks = np.clip(np.rint(channels.peaks / scale) + _MARGIN + zero, zero, most)
    # The two roundings add up to at most one step.
    pair_peaks = np.maximum(np.floor(channels.pair_peaks / scale) + 1 + 2 * (_MARGIN + zero), 2 * zero)
    return peaks, pair_peaks
