"""The report of a run as frozen dataclasses: their fields, in this order, are the keys of the JSON report.

A trailing underscore of a field (`float_`, `try_`) is not part of its key. Numbers that are not finite are None (JSON:
null), because JSON has neither NaN nor infinity. Tuples and lists are arrays, mappings are objects.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxq.evaluation.average_precision import PrecisionSummary
from onnxq.evaluation.criteria import AgreementLoss

FORMAT = 1
"""Version of the JSON report; it changes if a key is removed, renamed or gets another meaning, not if one is added."""


@dataclass(frozen=True)
class DetectorEntry:
    """What the model was recognized as.

    Attributes:
        family: head family, such as `v8`.
        task: `detect`, `segment`, `pose`, `obb` or `classify`.
        size: height and width of the input, px.
        preprocess: description of the preprocessing.
        why: evidence for the family.
    """

    family: str
    task: str
    size: tuple[int, int]
    preprocess: str
    why: str


@dataclass(frozen=True)
class FileSizes:
    """Sizes of the model files with their external data, bytes.

    Attributes:
        before: the float model.
        after: the quantized model.
    """

    before: int
    after: int


@dataclass(frozen=True)
class LayersEntry:
    """Layers with quantized weights.

    Attributes:
        integer: names of all of them.
        fused: how many the target's runtime runs on integers; None if it is not installed.
        unfused: names of those that it runs in float all the same.
    """

    integer: tuple[str, ...]
    fused: int | None
    unfused: tuple[str, ...]


@dataclass(frozen=True)
class FloatNode:
    """Why a node stays float.

    Attributes:
        code: stable code of the reason (`qdq.reasons.Code`).
        text: the reason with its numbers.
    """

    code: str
    text: str


@dataclass(frozen=True)
class OperatorCounts:
    """How many nodes of each operator the graph has.

    Attributes:
        float_: in the float model after the preparing passes.
        quantized: in the quantized model.
    """

    float_: Mapping[str, int]
    quantized: Mapping[str, int]


@dataclass(frozen=True)
class SensitivityEntry:
    """Effect of one part of the network on the outputs if it alone is quantized.

    Attributes:
        nodes: names of its nodes, the layer first.
        sqnr: signal-to-quantization-noise ratio of the output with the most noise, dB; None if nothing changes.
        moved: how far boxes move: mean of 1 - IoU of the boxes of the float model with those of the model in which only
            this part is quantized, percent; None without boxes.
    """

    nodes: tuple[str, ...]
    sqnr: float | None
    moved: float | None


@dataclass(frozen=True)
class RangeEntry:
    """A range that one method chooses for the values of a tensor.

    Attributes:
        low: lower end of the range.
        high: upper end of the range.
        sqnr: expected signal-to-quantization-noise ratio, dB; of the SiLU's output if a SiLU reads the tensor; None if
            it is not known.
        clipped: share of the values outside the range, 0 to 1.
    """

    low: float
    high: float
    sqnr: float | None
    clipped: float


@dataclass(frozen=True)
class ActivationEntry:
    """A tensor with QuantizeLinear and DequantizeLinear.

    Attributes:
        tensor: its name.
        group: name of the group; tensors of one group share scale and zero point.
        users: names of the nodes that read the dequantized tensor.
        method: range method; `known` if the range follows from the operator.
        low: lower end of the range.
        high: upper end of the range.
        sqnr: expected signal-to-quantization-noise ratio of the values of its group, dB; of the SiLU's output if a SiLU
            reads the tensor; None if it is not known.
        clipped: share of the values of its group outside the range, 0 to 1.
        bits: width of the integers.
        axis: axis of a per-channel scale; None for one scale.
        scale: the least and the greatest scale.
        zero_point: all zero points, sorted, each once.
        grid: the least and the greatest value that the integers represent.
        silu_input: whether a SiLU is its only consumer.
        own: the same range, with the noise and the clipped share of the values of the tensor alone.
    """

    tensor: str
    group: str
    users: tuple[str, ...]
    method: str
    low: float
    high: float
    sqnr: float | None
    clipped: float
    bits: int
    axis: int | None
    scale: tuple[float, float]
    zero_point: tuple[int, ...]
    grid: tuple[float, float]
    silu_input: bool
    own: RangeEntry


@dataclass(frozen=True)
class ValuesEntry:
    """Values that were observed in the tensors of one group.

    Attributes:
        low: lower edge of the first bin.
        high: upper edge of the last bin.
        counts: values in each bin; bins have equal widths.
        methods: range method -> the range that it chooses.
        chosen: the range that was chosen, as for the methods with the noise of all these values.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    methods: Mapping[str, RangeEntry]
    chosen: RangeEntry


