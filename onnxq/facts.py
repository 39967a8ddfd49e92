"""What the analyses find: frozen values that flow from one pass to the next."""

import io
import json
import math
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq._files import atomic_write
from onnxq.errors import DataError
from onnxq.numerics.arrays import NamedArrays
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.scheme import QParams, Range, Scheme

__all__ = [
    "CorrectedBiases",
    "DecodeBoundary",
    "FittedRange",
    "FittedRanges",
    "LayerSensitivity",
    "Plan",
    "QuantizationParameters",
    "QuantizationPoint",
    "QuantizedWeight",
    "Reconstruction",
    "Sensitivities",
    "Statistics",
    "Verification",
]


@dataclass(frozen=True)
class DecodeBoundary:
    """Where the network ends and decoding begins.

    Attributes:
        body: names of the nodes that some layer with weights depends on, and of these layers.
        last: names of the last Convs, Gemms and MatMuls of every branch.
        tail: names of the nodes behind them, the decode.
    """

    body: frozenset[str]
    last: tuple[str, ...]
    tail: frozenset[str]


@dataclass(frozen=True)
class Reason:
    """Why a node stays float; as a string its text.

    Attributes:
        code: stable name of the reason, one of `onnxq.qdq.reasons.Code`.
        text: the code and the numbers of this node, `stem: 16 channels at 320 x 320, integer kernels save no time`.
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
        scheme: the integers that stand for it.
        group: points of one group share one grid.
        users: names of the nodes that read the dequantized tensor; others go on reading the float one.
        sources: tensors whose values, taken together, are this one's: itself, or for what only moves values (MaxPool,
            Resize, Concat, ...) the tensors that these came from. Empty where the range is known without data.
        silu_input: its only use is x * sigmoid(x), so that its error counts behind that.
        silu_output: it is x * sigmoid(x), which is never below -0.27846454.
        known: its range where that is known without data.
        is_output: it is an output of the model, of which the dequantized tensor takes the place.
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
        scheme: the integers that stand for it.
        users: names of the layers that read it.
    """

    tensor: str
    scheme: Scheme
    users: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What will be quantized and how, and why the rest will not.

    Attributes:
        integer: names of the nodes meant to run on integers.
        layers: those of them that have weights, with quantized weights.
        skipped: name -> why it stays float, for every other node.
        ops: name -> operator, for every node.
    """

    points: tuple[QuantizationPoint, ...]
    weights: tuple[QuantizedWeight, ...]
    integer: frozenset[str]
    layers: tuple[str, ...]
    skipped: Mapping[str, Reason]
    ops: Mapping[str, str] = field(default_factory=dict)

    def observed(self) -> dict[str, QuantizationPoint]:
        """Tensors of which a histogram is needed, each with its own point."""
        own = {point.tensor: point for point in self.points}
        return {name: own[name] for point in own.values() for name in point.sources}

    def groups(self) -> dict[str, list[QuantizationPoint]]:
        """The points by group, in the order of the plan."""
        groups: dict[str, list[QuantizationPoint]] = {}
        for point in self.points:
            groups.setdefault(point.group, []).append(point)
        return groups

    def only(self, names: Collection[str]) -> "Plan":
        """The plan in which these nodes alone read integers."""
        points = (replace(p, users=tuple(u for u in p.users if u in names)) for p in self.points)
        weights = (replace(w, users=tuple(u for u in w.users if u in names)) for w in self.weights)
        return replace(self, points=tuple(p for p in points if p.users), weights=tuple(w for w in weights if w.users))


_FORMAT = "onnxq calibration 1"


@dataclass(frozen=True)
class Statistics:
    """What was seen of the activations: from it every range of any method, width and symmetry can be had.

    Attributes:
        histograms: tensor -> histogram of its values over all samples.
        samples: how many samples were run.
        digest: of the prepared graph they were run through.
        means: tensor -> mean of each channel over all samples, float64 (channels,).
    """

    histograms: Mapping[str, Histogram]
    samples: int = 0
    digest: str = ""
    means: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def of(self, tensors: Iterable[str]) -> Histogram:
        """The histogram of the values of several tensors, at least one; of one, its own.

        Raises:
            DataError: nothing was seen of one of them.
        """
        first, *others = map(self._of_tensor, tensors)
        if not others:
            return first
        merged = Histogram(first.floor)
        for histogram in (first, *others):
            merged.merge(histogram)
        return merged

    def _of_tensor(self, tensor: str) -> Histogram:
        if tensor not in self.histograms:
            raise DataError(
                f"the calibration holds nothing of tensor {tensor!r}: it was made for another target or with other "
                "options; calibrate again"
            )
        return self.histograms[tensor]

    def save(self, path: Path) -> None:
        """Write to an `.npz` file, whole or not at all; same statistics, same bytes."""
        names = sorted(self.histograms)
        header = {
            "format": _FORMAT,
            "digest": self.digest,
            "samples": self.samples,
            "tensors": [
                {"name": n, "exponent": h.exponent, "start": h.start, "low": h.low, "high": h.high, "floor": h.floor}
                for n, h in ((n, self.histograms[n]) for n in names)
            ],
            "means": sorted(self.means),
        }
        arrays: dict[str, NDArray[Any]] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
        arrays["counts"] = np.stack([self.histograms[n].counts for n in names]) if names else np.zeros((0, 1), np.int64)
        arrays.update({f"mean_{k}": self.means[n] for k, n in enumerate(sorted(self.means))})
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, array in arrays.items():
                # numpy.savez stamps the time of day; a fixed date keeps the bytes the same.
                member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                buffer = io.BytesIO()
                np.save(buffer, array)
                archive.writestr(member, buffer.getvalue(), zipfile.ZIP_DEFLATED)

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read what `save` wrote.

        Raises:
            DataError: no such file, or not a calibration of this version of onnxq.
        """
        try:
            with Path(path).open("rb") as file, np.load(file) as archive:
                header = json.loads(archive["header"].tobytes())
                counts = archive["counts"]
                means = {str(n): np.asarray(archive[f"mean_{k}"]) for k, n in enumerate(header["means"])}
            if header["format"] != _FORMAT:
                raise DataError(f"{path}: is {header['format']!r}, this onnxq reads {_FORMAT!r}; calibrate again")
            histograms = {t["name"]: _histogram(t, c) for t, c in zip(header["tensors"], counts, strict=True)}
            samples, digest = int(header["samples"]), str(header["digest"])
        except FileNotFoundError:
            raise DataError(f"{path}: no such calibration file; make one with --save-calibration") from None
        except DataError:
            raise
        except Exception as error:  # on broken files numpy, zipfile and zlib let out all kinds
            cause = "not a calibration file written by --save-calibration; make one with it"
            raise DataError(f"{path}: {cause}") from error
        return cls(histograms, samples, digest, means)


