"""What was done, for people and for programs: a plain dictionary, and its JSON and Markdown."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.api import Quantized
from onnxq.config import Config
from onnxq.errors import ConfigError
from onnxq.facts import Checked, Fit, Grid, Plan, Ranges, Rebuilt, Sensitivities
from onnxq.files import replace_file
from onnxq.pipeline import Facts
from onnxq.scheme import QParams, Range
from onnxq.version import VERSION

Report = dict[str, Any]


def build(quantized: Quantized, config: Config, *, source: str, before: int, after: int) -> Report:
    """Gather everything that a run found.

    Args:
        quantized: the result.
        config: the options it was made with.
        source: name of the float model.
        before, after: sizes of the files in bytes.
    """
    facts = quantized.facts
    plan, checked, grid = facts[Plan], facts[Checked], _final_grid(facts)
    return {
        "onnxq": VERSION,
        "model": source,
        "target": config.target,
        "method": config.chosen_method,
        "weight_method": config.weight_method,
        "weight_bits": config.weight_bits,
        "act_bits": config.act_bits,
        "bits": list(config.bits),
        "symmetric": config.symmetric,
        "equalise": config.equalise,
        "reconstruct": config.reconstructs,
        "keep_bias": config.keep_bias,
        "rest": config.rest,
        "pack": config.pack,
        "exclude": list(config.exclude),
        "detector": {
            "family": quantized.detector.family,
            "task": quantized.detector.head.task,
            "size": list(quantized.detector.size),
            "preprocess": quantized.detector.preprocess.describe(),
            "why": quantized.detector.why,
        },
        "calibration": quantized.samples.description if quantized.samples else "given statistics",
        "doubts": list(quantized.doubts),
        "bytes": {"before": before, "after": after},
        "seconds": {name: round(seconds, 3) for name, seconds in quantized.timings.items()},
        "layers": {"integer": list(plan.layers), "fused": checked.fused, "unfused": list(checked.unfused)},
        "runtime": checked.runtime,
        "float": dict(sorted(plan.skipped.items())),
        "sqnr": {name: _finite(value) for name, value in checked.sqnr.items()},
        "simulated_sqnr": {name: _finite(value) for name, value in checked.simulated.items()},
        "sensitivity": list(_sensitivity(facts)),
        "activations": list(_activations(facts)),
        "weights": [
            {"tensor": weight.tensor, "layers": list(weight.users), **_grid(grid.weights[weight.tensor])}
            for weight in plan.weights
        ],
    }


def _sensitivity(facts: Facts) -> Iterable[Report]:
    """What each piece of the network costs alone, the worst first; nothing where that was not measured."""
    measured = facts.get(Sensitivities)
    for piece in measured.worst_first() if measured is not None else ():
        yield {"nodes": list(piece.nodes), "sqnr": _finite(piece.sqnr), "moved": _finite(100 * piece.moved)}


def ranges(quantized: Quantized) -> Report:
    """The range of every tensor that was quantized, for tools that take ranges, ready for JSON."""
    return {a["tensor"]: {"low": a["low"], "high": a["high"]} for a in _activations(quantized.facts)}


def _final_grid(facts: Facts) -> Grid:
    rebuilt = facts.get(Rebuilt)
    return facts[Grid] if rebuilt is None else rebuilt.over(facts[Grid])


def _activations(facts: Facts) -> Iterable[Report]:
    grid = _final_grid(facts)
    for point in facts[Plan].points:
        fit = facts[Ranges].groups[point.group]
        if grid.activations[point.tensor] is not facts[Grid].activations[point.tensor]:
            adjusted = grid.activations[point.tensor]
            fit = Fit(Range(adjusted.low, adjusted.high), method="error of outputs")
        yield {
            "tensor": point.tensor,
            "group": point.group,
            "method": fit.method,
            "low": float(np.min(fit.bounds.low)),
            "high": float(np.max(fit.bounds.high)),
            "sqnr": _finite(fit.sqnr),
            "clipped": fit.clipped,
            **_grid(grid.activations[point.tensor]),
        }


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


def to_markdown(report: Report) -> str:
    """The report as Markdown: what was done, what stayed float and why, and each tensor's range, worst first."""
    layers, sizes, detector = report["layers"], report["bytes"], report["detector"]
    fused = layers["fused"]
    accuracy = ", ".join(f"{name} {_dash(value)}" for name, value in report["sqnr"].items())
    worst_first = sorted(report["activations"], key=lambda a: math.inf if a["sqnr"] is None else a["sqnr"])
    parts = [
        f"# {report['model']}",
        _table(("", ""), [
            ("onnxq", report["onnxq"]),
            ("target", report["target"]),
            ("method", f"{report['method']}, W{report['weight_bits']}A{report['act_bits']}"),
            ("detector", f"{detector['family']}, {detector['size'][0]} x {detector['size'][1]}"),
            ("images", detector["preprocess"]),
            ("calibration", report["calibration"]),
            *(("warning", doubt) for doubt in report["doubts"]),
            ("layers on integers", len(layers["integer"])),
            (f"of these run so by {report['runtime'] or 'its runtime'}", "not asked" if fused is None else fused),
            ("size in bytes", f"{sizes['before']} before, {sizes['after']} after"),
            ("SQNR of outputs in dB", accuracy or "not measured"),
        ]),
        "## Float, and why",
        _table(("reason", "nodes"), Counter(report["float"].values()).most_common()),
        *_sensitivity_section(report["sensitivity"]),
        "## Activations, worst first",
        _table(
            ("tensor", "method", "low", "high", "bits", "SQNR dB", "clipped"),
            [
                (f"`{a['tensor']}`", a["method"], f"{a['low']:.4g}", f"{a['high']:.4g}", a["bits"],
                 _dash(a["sqnr"]), f"{100 * a['clipped']:.3f} %")
                for a in worst_first
            ],
        ),
        "## Seconds",
        _table(("pass", "seconds"), list(report["seconds"].items())),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _sensitivity_section(pieces: list[Report]) -> list[str]:
    if not pieces:
        return []
    rows = [
        (f"`{piece['nodes'][0]}`", _dash(piece["sqnr"]), "-" if piece["moved"] is None else f"{piece['moved']:.2f}")
        for piece in pieces
    ]
    head = ("alone on integers", "SQNR dB", "boxes moved %")
    return ["## Sensitivity, worst first", _table(head, rows)]


def _dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


FORMATS: Mapping[str, Callable[[Report], str]] = {".json": to_json, ".md": to_markdown}


def check_name(path: Path) -> None:
    """Find out before long work whether a report can be written under this name.

    Raises:
        ConfigError: its ending is none that a report can have.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"--report {path}: the name must end in {' or '.join(FORMATS)}")


def write(report: Report, path: Path) -> None:
    """Write a report in the format that the file's name ends in, whole or not at all.

    Raises:
        ConfigError: the ending is unknown, or the place cannot be written to.
    """
    check_name(path)
    with replace_file(path) as temporary:
        temporary.write_text(FORMATS[path.suffix](report), encoding="utf-8")