@dataclass(frozen=True)
class WeightEntry:
    """A weight that is stored as integers.

    Attributes:
        tensor: its name.
        layers: names of the layers that read it.
        kind: kind of the first of these layers, such as `depthwise Conv` or `3x3 Conv`.
        bits: width of the integers.
        axis: axis of the output channels; None for one scale.
        scale: the least and the greatest scale.
        zero_point: all zero points, sorted, each once.
        channels: number of scales.
        scales: at most 64 of the scales, evenly spaced by rank, the greatest first.
    """

    tensor: str
    layers: tuple[str, ...]
    kind: str
    bits: int
    axis: int | None
    scale: tuple[float, float]
    zero_point: tuple[int, ...]
    channels: int
    scales: tuple[float, ...]


@dataclass(frozen=True)
class MigrationEntry:
    """A tensor whose channels are divided in front of the layers that read it, and multiplied in their weights.

    Attributes:
        tensor: its name.
        layers: names of the layers.
        channels: number of its channels.
        before: greatest values of at most 64 channels, evenly spaced by rank, the greatest first; dead ones left out.
        after: those of the divided channels, in the same way.
    """

    tensor: str
    layers: tuple[str, ...]
    channels: int
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class HigherPrecisionEntry:
    """A part of the network that a mixed-precision search keeps at a higher precision.

    Attributes:
        nodes: names of its nodes, the layer first.
        bits: width of its weights and inputs; None if it stays float.
    """

    nodes: tuple[str, ...]
    bits: int | None


@dataclass(frozen=True)
class TrialEntry:
    """A trial of a mixed-precision search.

    Attributes:
        kept: how many parts were kept at a higher precision.
        loss_text: measured loss, in words.
    """

    kept: int
    loss_text: str


@dataclass(frozen=True)
class SearchEntry:
    """Result of a mixed-precision search.

    Attributes:
        loss_text: measured loss of the model, in words.
        images: number of images that it was measured on.
        kept: parts kept at a higher precision, the most sensitive first.
        trials: all trials, by the number of parts kept.
    """

    loss_text: str
    images: int
    kept: tuple[HigherPrecisionEntry, ...]
    trials: tuple[TrialEntry, ...]


@dataclass(frozen=True)
class Finding:
    """Something that stands out, and a remedy.

    Attributes:
        what: a sentence; options stand between backticks.
        try_: what may help, without a full stop.
    """

    what: str
    try_: str


@dataclass(frozen=True)
class SpeedEntry:
    """The speed of the quantized model relative to the float one.

    Attributes:
        runtime: name of the runtime.
        ratio: by the least times.
        median: by the median over the rounds.
        rounds: number of rounds.
    """

    runtime: str
    ratio: float
    median: float
    rounds: int


