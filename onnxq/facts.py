"""The facts that analyses give: frozen values that flow from one pass to the next, in the order of the flow."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError
from onnxq.numerics.arrays import NamedArrays
from onnxq.numerics.channel_statistics import ChannelStatistics
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.input_covariance import InputCovariance
from onnxq.numerics.scheme import QParams, Range, Scheme

__all__ = [
    "ChannelStatistics", "CorrectedBiases", "DecodeBoundary", "FittedRange", "FittedRanges", "InputSummary",
    "LayerSensitivity", "Migration", "Plan", "PreparedImages", "Probe", "QuantizationParameters", "QuantizationPoint",
    "QuantizedWeight", "Reason", "Reconstruction", "Sensitivities", "Speed", "Statistics", "Verification",
]  # fmt: skip


@dataclass(frozen=True)
class DecodeBoundary:
    """Where the network ends and the decode begins.

    Attributes:
        body: names of the layers with weights and of all nodes upstream of them.
        last: names of the last Conv, Gemm or MatMul of every branch.
        tail: names of the nodes downstream of these, the decode.
    """

    body: frozenset[str]
    last: tuple[str, ...]
    tail: frozenset[str]


@dataclass(frozen=True)
class Reason:
    """Why a node stays float; as a string its text.

    Attributes:
        code: stable name of the reason, one of `onnxq.qdq.reasons.Code`.
        text: the code and the numbers of this node: `stem: 16 channels at 320 x 320, integer kernels save no time`.
    """

    code: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class QuantizationPoint:
    """A float tensor that passes through one QuantizeLinear and DequantizeLinear.

    Attributes:
        tensor: its name.
        scheme: the integers that represent it.
        group: points of one group share one scale and zero point.
        users: names of the nodes that read the dequantized tensor; all other nodes read the float tensor.
        sources: tensors whose values its range is for: itself, those from which operators take them that only move
            values, or the outputs of MaxPools that alone read it. Empty if the range is known without data.
        silu_input: its only use is x * sigmoid(x), so its error is measured in that product.
        silu_output: it is x * sigmoid(x), which is never below -0.27846454.
        known: its range, if it is known without data.
        is_output: it is an output of the model, and the dequantized tensor takes its place.
    """

    tensor: str
    scheme: Scheme
    group: str
    users: tuple[str, ...]
    sources: tuple[str, ...] = ()
    silu_input: bool = False
    silu_output: bool = False
    known: Range | None = None
    is_output: bool = False


@dataclass(frozen=True)
class QuantizedWeight:
    """A constant weight that is stored as integers behind one DequantizeLinear.

    Attributes:
        tensor: its name.
        scheme: the integers that represent it.
        users: names of the layers that read it.
    """

    tensor: str
    scheme: Scheme
    users: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The tensors, weights and nodes to quantize, and the reasons why other nodes stay float.

    Attributes:
        points: the activations.
        weights: the weights.
        integer: names of the nodes that will run on integers.
        layers: names of the nodes among them that have quantized weights, in the graph's order.
        skipped: name of every other node -> reason.
        ops: name of every node -> operator.
    """

    points: tuple[QuantizationPoint, ...]
    weights: tuple[QuantizedWeight, ...]
    integer: frozenset[str]
    layers: tuple[str, ...]
    skipped: Mapping[str, Reason]
    ops: Mapping[str, str] = field(default_factory=dict)

    def observed(self) -> dict[str, QuantizationPoint]:
        """Return the tensors that need a histogram, each with its own point."""
        own = {point.tensor: point for point in self.points}
        return {name: own[name] for point in own.values() for name in point.sources}

    def groups(self) -> dict[str, list[QuantizationPoint]]:
        """Return the points by group, in the order of the plan."""
        groups: dict[str, list[QuantizationPoint]] = {}
        for point in self.points:
            groups.setdefault(point.group, []).append(point)
        return groups

    def only(self, names: Collection[str]) -> "Plan":
        """Return the plan in which only these nodes read integers."""
        points = (replace(p, users=tuple(u for u in p.users if u in names)) for p in self.points)
        weights = (replace(w, users=tuple(u for u in w.users if u in names)) for w in self.weights)
        return replace(self, points=tuple(p for p in points if p.users), weights=tuple(w for w in weights if w.users))


@dataclass(frozen=True)
class Migration:
    """Scales that move from activations into the weights that read them.

    Attributes:
        scales: tensor -> what each channel is divided by, and weights multiplied, float32 (channels,), positive.
        why_none: why the data cannot choose any; empty if it can.
    """

    scales: Mapping[str, NDArray[np.float32]]
    why_none: str = ""


