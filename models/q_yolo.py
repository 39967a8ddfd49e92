"""Measure the tables of Q-YOLO (arXiv 2307.04816) on models of one's own, and print them as Markdown.

    python models/q_yolo.py yolov5n.onnx yolox_nano.onnx --calib coco/train2017 \\
        --annotations coco/instances_val2017.json --images coco/val2017 \\
        --cache q_yolo.json --document docs/q-yolo.md --plot docs/q-yolo.svg

Each way to choose ranges, at each width, with symmetric and asymmetric activations, with the first and the last Convs
float, at 8 bits or as narrow as the rest. Q/DQ stand in front of the Convs (target openvino), as in the paper, and the
files are evaluated in onnxruntime. The images are run once for each model; all ranges come from the histograms kept.

Every result is written to the cache at once and never measured again while the model, the images, the options and the
code are the same, so that a run that was broken off goes on where it was. The document is written after each result.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import onnxq.passes
from onnxq._files import atomic_write, check_writable
from onnxq.api import open_data, quantize
from onnxq.calibration.statistics_file import load_statistics, save_statistics
from onnxq.config import Config
from onnxq.console.terminal import guarded
from onnxq.errors import ConfigError, ModelError
from onnxq.evaluation.average_precision import METRICS, measure_precision
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.predictor import Settings
from onnxq.facts import DecodeBoundary, Plan, Statistics
from onnxq.ir import LAYERS, Model, Node, constant, downstream
from onnxq.ir.storage import load_proto
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantization_error import squared_error
from onnxq.numerics.range_methods.unilateral_histogram import unilateral_histogram
from onnxq.numerics.scheme import Scheme
from onnxq.numerics.silu import SILU_MINIMUM
from onnxq.passes.observe import Observe
from onnxq.passes.verify import Verify
from onnxq.pipeline import Pipeline
from onnxq.targets.stem import positions
from onnxq.yolo.detector import detect

TARGET = "openvino"
FLOAT_BITS = 32

METHODS: dict[str, dict[str, Any]] = {
    "minmax": {"method": "minmax", "reconstruct": False, "keep_bias": True},
    "percentile": {"method": "percentile", "reconstruct": False, "keep_bias": True},
    "mse": {"method": "mse", "reconstruct": False, "keep_bias": True},
    "uh": {"method": "uh", "reconstruct": False, "keep_bias": True},
    "uh, biases corrected": {"method": "uh", "reconstruct": False},
    "ours": {},
}
"""Row -> options. The paper's methods only choose ranges; ours is what the tool does when no method is given."""

ENDS = {
    "float": "first and last Convs float, as in the paper",
    "8": "first and last Convs at 8 bits, the tool's default",
    "narrow": "all Convs at these widths",
}
BITS = ("8-8", "4-4", "6-6", "4-8")
ACTIVATIONS = {"asymmetric": False, "symmetric": True}

_BEGIN, _END = "<!-- tables: written by models/q_yolo.py -->", "<!-- end of tables -->"
_FORMAT = "onnxq q_yolo 1"


@dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes:
        ends: a key of `ENDS`.
        activations: a key of `ACTIVATIONS`.
        bits: widths of weights and activations, as "4-8".
        method: a key of `METHODS`.
    """

    ends: str
    activations: str
    bits: str
    method: str

    def config(self, ends: Sequence[str], count: int) -> Config:
        """The tool's options.

        Args:
            ends: names of the first and the last layers.
            count: calibration images.
        """
        weight, activation = map(int, self.bits.split("-"))
        narrow = min(weight, activation) < 8
        # Without it the ends keep 8 bits, and so does what else reads a tensor that a last layer reads.
        forced = (f"op:Conv={weight}/{activation}",) if narrow and self.ends != "8" else ()
        return Config(
            target=TARGET,
            weight_bits=weight,
            act_bits=activation,
            symmetric=ACTIVATIONS[self.activations],
            bits=forced,
            exclude=tuple(ends) if self.ends == "float" else (),
            count=count,
            **METHODS[self.method],
        )


def settings(
    ends: Sequence[str], activations: Sequence[str], bits: Sequence[str], methods: Sequence[str]
) -> Iterator[Setting]:
    """All rows, in the order in which they are measured: after each quarter or so, one whole table is there."""
    for end, activation, width, method in itertools.product(ends, activations, bits, methods):
        if not (end == "8" and width == "8-8"):  # the same file as with all Convs at 8 bits
            yield Setting(end, activation, width, method)


# What a file costs


@dataclass(frozen=True)
class Layer:
    """A Conv in front of the decode.

    Attributes:
        name: its node's.
        products: multiplications for one image.
        parameters: numbers in its weight.
        weight_bits, act_bits: widths of its weight and its input; 32 where it stays float.
    """

    name: str
    products: int
    parameters: int
    weight_bits: int = FLOAT_BITS
    act_bits: int = FLOAT_BITS


def layers(model: Model, head: DecodeBoundary, plan: Plan | None = None) -> list[Layer]:
    """The Convs of a prepared graph with their widths in the plan; without one all are float.

    Raises:
        ModelError: the size of an image on the way is not known.
    """
    weights = {name: w.scheme.bits for w in plan.weights for name in w.users} if plan else {}
    points = {point.tensor: point.scheme.bits for point in plan.points} if plan else {}
    found = []
    for node in model.graph.nodes:
        weight = constant(node.inputs[1]) if node.op in ("Conv", "ConvTranspose") else None
        if weight is None or node.name not in head.body:
            continue
        widths = (weights[node.name], points[node.inputs[0].name]) if node.name in weights else ()
        found.append(Layer(node.name, _products(node, weight.size), weight.size, *widths))
    return found


def _products(conv: Node, parameters: int) -> int:
    """Every weight is used once at each position: of the output, or of a transposed Conv's input."""
    count = positions(conv.outputs[0] if conv.op == "Conv" else conv.inputs[0])
    if count is None:
        raise ModelError(f"{conv.name}: the size of its images is not known; export the model with a fixed size")
    return count * parameters


def operations(found: Iterable[Layer]) -> float:
    """OPs: two for each product, scaled by the wider of both operands, max(W, A) / 32."""
    return sum(2 * layer.products * max(layer.weight_bits, layer.act_bits) / FLOAT_BITS for layer in found)


def bit_operations(found: Iterable[Layer]) -> int:
    """BOPs: products x W x A."""
    return sum(layer.products * layer.weight_bits * layer.act_bits for layer in found)


def packed_size(size: int, found: Iterable[Layer]) -> float:
    """Bytes of a file of `size` bytes if its weights, a byte each, took no more than their bits."""
    return size - sum(layer.parameters * (1 - layer.weight_bits / 8) for layer in found if layer.weight_bits < 8)


# Results that are kept


