"""Builds the report of a run and writes it as JSON, Markdown or HTML."""

import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.api import Quantized
from onnxq.config import Config
from onnxq.errors import ConfigError
from onnxq.evaluation.average_precision import PrecisionSummary
from onnxq.evaluation.criteria import AgreementLoss
from onnxq.evaluation.mixed_precision import SearchResult
from onnxq.facts import FittedRange, Migration, Plan, Sensitivities, Speed, Statistics, Verification
from onnxq.ir.files import atomic_write
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.scheme import QParams
from onnxq.pipeline import Facts
from onnxq.qdq.migration import divided_name
from onnxq.qdq.tensor_result import TensorResult, final_migration, final_qparams, tensor_results
from onnxq.report.findings import findings
from onnxq.report.html import to_html
from onnxq.report.markdown import to_markdown
from onnxq.report.schema import (
    FORMAT,
    ActivationEntry,
    DetectorEntry,
    FileSizes,
    FloatNode,
    HigherPrecisionEntry,
    LayersEntry,
    MigrationEntry,
    OperatorCounts,
    RangeEntry,
    Report,
    SearchEntry,
    SensitivityEntry,
    SpeedEntry,
    TrialEntry,
    ValuesEntry,
    WeightEntry,
    as_dict,
)
from onnxq.version import VERSION

_BINS = 96
"""Bins of a histogram in the report; it is observed in 2048."""

_SCALES = 64
"""Most numbers of channels in the report, evenly spaced by rank."""


def build(
    quantized: Quantized,
    config: Config,
    *,
    source: str,
    before: int,
    after: int,
    search: SearchResult | None = None,
    evaluation: PrecisionSummary | None = None,
    agreement: AgreementLoss | None = None,
) -> Report:
    """Build the report of a run.

    Args:
        quantized: the result.
        config: the options it was made with.
        source: file name of the float model.
        before: size of the float model, bytes.
        after: size of the quantized model, bytes.
        search: result of a mixed-precision search; None without one.
        evaluation: average precision of both models; None if not measured.
        agreement: loss of expected AP; None if not measured.
    """
    facts = quantized.facts
    plan, verification, tensors = facts[Plan], facts[Verification], list(tensor_results(facts))
    report = Report(
        format=FORMAT,
        onnxq=VERSION,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("onnx", "onnxruntime", "numpy")},
        },
        model=source,
        target=config.target,
        cpu=config.cpu,
        method=config.method_used,
        weight_method=config.weight_method,
        weight_bits=config.weight_bits,
        act_bits=config.act_bits,
        bits=tuple(config.bits),
        symmetric=config.symmetric,
        equalize=config.equalize,
        migrate=bool(final_migration(facts).scales),
        reconstruct=config.reconstructs,
        keep_bias=config.keep_bias,
        rounding=config.rounding_used,
        float_type=config.float_type,
        pack=config.pack,
        exclude=tuple(config.exclude),
        include=tuple(config.include),
        options=tuple(config.flags),
        detector=_detector(quantized),
        calibration=quantized.samples.description if quantized.samples else "given statistics",
        samples=facts[Statistics].samples,
        synthetic=quantized.samples is not None and quantized.samples.synthetic,
        data_warnings=tuple(quantized.warnings),
        warnings=verification.warnings,
        bytes=FileSizes(before, after),
        seconds={name: round(seconds, 3) for name, seconds in quantized.timings.items()},
        layers=LayersEntry(plan.layers, verification.fused, verification.unfused),
        runtime=verification.runtime,
        checked_in=verification.checked_in,
        checked_on=verification.cpu,
        float_={name: FloatNode(str(why.code), why.text) for name, why in sorted(plan.skipped.items())},
        operators=OperatorCounts(
            _counts(plan.ops.values()), _counts(node.op_type for node in quantized.model.graph.node)
        ),
        sqnr=_all_finite(verification.sqnr),
        simulated_sqnr=_all_finite(verification.simulated),
        sqnr_against_exact=_all_finite(verification.against_exact),
        sensitivity=tuple(_sensitivity(facts)),
        activations=tuple(map(_activation, tensors)),
        values=_values(tensors),
        weights=tuple(_weights(quantized)),
        migrated=tuple(_migrated(quantized)),
        speed=_speed(facts),
        search=None if search is None else _search(search),
        evaluation=evaluation,
        agreement=agreement,
    )
    return replace(report, findings=findings(report))


