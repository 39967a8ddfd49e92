"""What was done, for people and for programs: a plain dictionary, and its JSON, Markdown and HTML."""

import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxq._files import atomic_write
from onnxq.api import Quantized
from onnxq.config import Config
from onnxq.errors import ConfigError
from onnxq.facts import FittedRange, Plan, Sensitivities, Statistics, Verification
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.scheme import QParams
from onnxq.pipeline import Facts
from onnxq.qdq.tensor_result import TensorResult, final_qparams, tensor_results
from onnxq.report.findings import findings
from onnxq.report.html import to_html
from onnxq.report.markdown import to_markdown
from onnxq.version import VERSION

Report = dict[str, Any]

_COLUMNS = 96
"""Of a histogram, of the 2048 that it is counted in."""

_SCALES = 64
"""Scales of a weight that are told, evenly spaced among the sorted ones."""


def build(
    quantized: Quantized,
    config: Config,
    *,
    source: str,
    before: int,
    after: int,
    search: Report | None = None,
    evaluation: Report | None = None,
) -> Report:
    """Gather everything that a run found.

    Args:
        quantized: the result.
        config: the options it was made with.
        source: name of the float model.
        before, after: sizes of the files in bytes.
        search: what a search for layers to keep at a higher precision found; None where there was none.
        evaluation: the AP of the float and of the quantized model, as `evaluate.summary` has it; None: not measured.
    """
    measured = {"search": search, "evaluation": evaluation}
    report = _gathered(quantized, config, source, {"before": before, "after": after}) | measured
    return {**report, "findings": findings(report)}


def _gathered(quantized: Quantized, config: Config, source: str, sizes: Mapping[str, int]) -> Report:
    facts = quantized.facts
    plan, checked, found = facts[Plan], facts[Verification], list(tensor_results(facts))
    return {
        "onnxq": VERSION,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("onnx", "onnxruntime", "numpy")},
        },
        "model": source,
        "target": config.target,
        "method": config.method_used,
        "weight_method": config.weight_method,
        "weight_bits": config.weight_bits,
        "act_bits": config.act_bits,
        "bits": list(config.bits),
        "symmetric": config.symmetric,
        "equalize": config.equalize,
        "reconstruct": config.reconstructs,
        "keep_bias": config.keep_bias,
        "rest": config.float_type,
        "pack": config.pack,
        "exclude": list(config.exclude),
        "include": list(config.include),
        "options": config.flags,
        "detector": {
            "family": quantized.detector.family,
            "task": quantized.detector.outputs.task,
            "size": list(quantized.detector.size),
            "preprocess": quantized.detector.preprocess.describe(),
            "why": quantized.detector.why,
        },
        "calibration": quantized.samples.description if quantized.samples else "given statistics",
        "samples": facts[Statistics].samples,
        "synthetic": quantized.samples is not None and quantized.samples.synthetic,
        "doubts": list(quantized.warnings),
        "warnings": list(checked.warnings),
        "bytes": dict(sizes),
        "seconds": {name: round(seconds, 3) for name, seconds in quantized.timings.items()},
        "layers": {"integer": list(plan.layers), "fused": checked.fused, "unfused": list(checked.unfused)},
        "runtime": checked.runtime,
        "float": {name: {"code": str(why.code), "text": why.text} for name, why in sorted(plan.skipped.items())},
        "operators": {"float": _counted(plan.ops.values()), "quantized": _operators(quantized.model)},
        "sqnr": {name: _finite(value) for name, value in checked.sqnr.items()},
        "simulated_sqnr": {name: _finite(value) for name, value in checked.simulated.items()},
        "sensitivity": list(_sensitivity(facts)),
        "activations": list(_activations(found)),
        "values": _values(found),
        "weights": list(_weights(quantized)),
    }


def _sensitivity(facts: Facts) -> Iterable[Report]:
    """What each piece of the network costs alone, the worst first; nothing where that was not measured."""
    measured = facts.get(Sensitivities)
    for piece in measured.worst_first() if measured is not None else ():
        yield {"nodes": list(piece.nodes), "sqnr": _finite(piece.sqnr), "moved": _finite(100 * piece.moved)}


def ranges(quantized: Quantized) -> Report:
    """The range of every tensor that was quantized, for tools that take ranges, ready for JSON."""
    return {a["tensor"]: {"low": a["low"], "high": a["high"]} for a in _activations(tensor_results(quantized.facts))}