class Cache:
    """Results by the digest of all that decides on them, in a JSON file.

    Raises:
        ConfigError: the file is none of this script's, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        check_writable(path)
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            known = stored["format"] == _FORMAT
            self.results = stored["results"]
        except (ValueError, KeyError, TypeError, OSError):
            known = False
        if not known:
            raise ConfigError(f"--cache {path}: not a cache of this script; remove it, or give another name")

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Keep a result; the file is written at once."""
        self.results[key] = result
        with atomic_write(self.path) as temporary:
            temporary.write_text(
                json.dumps({"format": _FORMAT, "results": self.results}, indent=1) + "\n", encoding="utf-8"
            )


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code_digest() -> str:
    """Of the tool's sources: another version gives other numbers."""
    folders = [Path(onnxq.__path__[0]), Path(onnxq.passes.__path__[0])]
    files = sorted((path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.py"))
    return _digest([(name, path.read_text(encoding="utf-8")) for name, path in files])


def _folder_digest(folder: Path) -> str:
    """Of the names and sizes of a folder's files."""
    return _digest([(path.name, path.stat().st_size) for path in sorted(folder.iterdir())] if folder.is_dir() else [])


# Measuring


@dataclass(frozen=True)
class Study:
    """What is measured, and with what.

    Attributes:
        calib: the folder with the calibration images.
        count: how many of them are taken.
        annotations: COCO detection file.
        images: the folder with its pictures.
        max_images: how many of these are taken; None: all.
        threads: pictures evaluated at a time; 0: one per core.
        cache: what was measured before; histograms are kept beside it.
    """

    calib: Path
    count: int
    annotations: Path
    images: Path
    max_images: int | None
    threads: int
    cache: Cache

    @cached_property
    def truth(self) -> GroundTruth:
        """What is on the pictures."""
        return GroundTruth.load(self.annotations, self.images, self.max_images)

    @cached_property
    def key(self) -> list[object]:
        """What all results depend on."""
        pictures = hashlib.sha256(self.annotations.read_bytes()).hexdigest(), [str(n) for n in self.truth.pictures]
        return [_code_digest(), version("onnxruntime"), _folder_digest(self.calib), self.count, pictures]


class Subject:
    """A model in the study."""

    def __init__(self, path: Path, study: Study) -> None:
        self.path = path
        self._study = study
        self._original = load_proto(path)
        self._sha = hashlib.sha256(self._original.SerializeToString(deterministic=True)).hexdigest()
        self._prepared, self._head, _ = self._planned(Config(target=TARGET))
        inner = downstream(self._prepared.graph.nodes, lambda node: node.op in LAYERS)
        names = [layer.name for layer in layers(self._prepared, self._head)]
        self.ends = tuple(name for name in names if name not in inner or name in self._head.last)

    def result(self, setting: Setting | None) -> dict[str, Any] | None:
        """What the cache has of a setting; of the float model for None."""
        return self._study.cache.results.get(self._key(setting))

    def measured(self, setting: Setting | None) -> dict[str, Any]:
        """Measure a setting now, whether it is there or not, and keep the result."""
        found = self._measure(setting)
        self._study.cache.add(self._key(setting), found)
        return found

    @cached_property
    def statistics(self) -> Statistics:
        """Of one run over the calibration images, kept in a file beside the cache."""
        cache = self._study.cache.path
        kept = cache.with_name(f"{cache.stem}.{self.path.stem}.{_digest(self._sha, self._study.key)[:12]}.npz")
        if kept.exists():
            return load_statistics(kept)
        passes = [*onnxq.passes.planning(Config(target=TARGET)), Observe(self._samples())]
        found = Pipeline(passes).run(Model(self._original))[Statistics]
        save_statistics(found, kept)
        return found

    def silu_outputs(self) -> list[str]:
        """Names of the tensors read by Convs that come straight out of a SiLU, in the graph's order."""
        return [point.tensor for point in self._planned(Config(target=TARGET))[2].points if point.silu_output]

    def _planned(self, config: Config) -> tuple[Model, DecodeBoundary, Plan]:
        prepared = Model(self._original)
        facts = Pipeline(onnxq.passes.planning(config)).run(prepared)
        return prepared, facts[DecodeBoundary], facts[Plan]

    def _samples(self) -> Any:
        study = self._study
        return open_data(str(study.calib), self._original, detect(self._original), Config(count=study.count))

    def _key(self, setting: Setting | None) -> str:
        if setting is None:
            return _digest(self._sha, self._study.key)
        config = setting.config(self.ends, self._study.count)
        # What was left to the tool, as it decides: two ways to say the same give one result.
        decided = {**dataclasses.asdict(config), "method": config.chosen_method, "reconstruct": config.reconstructs}
        return _digest(self._sha, self._study.key, decided)

    def _measure(self, setting: Setting | None) -> dict[str, Any]:
        start = time.perf_counter()
        model, plan = (self._original, None) if setting is None else self.quantized(setting)
        quantized = time.perf_counter()
        scores = measure_precision(model, self._study.truth, Settings(threads=self._study.threads))
        found = layers(self._prepared, self._head, plan)
        reasons = [plan.skipped[layer.name] for layer in found if layer.name in plan.skipped] if plan else []
        return {
            "model": self.path.name,
            "setting": dataclasses.asdict(setting) if setting else None,
            **{metric: _number(getattr(scores, metric)) for metric in METRICS},
            "bytes": model.ByteSize(),
            "packed_bytes": packed_size(model.ByteSize(), found),
            "ops": operations(found),
            "bops": bit_operations(found),
            "convs": len(found),
            "float_convs": Counter("first or last" if r.startswith("excluded") else r for r in reasons),
            "seconds_quantizing": quantized - start,
            "seconds_evaluating": time.perf_counter() - quantized,
        }

    def quantized(self, setting: Setting) -> tuple[onnx.ModelProto, Plan]:
        """The file of a setting, and what is quantized in it."""
        config = setting.config(self.ends, self._study.count)
        samples = self._samples() if config.reconstructs else None
        # The evaluation shows whether the file is right; to check every one in OpenVINO would double the time.
        passes = [p for p in onnxq.passes.default(config, self._original, samples) if not isinstance(p, Verify)]
        made = quantize(self._original, config=config, passes=passes, facts=(self.statistics,))
        return made.model, made.facts[Plan]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# Tables


def markdown(subjects: Sequence[Subject], rows: Sequence[Setting]) -> str:
    """What is in the cache of these rows, as tables: AP alone first, then all there is of each row."""
    lines: list[str] = []
    for subject in subjects:
        results = {row: found for row in rows if (found := subject.result(row)) is not None}
        plain = subject.result(None)
        if plain is not None:
            lines += ["", f"## {subject.path.stem}", "", *_overview(results, plain)]
        for ends, title in ENDS.items():
            of_ends = {row: found for row, found in results.items() if row.ends == ends}
            if plain is not None and of_ends:
                lines += ["", f"### {subject.path.stem}, {title}", "", *_table(of_ends, plain)]
    return "\n".join(lines).strip() + "\n"


def _overview(results: Mapping[Setting, dict[str, Any]], plain: dict[str, Any]) -> Iterator[str]:
    columns = sorted({(row.bits, row.activations) for row in results}, key=_bits_first)
    yield f"AP; float {plain['ap']:.2f}. W-A: bits of weights and activations, s: symmetric activations.\n"
    yield _line("first and last", "method", *(f"{bits}{' s' * ACTIVATIONS[kind]}" for bits, kind in columns))
    yield _line(*["---"] * (2 + len(columns)))
    for ends, method in itertools.product(ENDS, METHODS):
        cells = [results.get(Setting(ends, kind, bits, method)) for bits, kind in columns]
        if any(cells):
            yield _line(ends, method, *("" if cell is None else _score(cell["ap"]) for cell in cells))


def _table(results: Mapping[Setting, dict[str, Any]], plain: dict[str, Any]) -> Iterator[str]:
    headings = ["MB", "MB packed", "OPs G", "BOPs G", "seconds"]
    yield _line("W-A", "activations", "method", *METRICS.values(), *headings)
    yield _line(*["---"] * (3 + len(METRICS) + len(headings)))
    yield _line("32-32", "", "float", *_numbers(plain))
    order = list(METHODS)
    for row in sorted(results, key=lambda r: (_bits_first((r.bits, r.activations)), order.index(r.method))):
        yield _line(row.bits, row.activations, row.method, *_numbers(results[row]))
    found = next(iter(results.values()))
    kept = sum(found["float_convs"].values())
    reasons = "; ".join(f"{count} float: {reason}" for reason, count in found["float_convs"].items())
    yield f"\n{found['convs'] - kept} of {found['convs']} Convs quantized{'; ' + reasons if reasons else ''}."


def _bits_first(column: tuple[str, str]) -> tuple[int, int, str]:
    weight, activation = map(int, column[0].split("-"))
    return -activation, -weight, column[1]


def _numbers(found: dict[str, Any]) -> list[str]:
    return [
        *(_score(found[metric]) for metric in METRICS),
        f"{found['bytes'] / 1e6:.2f}",
        f"{found['packed_bytes'] / 1e6:.2f}",
        f"{found['ops'] / 1e9:.3f}",
        f"{found['bops'] / 1e9:.1f}",
        f"{found['seconds_quantizing']:.0f} + {found['seconds_evaluating']:.0f}",
    ]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def document_with(text: str, tables: str) -> str:
    """A document with its tables replaced.

    Raises:
        ConfigError: it has no place for them.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ConfigError(f"--document: has no lines {_BEGIN} and {_END}; put them where the tables are to stand")
    return f"{before}{begin}\n\n{tables}\n{end}{after}"


# The picture

_WIDTH, _HEIGHT = 820, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 804, 92, 272
_COLUMN = 2
_GREY, _BLUE, _ORANGE, _GREEN, _PINK = "#848d97", "#4a8fd9", "#d9822b", "#2fa04e", "#c25a9e"
"""Mid-tones, which can be read on white and on black."""


def picture(name: str, histogram: Histogram) -> str:
    """SVG of a SiLU's output: its histogram, the extremes, and the upper bounds of `uh` at 8 and at 4 bits.

    Below, the 16 levels of 4 bits, up to the maximum and up to the bound of `uh`. Same histogram, same bytes.

    Args:
        name: the tensor's.
        histogram: of its values, not empty.
    """
    low, high = histogram.low, histogram.high
    bound = {bits: float(unilateral_histogram(histogram, Scheme(bits), lower=SILU_MINIMUM).high) for bits in (8, 4)}
    margin = 0.02 * (high - low)
    x = partial(_place, low=low - margin, high=high + margin, start=_LEFT, end=_RIGHT)
    tops = _column_tops(histogram, x)
    least = math.floor(min(tops.values()))
    y = partial(_place, low=least, high=0, start=_BOTTOM, end=_TOP)
    shapes = [
        _text(_LEFT, 18, f"What a SiLU gives: {name}, {histogram.total:,} values", _GREY, "start", 14),
        *(_tick_y(y(power), f"{100 * 10.0**power:.{max(0, -power - 2)}f} %") for power in range(least, 1)),
        *(_tick_x(x(value), value) for value in _round_values(low, high)),
        _path([f"M{column} {_BOTTOM}V{y(top):.1f}h{_COLUMN}V{_BOTTOM}" for column, top in tops.items()], _BLUE),
        _text(14, (_TOP + _BOTTOM) / 2, "share of the values in a bin", _GREY, "middle", 12, turned=True),
    ]
    marks = [
        (low, f"min {low:.3f}", _ORANGE, 36, "start"),
        (bound[4], f"UH, 4 bits: {bound[4]:.2f}", _PINK, 54, "start"),
        (bound[8], f"UH, 8 bits: {bound[8]:.2f}", _GREEN, 72, "end"),
        (high, f"max {high:.2f}", _ORANGE, 36, "end"),
    ]
    for value, label, colour, height, anchor in marks:
        shapes.append(_rule(x(value), height, _BOTTOM, colour))
        shapes.append(_text(x(value) + (6 if anchor == "start" else -6), height + 10, label, colour, anchor))
    for top, greatest, what, colour in ((312, high, "to max", _ORANGE), (356, bound[4], "by UH", _PINK)):
        reach_low, _, step = (float(v) for v in Scheme(4).reach(SILU_MINIMUM, greatest))
        shapes += [_rule(x(reach_low + k * step), top, top + 12, colour) for k in range(16)]
        shapes.append(_text(_LEFT, top + 27, f"4 bits {what}: a level every {step:.2f}", colour, "start"))
    return _svg(_HEIGHT, shapes)


_ERROR_HEIGHT, _ERROR_TOP = 300, 36
_BOUNDS = 400
"""Upper bounds for which the error is drawn."""


def error_picture(name: str, histogram: Histogram) -> str:
    """SVG of the mean squared error of a SiLU's output over the upper bound, at 8 and at 4 bits.

    Each curve has a mark at the bound of `uh`, and ends at the maximum. Same histogram, same bytes.

    Args:
        name: the tensor's.
        histogram: of its values, not empty.
    """
    margin = 0.02 * (histogram.high - histogram.low)
    x = partial(_place, low=histogram.low - margin, high=histogram.high + margin, start=_LEFT, end=_RIGHT)
    highs = np.linspace(0, histogram.high, _BOUNDS + 1)[1:]
    errors = {bits: _mean_error(histogram, bits, highs) for bits in (8, 4)}
    least, most = (f(math.log10(v) for e in errors.values() for v in e) for f in (min, max))
    y = partial(_place, low=math.floor(least), high=math.ceil(most), start=_BOTTOM, end=_ERROR_TOP)
    shapes = [
        _text(_LEFT, 18, f"What the upper bound costs: {name}", _GREY, "start", 14),
        *(_tick_y(y(power), f"{10.0**power:g}") for power in range(math.floor(least), math.ceil(most) + 1)),
        *(_tick_x(x(value), value) for value in _round_values(histogram.low, histogram.high)),
        _text(14, (_ERROR_TOP + _BOTTOM) / 2, "mean squared error", _GREY, "middle", 12, turned=True),
    ]
    for bits, colour in ((8, _GREEN), (4, _PINK)):
        bound = float(unilateral_histogram(histogram, Scheme(bits), lower=SILU_MINIMUM).high)
        best = float(_mean_error(histogram, bits, np.array([bound]))[0])
        places = [f"{x(high):.1f} {y(math.log10(error)):.1f}" for high, error in zip(highs, errors[bits])]
        at_x, at_y = x(bound), y(math.log10(best))
        shapes += [
            f'<path d="M{"L".join(places)}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4" fill="{colour}"/>',
            _text(at_x, at_y - 10, f"UH, {bits} bits: {bound:.2f}", colour, "middle"),
            _text(_RIGHT, y(math.log10(errors[bits][-1])) + 18, f"minmax, {bits} bits", colour, "end"),
        ]
    return _svg(_ERROR_HEIGHT, shapes)


def _mean_error(histogram: Histogram, bits: int, highs: NDArray[np.float64]) -> NDArray[np.float64]:
    lows = np.full(highs.shape, SILU_MINIMUM)
    return squared_error(histogram, Scheme(bits), lows, highs) / histogram.total


def _svg(height: int, shapes: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">'
    return "\n".join([head, *shapes, "</svg>"]) + "\n"


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)


def _column_tops(histogram: Histogram, x: Any) -> dict[int, float]:
    """Left edge of each column of the picture -> log10 of the greatest share that a bin in it has."""
    counts, edges = histogram.occupied()
    tops: dict[int, float] = {}
    for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist()):
        if count:
            column = int(x((left + right) / 2)) // _COLUMN * _COLUMN
            tops[column] = max(tops.get(column, -math.inf), math.log10(count / histogram.total))
    return tops


def _round_values(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two values, about eight of them."""
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick_x(x: float, value: float) -> str:
    return _rule(x, _BOTTOM, _BOTTOM + 5, _GREY) + _text(x, _BOTTOM + 20, f"{value:g}", _GREY, "middle")


def _tick_y(y: float, text: str) -> str:
    line = f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="{_GREY}" stroke-opacity="0.35"/>'
    return line + _text(_LEFT - 8, y + 4, text, _GREY, "end")


def _rule(x: float, top: float, bottom: float, colour: str) -> str:
    return f'<path d="M{x:.1f} {top}V{bottom}" stroke="{colour}" stroke-width="1.5"/>'


def _path(parts: Iterable[str], colour: str) -> str:
    return f'<path d="{"".join(parts)}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, colour: str, anchor: str, size: int = 12, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    plain = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}"{turn}>{plain}</text>'
    )


def draw(subject: Subject, tensor: str | None, target: Path) -> None:
    """Write the picture of a tensor.

    Args:
        subject: the model.
        tensor: its name; None: of the SiLUs' outputs that Convs read, the one in the middle, ordered by how far the
            maximum is beyond the bound of `uh` at 4 bits.
        target: file to write.

    Raises:
        ConfigError: it is not among these outputs, or the file cannot be written.
    """
    known = {name: subject.statistics.histograms[name] for name in subject.silu_outputs()}
    if tensor is None and known:
        ordered = sorted(
            known, key=lambda name: known[name].high / float(unilateral_histogram(known[name], Scheme(4)).high)
        )
        tensor = ordered[len(ordered) // 2]
    if tensor not in known:
        raise ConfigError(f"--tensor {tensor}: no SiLU that a Conv reads; there are {', '.join(known) or 'none'}")
    with atomic_write(target) as temporary:
        temporary.write_text(picture(tensor, known[tensor]), encoding="utf-8")


# The command line


def _head(study: Study) -> str:
    names = ["onnx", "onnxruntime", "openvino", "numpy"]
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"Calibration: {study.count} images. AP: {len(study.truth.pictures)} images. "
        f"Python {platform.python_version()}, {found}. Seconds: quantizing + evaluating.\n"
    )


def _run(args: argparse.Namespace) -> None:
    for path in filter(None, (args.document, args.plot)):
        check_writable(path)
    if args.document is not None:
        document_with(args.document.read_text(encoding="utf-8"), "")
    study = Study(
        args.calib, args.count, args.annotations, args.images, args.max_images, args.threads, Cache(args.cache)
    )
    subjects = [Subject(path, study) for path in args.models]
    rows = list(settings(args.ends, args.activations, args.bits, args.methods))
    if args.plot is not None:
        draw(subjects[0], args.tensor, args.plot)
    todo = [(subject, row) for row in (None, *rows) for subject in subjects]
    for number, (subject, row) in enumerate(todo, start=1):
        if subject.result(row) is None:
            found = subject.measured(row)
            what = "float" if row is None else f"{row.method}, {row.bits}, {row.activations}, ends {row.ends}"
            seconds = found["seconds_quantizing"] + found["seconds_evaluating"]
            line = f"{number}/{len(todo)} {subject.path.stem}: {what}: AP {_score(found['ap'])}, {seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)
            _write(args.document, study, subjects, rows)
    if args.document is None:
        print(_head(study) + "\n" + markdown(subjects, rows), end="")
    else:
        _write(args.document, study, subjects, rows)


def _write(target: Path | None, study: Study, subjects: Sequence[Subject], rows: Sequence[Setting]) -> None:
    if target is not None:
        text = document_with(target.read_text(encoding="utf-8"), _head(study) + "\n" + markdown(subjects, rows))
        with atomic_write(target) as temporary:
            temporary.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--calib", type=Path, required=True, metavar="DIR", help="calibration images")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="how many of them (100)")
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="COCO detection file")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder with its pictures")
    parser.add_argument("--max-images", type=int, metavar="N", help="evaluate on the first N of them")
    parser.add_argument("--cache", type=Path, required=True, metavar="JSON", help="results, to go on from")
    parser.add_argument("--document", type=Path, metavar="MD", help="whose tables are replaced; else they are printed")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="histogram of one tensor of the first model")
    parser.add_argument("--tensor", metavar="NAME", help="which (one that is in no way special)")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--bits", nargs="+", choices=BITS, default=BITS, help="of weights and activations")
    parser.add_argument("--activations", nargs="+", choices=tuple(ACTIVATIONS), default=tuple(ACTIVATIONS))
    parser.add_argument("--ends", nargs="+", choices=tuple(ENDS), default=tuple(ENDS), help="first and last Convs")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="pictures evaluated at a time (all cores)")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args), args.debug)


if __name__ == "__main__":
    raise SystemExit(main())