def _speed(facts: Facts) -> SpeedEntry | None:
    speed = facts.get(Speed)
    if speed is None or not speed.rounds:
        return None
    return SpeedEntry(speed.runtime, round(speed.ratio, 3), round(speed.median, 3), speed.rounds)


def ranges(quantized: Quantized, cut: onnx.ModelProto) -> dict[str, dict[str, float]]:
    """Return the range of each quantized tensor, `{tensor: {"low": ..., "high": ...}}`, for tools that read ranges.

    Args:
        quantized: the result.
        cut: the float model that the tools read; tensors that it lacks, in the decode, are left out.
    """
    held = {name for node in cut.graph.node for name in (*node.input, *node.output)}
    entries = map(_activation, tensor_results(quantized.facts))
    return {entry.tensor: {"low": entry.low, "high": entry.high} for entry in entries if entry.tensor in held}


def _detector(quantized: Quantized) -> DetectorEntry:
    detector = quantized.detector
    return DetectorEntry(
        family=detector.family,
        task=detector.outputs.task,
        size=detector.size,
        preprocess=detector.preprocess.describe(),
        why=detector.why,
    )


def _search(result: SearchResult) -> SearchEntry:
    return SearchEntry(
        loss_text=result.loss_text,
        images=result.images,
        kept=tuple(HigherPrecisionEntry(part.nodes, part.bits) for part in result.kept),
        trials=tuple(TrialEntry(count, loss) for count, loss in sorted(result.trials.items())),
    )


def _sensitivity(facts: Facts) -> Iterator[SensitivityEntry]:
    """Yield the sensitivities, the worst first; nothing if they were not measured."""
    measured = facts.get(Sensitivities)
    for part in measured.worst_first() if measured is not None else ():
        yield SensitivityEntry(part.nodes, _finite(part.sqnr), _finite(100 * part.moved))


def _activation(result: TensorResult) -> ActivationEntry:
    point, fit = result.point, _range(result.fit)
    return ActivationEntry(
        tensor=point.tensor,
        group=point.group,
        users=point.users,
        method=result.fit.method,
        low=fit.low,
        high=fit.high,
        sqnr=fit.sqnr,
        clipped=fit.clipped,
        grid=(result.qparams.low, result.qparams.high),
        silu_input=point.silu_input,
        own=_range(result.own),
        **_grid(result.qparams),
    )


def _values(results: Iterable[TensorResult]) -> dict[str, ValuesEntry]:
    """Return the observed values of each group, and the range that each method chooses for them."""
    first = {result.point.group: result for result in reversed(list(results))}
    entries = {}
    for group, result in sorted(first.items()):
        if result.values is not None:
            low, high, counts = _coarse(result.values)
            methods = {name: _range(fit) for name, fit in result.alternatives().items()}
            entries[group] = ValuesEntry(low, high, counts, methods, _range(result.fit))
    return entries


def _range(fit: FittedRange) -> RangeEntry:
    low, high = float(np.min(fit.bounds.low)), float(np.max(fit.bounds.high))
    return RangeEntry(low, high, _finite(fit.sqnr), fit.clipped)


def _coarse(histogram: Histogram) -> tuple[float, float, tuple[int, ...]]:
    """Return a histogram in at most `_BINS` bins of equal width: lower edge, upper edge, counts."""
    counts, edges = histogram.occupied()
    bins = min(_BINS, len(counts))
    low, span = float(edges[0]), float(edges[-1] - edges[0])
    centers = (edges[:-1] + edges[1:]) / 2
    shares = (centers - low) / span if span > 0 else np.zeros(len(centers))
    index = np.minimum((shares * bins).astype(np.intp), bins - 1)
    sums = np.zeros(bins, np.int64)
    np.add.at(sums, index, counts)
    return low, float(edges[-1]), tuple(sums.tolist())