@dataclass(frozen=True)
class PreparedImages:
    """How images became the input of a model: what `--preprocess` takes for it, and the size, (height, width) in px."""

    preprocess: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Statistics:
    """Statistics of the activations; they suffice for every range method, bit width and symmetry.

    Attributes:
        histograms: tensor -> histogram of its values over all samples.
        samples: number of samples that were run.
        digest: of the prepared graph that ran.
        channels: tensor -> statistics of its channels, if it has the form of images.
        inputs: Conv -> covariance of its inputs at one position, in the order of `onnxq.reconstruction.im2col`.
        migration: as in `Migration`: what the channels of tensors were divided by before.
        images: how the images were prepared; None if the samples were arrays, of which nothing is known.
    """

    histograms: Mapping[str, Histogram]
    samples: int = 0
    digest: str = ""
    channels: Mapping[str, ChannelStatistics] = field(default_factory=dict)
    inputs: Mapping[str, InputCovariance] = field(default_factory=dict)
    migration: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    images: PreparedImages | None = None

    def of(self, tensors: Iterable[str]) -> Histogram:
        """Return the histogram of the values of one or more tensors; that of a single tensor is not copied.

        Raises:
            DataError: a tensor has no histogram.
        """
        first, *others = map(self._of_tensor, tensors)
        if not others:
            return first
        merged = Histogram(first.floor)
        for histogram in (first, *others):
            merged.merge(histogram)
        return merged

    def of_points(self, points: Iterable[QuantizationPoint]) -> Histogram:
        """Return the histogram of the values of all points together; of some of them data must be needed.

        Raises:
            DataError: as from `of`.
        """
        return self.of(dict.fromkeys(source for point in points for source in point.sources))

    def _of_tensor(self, tensor: str) -> Histogram:
        if tensor not in self.histograms:
            raise DataError(
                f"the calibration has no tensor {tensor!r}: it was made for another target or with other "
                "options; calibrate again"
            )
        return self.histograms[tensor]


@dataclass(frozen=True)
class Probe:
    """A few samples, on which the finished model is compared with the float model.

    Attributes:
        feeds: input name -> array, of each sample; empty if the statistics were given from outside.
    """

    feeds: tuple[NamedArrays, ...] = ()


@dataclass(frozen=True)
class InputSummary:
    """The image input over all calibration samples.

    Attributes:
        low, high: least and greatest value, without what surrounds an image in one colour; inf, -inf without samples.
        samples, distinct: number of samples, and of those that differ from each other.
        most_equal: number of samples that are equal to the most frequent one.
        blank: number of samples that show next to nothing: all of their values are nearly the same.
        blank_file: a file with such a sample; empty if they are in no file.
        grey, interleaved: number of samples whose planes are nearly equal, or hold the colours of a pixel side by side.
    """

    low: float = math.inf
    high: float = -math.inf
    samples: int = 0
    distinct: int = 0
    most_equal: int = 0
    blank: int = 0
    blank_file: str = ""
    grey: int = 0
    interleaved: int = 0


@dataclass(frozen=True)
class FittedRange:
    """The range of a group of points, and its expected cost.

    Attributes:
        bounds: the range.
        sqnr: expected signal-to-quantization-noise ratio in dB of the group's values, or of x * sigmoid(x) if a SiLU
            reads them; nan if it is not known.
        clipped: share of the values outside the range, 0 to 1.
        method: name of the method that chose it.
    """

    bounds: Range
    sqnr: float = math.nan
    clipped: float = 0.0
    method: str = "known"