def _activations(found: Iterable[TensorResult]) -> Iterable[Report]:
    for outcome in found:
        point = outcome.point
        yield {
            "tensor": point.tensor,
            "group": point.group,
            "users": list(point.users),
            "method": outcome.fit.method,
            **_cost(outcome.fit),
            **_grid(outcome.qparams),
            "grid": [outcome.qparams.low, outcome.qparams.high],
            "silu_input": point.silu_input,
        }


def _values(found: Iterable[TensorResult]) -> Report:
    """Of each group what was seen of its values, and what the methods would have made of them."""
    first = {outcome.point.group: outcome for outcome in reversed(list(found))}
    return {
        group: {
            **_histogram(outcome.values),
            "methods": {name: _cost(fit) for name, fit in outcome.alternatives().items()},
        }
        for group, outcome in sorted(first.items())
        if outcome.values is not None
    }


def _cost(fit: FittedRange) -> Report:
    return {
        "low": float(np.min(fit.bounds.low)),
        "high": float(np.max(fit.bounds.high)),
        "sqnr": _finite(fit.sqnr),
        "clipped": fit.clipped,
    }


def _histogram(histogram: Histogram) -> Report:
    """A histogram in columns of one width, coarse enough to be looked at."""
    counts, edges = histogram.occupied()
    columns = min(_COLUMNS, len(counts))
    low, span = float(edges[0]), float(edges[-1] - edges[0])
    middles = (edges[:-1] + edges[1:]) / 2
    shares = (middles - low) / span if span > 0 else np.zeros(len(middles))
    index = np.minimum((shares * columns).astype(np.intp), columns - 1)
    sums = np.zeros(columns, np.int64)
    np.add.at(sums, index, counts)
    return {"low": low, "high": float(edges[-1]), "counts": sums.tolist()}


def _weights(quantized: Quantized) -> Iterable[Report]:
    plan, grid = quantized.facts[Plan], final_qparams(quantized.facts)
    nodes = {node.name: node for node in quantized.model.graph.node}
    for weight in plan.weights:
        layer, qparams = weight.users[0], grid.weights[weight.tensor]
        yield {
            "tensor": weight.tensor,
            "layers": list(weight.users),
            "kind": _kind(plan.ops[layer], nodes.get(layer), qparams.scale.size),
            **_grid(qparams),
            **_channels(qparams),
        }


def _kind(op: str, node: onnx.NodeProto | None, channels: int) -> str:
    """What a layer is, in a word or two: `depthwise Conv`, `3x3 Conv`, `MatMul`."""
    if op != "Conv":
        return op
    if node is None or node.op_type != "Conv":
        return "1x1 Conv"  # of Convs these alone are written as products of matrices
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("group", 1) == channels > 1:
        return "depthwise Conv"
    kernel = attributes.get("kernel_shape")
    return f"{'x'.join(map(str, kernel))} Conv" if kernel else "Conv"


def _channels(qparams: QParams) -> Report:
    """How many scales a weight has, and some of them, the greatest first."""
    scales = np.sort(np.ravel(qparams.scale))[::-1]
    told = np.unique(np.linspace(0, len(scales) - 1, min(_SCALES, len(scales))).round().astype(np.intp))
    return {"channels": len(scales), "scales": [float(scale) for scale in scales[told]]}


def _operators(model: onnx.ModelProto) -> dict[str, int]:
    return _counted(node.op_type for node in model.graph.node)


def _counted(operators: Iterable[str]) -> dict[str, int]:
    """How many of each, by name."""
    return dict(sorted(Counter(operators).items()))


def _grid(qparams: QParams) -> Report:
    return {
        "bits": qparams.scheme.bits,
        "axis": qparams.scheme.axis,
        "scale": [float(qparams.scale.min()), float(qparams.scale.max())],
        "zero_point": sorted({int(z) for z in np.ravel(qparams.zero_point)}),
    }


def _finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return round(value, 3) if math.isfinite(value) else None


def to_json(report: Report) -> str:
    """The report as JSON."""
    return json.dumps(report, indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Report], str]] = {".json": to_json, ".md": to_markdown, ".html": to_html}


def check_name(path: Path) -> None:
    """Find out before long work whether a report can be written under this name.

    Raises:
        ConfigError: its ending is none that a report can have.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"--report {path}: the name must end in {', '.join(FORMATS)}")


def write(report: Report, path: Path) -> None:
    """Write a report in the format that the file's name ends in, whole or not at all.

    Raises:
        ConfigError: the ending is unknown, or the place cannot be written to.
    """
    check_name(path)
    with atomic_write(path) as temporary:
        temporary.write_text(FORMATS[path.suffix](report), encoding="utf-8")
