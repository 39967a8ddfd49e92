"""Measure the tables of Q-YOLO (arXiv 2307.04816) on your own models, and print them as Markdown.

    python -m docs.tools.q_yolo yolov5n.onnx yolox_nano.onnx --calib coco/train2017 \\
        --annotations coco/instances_val2017.json --images coco/val2017 \\
        --cache q_yolo.json --document docs/q-yolo.md --plot docs/q-yolo.svg

The tables compare range methods, bit widths, symmetric and asymmetric activations, and the first and the last Convs in
float, at 8 bits or as narrow as the rest. Q/DQ pairs stand in front of the Convs (target openvino), as in the paper.
onnxruntime runs the files. Each model is observed once, and all ranges come from the saved histograms; only the default
at 8 bits, whose scales migrate, is calibrated by itself.

Each result is written to the cache at once. It is measured again only if the model, the images, the options or the code
change, so an interrupted run continues. The document is written after each result. With `--workers`, each worker
measures a cell of the tables at a time.
"""

import argparse
import dataclasses
import hashlib
import importlib
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
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
from docs.tools.q_yolo_tables import markdown, score
from docs.tools.result_cache import Cache, digest
from onnxq.api import load_statistics, open_data, quantize, save_statistics
from onnxq.cluster import open_pool
from onnxq.config import Config
from onnxq.console.terminal import guarded
from onnxq.console.workers import add_workers
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
from onnxq.qdq.placement import ENDS_BITS
from onnxq.qdq.reasons import summary_of
from onnxq.runtime.pool import IN_PROCESS, Finished, Pool
from onnxq.runtime.session import limited_cores
from onnxq.yolo.detector import detect

_BEGIN, _END = "<!-- tables: written by docs/tools/q_yolo.py -->", "<!-- end of tables -->"