def _histogram(header: dict[str, float], counts: NDArray[np.int64]) -> Histogram:
    histogram = Histogram(header["floor"])
    histogram.counts = counts
    histogram.exponent, histogram.start = int(header["exponent"]), int(header["start"])
    histogram.low, histogram.high = float(header["low"]), float(header["high"])
    return histogram


@dataclass(frozen=True)
class Probe:
    """A few samples, on which the finished model is compared with the float model.

    Attributes:
        feeds: input name -> array, of each sample; none where the statistics were given from outside.
    """

    feeds: tuple[NamedArrays, ...] = ()


@dataclass(frozen=True)
class InputSummary:
    """The image input over all calibration samples.

    Attributes:
        low, high: least and greatest value; inf and -inf without samples.
        samples: number of samples.
        distinct: number of samples that differ from each other.
    """

    low: float = math.inf
    high: float = -math.inf
    samples: int = 0
    distinct: int = 0


@dataclass(frozen=True)
class FittedRange:
    """A range that was chosen for a group, and what it costs.

    Attributes:
        bounds: the range.
        sqnr: expected signal-to-quantization-noise ratio in dB, of the group's values or, where a SiLU reads them, of
            what this makes of them; nan where it is not known.
        clipped: share of the values outside, 0 to 1.
        method: how it was chosen.
    """

    bounds: Range
    sqnr: float = math.nan
    clipped: float = 0.0
    method: str = "known"


