"""Measure the tables of Q-YOLO (arXiv 2307.04816) on your own models, and print them as Markdown.

    python -m docs.tools.q_yolo yolov5n.onnx yolox_nano.onnx --calib coco/train2017 \\
        --annotations coco/instances_val2017.json --images coco/val2017 \\
        --cache q_yolo.json --document docs/q-yolo.md --plot docs/q-yolo.svg

The tables compare range methods, bit widths, symmetric and asymmetric activations, and the first and the last Convs in
float, at 8 bits or as narrow as the rest. Q/DQ pairs stand in front of the Convs (target openvino), as in the paper.
onnxruntime runs the files. Each model is observed once, and all ranges come from the saved histograms; only the default
at 8 bits, whose scales migrate, is calibrated by itself.

Each result is written to the cache at once. It is measured again only if the model, the images, the options or the code
change, so an interrupted run continues. The document is written after each result.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

import onnxq.passes
from docs.tools.costs import bit_operations, layers, operations, packed_size
from docs.tools.histogram_plots import picture
from docs.tools.q_yolo_settings import ACTIVATIONS, BITS, ENDS, METHODS, TARGET, Setting, settings
from onnxq.api import load_statistics, open_data, quantize, save_statistics
from onnxq.config import Config
from onnxq.console.terminal import guarded
from onnxq.errors import ConfigError
from onnxq.evaluation.average_precision import measure_precision
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.predictor import Settings
from onnxq.evaluation.scoring.averages import METRICS
from onnxq.facts import DecodeBoundary, Plan, Statistics
from onnxq.ir import LAYERS, Model, downstream
from onnxq.ir.files import atomic_write, check_writable
from onnxq.ir.storage import load_proto
from onnxq.numerics.range_methods.unilateral_histogram import unilateral_histogram
from onnxq.numerics.scheme import Scheme
from onnxq.passes.observe import Observe
from onnxq.passes.verify import Verify
from onnxq.pipeline import Pipeline
from onnxq.qdq.reasons import summary_of
from onnxq.yolo.detector import detect

_BEGIN, _END = "<!-- tables: written by docs/tools/q_yolo.py -->", "<!-- end of tables -->"
_FORMAT = "onnxq q_yolo 1"


class Cache:
    """Results in a JSON file, keyed by a digest of everything that they depend on.

    Raises:
        ConfigError: the file is not a cache of this script, or cannot be written.
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
        """Add a result and write the file."""
        self.results[key] = result
        with atomic_write(self.path) as temporary:
            temporary.write_text(
                json.dumps({"format": _FORMAT, "results": self.results}, indent=1) + "\n", encoding="utf-8"
            )


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code_digest() -> str:
    """Return a digest of the sources of onnxq: another version gives other numbers."""
    folders = [Path(onnxq.__path__[0]), Path(onnxq.passes.__path__[0])]
    files = sorted((path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.py"))
    return _digest([(name, path.read_text(encoding="utf-8")) for name, path in files])


def _folder_digest(folder: Path) -> str:
    """Return a digest of the names and sizes of the files of a folder."""
    return _digest([(path.name, path.stat().st_size) for path in sorted(folder.iterdir())] if folder.is_dir() else [])


# Measuring


@dataclass(frozen=True)
class Study:
    """The data that all models are measured with.

    Attributes:
        calib: the folder with the calibration images.
        count: number of calibration images.
        annotations: COCO detection file.
        images: the folder with its images.
        max_images: number of images to evaluate on; None: all.
        threads: images evaluated at a time; 0: one per core.
        cache: results so far; histograms are stored beside its file.
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
        """Return the ground truth."""
        return GroundTruth.load(self.annotations, self.images, self.max_images)

    @cached_property
    def key(self) -> list[object]:
        """Return what all results depend on."""
        pictures = hashlib.sha256(self.annotations.read_bytes()).hexdigest(), [str(n) for n in self.truth.images]
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
        """Return the cached result of a setting, or of the float model if it is None; None if it is not cached."""
        return self._study.cache.results.get(self._key(setting))

    def measured(self, setting: Setting | None) -> dict[str, Any]:
        """Measure a setting, cached or not, and add the result to the cache."""
        found = self._measure(setting)
        self._study.cache.add(self._key(setting), found)
        return found

    @cached_property
    def statistics(self) -> Statistics:
        """Return the statistics of the calibration images; they are stored beside the cache."""
        cache = self._study.cache.path
        kept = cache.with_name(f"{cache.stem}.{self.path.stem}.{_digest(self._sha, self._study.key)[:12]}.npz")
        if kept.exists():
            return load_statistics(kept)
        config = Config(target=TARGET, include=self.ends)  # for all rows, whatever they keep float
        passes = [*onnxq.passes.prepare_and_plan(config), Observe(self._samples())]
        found = Pipeline(passes).run(Model(self._original))[Statistics]
        save_statistics(found, kept)
        return found

    def silu_outputs(self) -> list[str]:
        """Return the names of the SiLU outputs that Convs read, in the order of the graph."""
        return [point.tensor for point in self._planned(Config(target=TARGET))[2].points if point.silu_output]

    def _planned(self, config: Config) -> tuple[Model, DecodeBoundary, Plan]:
        prepared = Model(self._original)
        facts = Pipeline(onnxq.passes.prepare_and_plan(config)).run(prepared)
        return prepared, facts[DecodeBoundary], facts[Plan]

    def _samples(self) -> Any:
        count = Config(count=self._study.count)
        return open_data(str(self._study.calib), self._original, detect(self._original), count)

    def _key(self, setting: Setting | None) -> str:
        if setting is None:
            return _digest(self._sha, self._study.key)
        config = setting.config(self.ends, self._study.count)
        # Defaults are resolved: two settings with the same effect share a result.
        decided = {**dataclasses.asdict(config), "method": config.method_used, "reconstruct": config.reconstructs}
        return _digest(self._sha, self._study.key, decided)

    def _measure(self, setting: Setting | None) -> dict[str, Any]:
        start = time.perf_counter()
        model, plan = (self._original, None) if setting is None else self.quantized(setting)
        quantized = time.perf_counter()
        scores = measure_precision(model, self._study.truth, Settings(threads=self._study.threads, runtime="ort"))
        found = layers(self._prepared, self._head, plan)
        skipped = plan.skipped if plan else {}
        reasons = [summary_of(skipped[layer.name]) for layer in found if layer.name in skipped]
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
        """Return the quantized model of a setting, and its plan."""
        config = setting.config(self.ends, self._study.count)
        # Scales that migrate, and error feedback, need more than the histograms that the other rows share.
        own = config.migrates or config.rounds_with_feedback
        samples = self._samples() if config.reconstructs or own else None
        # The evaluation shows whether the file is right; running each in OpenVINO would double the time.
        passes = [p for p in onnxq.passes.default(config, self._original, samples) if not isinstance(p, Verify)]
        given = () if own else (self.statistics,)
        made = quantize(self._original, data=samples, config=config, passes=passes, facts=given)
        return made.model, made.facts[Plan]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# Tables


def markdown(subjects: Sequence[Subject], rows: Sequence[Setting]) -> str:
    """Return the cached results of these rows as tables: AP alone first, then all numbers of each row."""
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
    """Return a document with its tables replaced.

    Raises:
        ConfigError: the document does not mark where the tables belong.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ConfigError(f"--document: has no lines {_BEGIN} and {_END}; put them where the tables belong")
    return f"{before}{begin}\n\n{tables}\n{end}{after}"


# The plot


def draw(subject: Subject, tensor: str | None, target: Path) -> None:
    """Write the plot of a tensor.

    Args:
        subject: the model.
        tensor: its name; None: the median of the SiLU outputs that Convs read, ordered by the ratio of the maximum to
            the bound of `uh` at 4 bits.
        target: file to write.

    Raises:
        ConfigError: the tensor is not among these outputs, or the file cannot be written.
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
        f"Calibration: {study.count} images. AP: {len(study.truth.images)} images. "
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
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--calib", type=Path, required=True, metavar="DIR", help="calibration images")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="number of calibration images (100)")
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="COCO detection file")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder with its images")
    parser.add_argument("--max-images", type=int, metavar="N", help="evaluate on the first N of them")
    parser.add_argument("--cache", type=Path, required=True, metavar="JSON", help="results; a run continues from it")
    parser.add_argument("--document", type=Path, metavar="MD", help="replace its tables; default: print them")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="plot the histogram of one tensor of the first model")
    parser.add_argument("--tensor", metavar="NAME", help="the tensor to plot (default: a typical one)")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--bits", nargs="+", choices=BITS, default=BITS, help="bit widths of weights and activations")
    parser.add_argument("--activations", nargs="+", choices=tuple(ACTIVATIONS), default=tuple(ACTIVATIONS))
    parser.add_argument("--ends", nargs="+", choices=tuple(ENDS), default=tuple(ENDS), help="first and last Convs")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="images evaluated at a time (all cores)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args), args.debug)


if __name__ == "__main__":
    raise SystemExit(main())