def _code_digest() -> str:
    """Return a digest of the sources of onnxq: another version gives other numbers."""
    folders = [Path(onnxq.__path__[0]), Path(onnxq.passes.__path__[0])]
    files = sorted((path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.py"))
    return digest([(name, path.read_text(encoding="utf-8")) for name, path in files])


def _folder_digest(folder: Path) -> str:
    """Return a digest of the names and sizes of the files of a folder."""
    return digest([(path.name, path.stat().st_size) for path in sorted(folder.iterdir())] if folder.is_dir() else [])


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
        cache: results so far; histograms are stored beside its file. None on a worker.
    """

    calib: Path
    count: int
    annotations: Path
    images: Path
    max_images: int | None
    threads: int
    cache: Any

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
        narrow = self._planned(Config(target=TARGET, weight_bits=4, act_bits=4, include=self.ends))[2]
        self.wide = tuple(weight.users[0] for weight in narrow.weights if weight.scheme.bits == ENDS_BITS)

    def result(self, setting: Setting | None) -> dict[str, Any] | None:
        """Return the cached result of a setting, or of the float model if it is None; None if it is not cached."""
        return self._study.cache.results.get(self.key(setting))

    def measured(self, setting: Setting | None) -> dict[str, Any]:
        """Measure a setting, cached or not, and add the result to the cache."""
        return self.add(setting, self.measure(setting))

    def add(self, setting: Setting | None, found: dict[str, Any]) -> dict[str, Any]:
        """Add the result of a setting to the cache, and return it."""
        self._study.cache.add(self.key(setting), found)
        return found

    @cached_property
    def statistics(self) -> Statistics:
        """Return the statistics of the calibration images; they are stored beside the cache."""
        return self.observed(IN_PROCESS)

    def observed(self, pool: Pool) -> Statistics:
        """Return the statistics, observed in a pool unless they are stored."""
        cache = self._study.cache.path
        kept = cache.with_name(f"{cache.stem}.{self.path.stem}.{digest(self._sha, self._study.key)[:12]}.npz")
        if kept.exists():
            return load_statistics(kept)
        config = Config(target=TARGET, include=self.ends)  # for all rows, whatever they keep float
        passes = [*onnxq.passes.prepare_and_plan(config), Observe(self._samples(), pool=pool)]
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

    def key(self, setting: Setting | None) -> str:
        """Return what tells the result of a setting from those of others."""
        if setting is None:
            return digest(self._sha, self._study.key)
        config = setting.config(self.ends, self._study.count, self.wide)
        # Defaults are resolved: two settings with the same effect share a result.
        decided = {**dataclasses.asdict(config), "method": config.method_used, "reconstruct": config.reconstructs}
        return digest(self._sha, self._study.key, decided)

    def measure(self, setting: Setting | None) -> dict[str, Any]:
        """Measure a setting."""
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
        config = setting.config(self.ends, self._study.count, self.wide)
        # Scales that migrate, and error feedback, need more than the histograms that the other rows share.
        own = config.migrates or config.rounds_with_feedback
        samples = self._samples() if config.reconstructs or own else None
        # The evaluation shows whether the file is right; running each in OpenVINO would double the time.
        passes = [p for p in onnxq.passes.default(config, self._original, samples) if not isinstance(p, Verify)]
        given = () if own else (self.statistics,)
        made = quantize(self._original, data=samples, config=config, passes=passes, facts=given)
        return made.model, made.facts[Plan]


class _Cells:
    """Measures cells of the tables on a worker; what it reads is kept for the next cell.

    Args:
        study: the data.
        paths: of the models.
        statistics: of each model.
        share: cores to use.
    """

    def __init__(self, study: Study, paths: Sequence[Path], statistics: Sequence[Statistics], share: int) -> None:
        self._study = dataclasses.replace(study, cache=None)
        self._paths, self._statistics, self._share = paths, statistics, share
        self._subjects: dict[int, Subject] = {}

    def __call__(self, cell: tuple[int, Setting | None], finished: Finished) -> dict[str, Any]:
        """Return the result of a setting, and None for the float model, of the model of a number."""
        number, setting = cell
        with limited_cores(self._share):
            if number not in self._subjects:
                self._subjects[number] = subject = Subject(self._paths[number], self._study)
                subject.statistics = self._statistics[number]
            return self._subjects[number].measure(setting)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# The document


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
    todo = [(number, row) for row in (None, *rows) for number in range(len(subjects))]
    left: dict[str, Cell] = {}
    for place, (number, row) in enumerate(todo, start=1):
        if subjects[number].result(row) is None:
            left.setdefault(subjects[number].key(row), (place, number, row))
    with open_pool(args.workers) as pool:
        for (place, number, row), found in _measured(list(left.values()), study, subjects, pool):
            subject = subjects[number]
            subject.add(row, found)
            what = "float" if row is None else f"{row.method}, {row.bits}, {row.activations}, ends {row.ends}"
            seconds = found["seconds_quantizing"] + found["seconds_evaluating"]
            line = f"{place}/{len(todo)} {subject.path.stem}: {what}: AP {score(found['ap'])}, {seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)
            _write(args.document, study, subjects, rows)
    if args.document is None:
        print(_head(study) + "\n" + markdown(subjects, rows), end="")
    else:
        _write(args.document, study, subjects, rows)


Cell = tuple[int, int, Setting | None]
"""Number of a cell among all, of its model, and the setting; None for the float model."""


def _measured(
    cells: Sequence[Cell], study: Study, subjects: Sequence[Subject], pool: Pool
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Yield the cells with their results, as they end."""
    if not pool.is_remote or not cells:
        yield from ((cell, subjects[cell[1]].measure(cell[2])) for cell in cells)
        return
    statistics = [subject.observed(pool) for subject in subjects]
    work = _Cells(study, [subject.path for subject in subjects], statistics, pool.cores)
    tasks = [(number, setting) for _, number, setting in cells]
    yield from ((cells[place], found) for place, found in pool.run(work, tasks, lambda _: None))


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
    add_workers(parser, "measure the cells")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args), args.debug)


if __name__ == "__main__":
    # Workers import what they are sent by the name of this module, which `__main__` is not.
    raise SystemExit(importlib.import_module("docs.tools.q_yolo").main())