@dataclass(frozen=True)
class FittedRanges:
    """The range of every group of points."""

    groups: Mapping[str, FittedRange]


@dataclass(frozen=True)
class QuantizationParameters:
    """The scale and zero point of everything that is quantized.

    Attributes:
        activations: tensor of a point -> its grid.
        weights: name of a weight -> its grid, per channel.
    """

    activations: Mapping[str, QParams]
    weights: Mapping[str, QParams]


@dataclass(frozen=True)
class CorrectedBiases:
    """Layer -> the bias that it is to have, float32 (output channels,); other layers keep theirs."""

    layers: Mapping[str, NDArray[np.float32]]

    def only(self, names: Collection[str]) -> "CorrectedBiases":
        """Those of these layers."""
        return CorrectedBiases({name: bias for name, bias in self.layers.items() if name in names})


@dataclass(frozen=True)
class Reconstruction:
    """Parameters with which layers make up for the rounding of what they read and of their own weights.

    Attributes:
        weights: name of a weight -> its grid and its integers, which need not be the nearest ones.
        biases: layer -> its bias, float32 (output channels,).
        activations: tensor -> its grid, where that was found better than the fitted one.
    """

    weights: dict[str, tuple[QParams, NDArray[np.generic]]]
    biases: dict[str, NDArray[np.float32]]
    activations: dict[str, QParams]

    def only(self, names: Collection[str]) -> "Reconstruction":
        """With the biases of these layers alone."""
        return replace(self, biases={name: bias for name, bias in self.biases.items() if name in names})

    def over(self, grid: QuantizationParameters) -> QuantizationParameters:
        """The grids as they are in the end."""
        weights = {name: found for name, (found, _) in self.weights.items()}
        return QuantizationParameters({**grid.activations, **self.activations}, {**grid.weights, **weights})


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing one piece of the network alone does to the outputs.

    Attributes:
        nodes: its names, the layer first.
        sqnr: of the output that suffers most, dB; infinite where nothing changes.
        moved: share of the objects' area by which boxes miss those of the float model, 0 to 1: 1 - intersection over
            union, averaged over the objects seen; nan where the outputs are not understood.
    """

    nodes: tuple[str, ...]
    sqnr: float
    moved: float = math.nan

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts the worst first."""
        return (0.0 if math.isnan(self.moved) else -self.moved, self.sqnr)


@dataclass(frozen=True)
class Sensitivities:
    """The damage of every piece of the network, in the graph's order, over some samples."""

    pieces: tuple[LayerSensitivity, ...]
    samples: int

    def worst_first(self) -> list[LayerSensitivity]:
        """Sorted; pieces that do equal damage stay in the graph's order."""
        return sorted(self.pieces, key=lambda piece: piece.rank)


@dataclass(frozen=True)
class Verification:
    """What the finished model was checked for, and found.

    Attributes:
        sqnr: output -> dB between the float and the quantized model over a few samples, where the target runs if that
            is on this machine, else in onnxruntime.
        simulated: the same with each node computed as the file says, without any optimization.
        runtime: where the target runs; empty where that is not on this machine.
        fused: how many of the layers run on integers there; None where `runtime` is empty.
        unfused: the layers that should run on integers there and do not.
        warnings: what the user should know, a sentence each.
    """

    sqnr: Mapping[str, float]
    simulated: Mapping[str, float] = field(default_factory=dict)
    runtime: str = ""
    fused: int | None = None
    unfused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