def _weights(quantized: Quantized) -> Iterator[WeightEntry]:
    plan, qparams = quantized.facts[Plan], final_qparams(quantized.facts)
    nodes = {node.name: node for node in quantized.model.graph.node}
    for weight in plan.weights:
        layer, own = weight.users[0], qparams.weights[weight.tensor]
        yield WeightEntry(
            tensor=weight.tensor,
            layers=weight.users,
            kind=_kind(plan.ops[layer], nodes.get(layer), own.scale.size),
            channels=own.scale.size,
            scales=_some(own.scale),
            **_grid(own),
        )


def _kind(op: str, node: onnx.NodeProto | None, channels: int) -> str:
    """Return the kind of a layer: `depthwise Conv`, `3x3 Conv`, `MatMul`.

    Args:
        op: its operator in the float model.
        node: its node in the quantized model; None if there is none of its name.
        channels: number of output channels.
    """
    if op != "Conv":
        return op
    if node is None or node.op_type != "Conv":
        return "1x1 Conv"  # only these Convs are written as matrix products
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("group", 1) == channels > 1:
        return "depthwise Conv"
    kernel = attributes.get("kernel_shape")
    return f"{'x'.join(map(str, kernel))} Conv" if kernel else "Conv"


def _some(values: NDArray[np.floating]) -> tuple[float, ...]:
    """Return at most `_SCALES` of the values, evenly spaced by rank, the greatest first."""
    falling = np.sort(np.ravel(values))[::-1]
    ranks = np.unique(np.linspace(0, len(falling) - 1, min(_SCALES, len(falling))).round().astype(np.intp))
    return tuple(float(value) for value in falling[ranks])


def _migrated(quantized: Quantized) -> Iterator[MigrationEntry]:
    """Yield the tensors whose channels are divided, in the order of the graph."""
    facts = quantized.facts
    first, scales = (facts.get(Migration) or Migration({})).scales, final_migration(facts).scales
    channels = facts[Statistics].channels
    users = {point.tensor: point.users for point in facts[Plan].points}
    # A tensor that is divided at its source keeps its name.
    divided = {next((name for name in (divided_name(each), each) if name in users), ""): each for each in scales}
    for name in users:
        if name in divided and name in channels:
            peaks = channels[name].peaks
            alive = peaks > 0
            then, now = first[divided[name]], scales[divided[name]]
            before, after = (_some(each[alive]) for each in (peaks * then, peaks * (then / now)))
            if before:
                yield MigrationEntry(divided[name], users[name], len(peaks), before, after)


def _counts(operators: Iterable[str]) -> dict[str, int]:
    """Count each operator; sorted by name."""
    return dict(sorted(Counter(operators).items()))


class _Grid(TypedDict):
    """Fields that activations and weights share."""

    bits: int
    axis: int | None
    scale: tuple[float, float]
    zero_point: tuple[int, ...]


def _grid(qparams: QParams) -> _Grid:
    return {
        "bits": qparams.scheme.bits,
        "axis": qparams.scheme.axis,
        "scale": (float(qparams.scale.min()), float(qparams.scale.max())),
        "zero_point": tuple(sorted({int(z) for z in np.ravel(qparams.zero_point)})),
    }


def _all_finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    """Round to three digits; None for NaN and infinity, which JSON does not have."""
    return round(value, 3) if math.isfinite(value) else None


def to_json(report: Report) -> str:
    """Return the report as JSON."""
    return json.dumps(as_dict(report), indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Report], str]] = {".json": to_json, ".md": to_markdown, ".html": to_html}


def check_name(path: Path) -> None:
    """Check the suffix of a report's file name, before the work begins.

    Raises:
        ConfigError: no report format has this suffix.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"--report {path}: the name must end in {', '.join(FORMATS)}")


def write(report: Report, path: Path) -> None:
    """Write a report in the format of the file's suffix, whole or not at all.

    Raises:
        ConfigError: no report format has this suffix, or the file cannot be written.
    """
    check_name(path)
    with atomic_write(path) as temporary:
        temporary.write_text(FORMATS[path.suffix](report), encoding="utf-8")