@dataclass(frozen=True)
class Report:
    """Everything that a run found.

    Attributes:
        format: version of this schema, `FORMAT`.
        onnxq: version of onnxq.
        versions: library -> version.
        model: file name of the float model.
        target: target runtime.
        cpu: CPU that the placement and the weights are for.
        method: range method of activations.
        weight_method: range method of weights.
        weight_bits: width of the weights.
        act_bits: width of the activations.
        bits: widths of single nodes, each as `NAME=WEIGHTS/ACTIVATIONS`.
        symmetric: whether activations are symmetric.
        equalize: whether channels were equalized across layers.
        migrate: whether scales migrated from activations into weights.
        reconstruct: whether layers were reconstructed.
        keep_bias: whether biases were left uncorrected.
        rounding: how weights were to be rounded.
        float_type: data type of operators that are not quantized.
        pack: how 4-bit weights are stored.
        exclude: names and patterns of excluded nodes.
        include: names and patterns of included nodes.
        options: command-line options that give the same file, without defaults.
        detector: what the model was recognized as.
        calibration: description of the calibration data.
        samples: number of calibration samples.
        synthetic: whether the calibration data are synthetic images, for want of others.
        data_warnings: warnings about the calibration data.
        warnings: warnings about the quantized model.
        bytes: sizes of the files, bytes.
        seconds: pass -> its duration, s.
        layers: layers with quantized weights.
        runtime: runtime that the quantized model was checked in; empty if the target's is not installed.
        checked_in: name and version of the runtime that the quantized model ran in to be checked.
        checked_on: kind of the CPU that it ran on: AVX512-VNNI.
        float_: node that stays float -> reason.
        operators: operators before and after.
        sqnr: output -> signal-to-quantization-noise ratio, dB, in the target's runtime, or onnxruntime without it.
            Where the graph selects objects, the tensors that enter the selection stand for the output.
        simulated_sqnr: output -> signal-to-quantization-noise ratio, dB, with each node computed exactly as written.
        sqnr_against_exact: output -> signal-to-quantization-noise ratio, dB, of the run against that exact computation;
            None if they are equal.
        speed: speed relative to the float model; None if not measured.
        sensitivity: parts of the network, the most sensitive first; empty if not measured.
        activations: quantized tensors, in the order of the graph.
        values: group -> observed values.
        weights: quantized weights.
        migrated: tensors whose channels are divided.
        search: result of a mixed-precision search; None without one.
        evaluation: average precision of both models; None if not measured.
        agreement: loss of expected AP, measured without labels; None if not measured.
        findings: what stands out, the most important first.
    """

    format: int
    onnxq: str
    versions: Mapping[str, str]
    model: str
    target: str
    cpu: str
    method: str
    weight_method: str
    weight_bits: int
    act_bits: int
    bits: tuple[str, ...]
    symmetric: bool
    equalize: bool
    migrate: bool
    reconstruct: bool
    keep_bias: bool
    rounding: str
    float_type: str
    pack: str
    exclude: tuple[str, ...]
    include: tuple[str, ...]
    options: tuple[str, ...]
    detector: DetectorEntry
    calibration: str
    samples: int
    synthetic: bool
    data_warnings: tuple[str, ...]
    warnings: tuple[str, ...]
    bytes: FileSizes
    seconds: Mapping[str, float]
    layers: LayersEntry
    runtime: str
    checked_in: str
    checked_on: str
    float_: Mapping[str, FloatNode]
    operators: OperatorCounts
    sqnr: Mapping[str, float | None]
    simulated_sqnr: Mapping[str, float | None]
    sqnr_against_exact: Mapping[str, float | None]
    sensitivity: tuple[SensitivityEntry, ...]
    activations: tuple[ActivationEntry, ...]
    values: Mapping[str, ValuesEntry]
    weights: tuple[WeightEntry, ...]
    migrated: tuple[MigrationEntry, ...] = ()
    speed: SpeedEntry | None = None
    search: SearchEntry | None = None
    evaluation: PrecisionSummary | None = None
    agreement: AgreementLoss | None = None
    findings: tuple[Finding, ...] = ()


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as dictionaries with the keys of the JSON report."""
    return dataclasses.asdict(report, dict_factory=_with_keys)


def _with_keys(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name.removesuffix("_"): value for name, value in fields}