@dataclass(frozen=True)
class FittedRanges:
    """The range of every group of points.

    Attributes:
        groups: name of the group -> its range.
        unequal: Concats with inputs of which their scale leaves next to nothing, a sentence each.
    """

    groups: Mapping[str, FittedRange]
    unequal: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizationParameters:
    """The scales and zero points of all quantized tensors and weights.

    Attributes:
        activations: tensor of a point -> its scale and zero point.
        weights: name of a weight -> its scales, per channel.
        integers: name of a weight -> its integers, if they are not the nearest ones.
        limited: name of a weight -> number of its output channels whose scale is wider, so that no CPU saturates.
    """

    activations: Mapping[str, QParams]
    weights: Mapping[str, QParams]
    integers: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    limited: Mapping[str, int] = field(default_factory=dict)

    def quantized(self, weight: str, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """Return the integers of a weight with these values."""
        found = self.integers.get(weight)
        return self.weights[weight].quantize(values) if found is None else found


@dataclass(frozen=True)
class CorrectedBiases:
    """Layer -> its corrected bias, float32 (output channels,); all other layers keep their bias."""

    layers: Mapping[str, NDArray[np.float32]]

    def only(self, names: Collection[str]) -> "CorrectedBiases":
        """Return the biases of these layers only."""
        return CorrectedBiases({name: bias for name, bias in self.layers.items() if name in names})


@dataclass(frozen=True)
class Reconstruction:
    """Parameters with which layers compensate the rounding of their inputs and of their own weights.

    Attributes:
        weights: name of a weight -> its scales and its integers, which need not be the nearest ones.
        biases: layer -> its bias, float32 (output channels,).
        activations: tensor -> its scale and zero point, if another range gives less error than the fitted one.
        scales: tensor that a Mul divides -> what its channels are divided by instead, float32 (channels,), positive;
            all 1 if it is best not divided. The weights here are multiplied by these scales.
    """

    weights: dict[str, tuple[QParams, NDArray[np.generic]]]
    biases: dict[str, NDArray[np.float32]]
    activations: dict[str, QParams]
    scales: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def only(self, names: Collection[str]) -> "Reconstruction":
        """Return the reconstruction with the biases of these layers only."""
        return replace(self, biases={name: bias for name, bias in self.biases.items() if name in names})

    def over(self, fitted: QuantizationParameters) -> QuantizationParameters:
        """Return the fitted parameters, replaced by those of the reconstruction where it has any."""
        activations = {**fitted.activations, **self.activations}
        weights = {**fitted.weights, **{name: qparams for name, (qparams, _) in self.weights.items()}}
        integers = {**fitted.integers, **{name: integers for name, (_, integers) in self.weights.items()}}
        return replace(fitted, activations=activations, weights=weights, integers=integers)


@dataclass(frozen=True)
class LayerSensitivity:
    """The effect on the outputs of quantizing one piece of the network alone.

    Attributes:
        nodes: names of its nodes, the layer first.
        sqnr: of the output with the most noise, dB; inf if nothing changes.
        moved: 1 - IoU of the boxes with those of the float model, averaged over the detected objects, 0 to 1; nan if
            the outputs are of no known family.
    """

    nodes: tuple[str, ...]
    sqnr: float
    moved: float = math.nan

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key: the most sensitive pieces come first."""
        return (0.0 if math.isnan(self.moved) else -self.moved, self.sqnr)


@dataclass(frozen=True)
class Sensitivities:
    """The sensitivity of every piece of the network, in the graph's order, and the number of samples measured."""

    pieces: tuple[LayerSensitivity, ...]
    samples: int

    def worst_first(self) -> list[LayerSensitivity]:
        """Return the pieces, the most sensitive first; equally sensitive ones stay in the graph's order."""
        return sorted(self.pieces, key=lambda piece: piece.rank)


@dataclass(frozen=True)
class Verification:
    """The result of the checks of the finished model.

    Attributes:
        sqnr: output -> SQNR of the quantized model against the float model over the `Probe`, dB; in the target's
            runtime if it is installed, else in onnxruntime. Where the graph selects objects, the tensors that enter the
            selection stand for the output.
        simulated: the same with every node computed exactly as the file defines it, without optimization.
        against_exact: output -> SQNR of the run against that exact computation, dB.
        checked_in: name and version of the runtime that the file ran in: `onnxruntime 1.32.0`.
        cpu: kind of the CPU that it ran on: `AVX512-VNNI`.
        runtime: name of the target's runtime; empty if it is not installed.
        fused: number of the plan's layers that it runs on integers; None if `runtime` is empty.
        unfused: names of the plan's layers that it runs in float.
        warnings: one sentence for each fault of the finished model.
    """

    sqnr: Mapping[str, float]
    simulated: Mapping[str, float] = field(default_factory=dict)
    against_exact: Mapping[str, float] = field(default_factory=dict)
    checked_in: str = ""
    cpu: str = ""
    runtime: str = ""
    fused: int | None = None
    unfused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Speed:
    """The speed of the quantized model relative to the float one, on the CPU at hand.

    Attributes:
        runtime: name of the runtime; empty if nothing was measured.
        ratio: least time of the float model over the least time of the quantized one; nan if not measured.
        median: median over the rounds of the ratio of both times; nan if not measured.
        rounds: number of rounds; in each, both models run once.
    """

    runtime: str = ""
    ratio: float = math.nan
    median: float = math.nan
    rounds: int = 0

    @property
    def gains_nothing(self) -> bool:
        """Whether the quantized model is slower both by the least times and by the median, so beyond noise."""
        return self.ratio < 1 and self.median < 1
