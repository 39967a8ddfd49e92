"""Quantize models with onnxq and with other tools, and print the measurements as Markdown, a table per model.

    python -m docs.tools.side_by_side yolov5n.onnx yolov8n.onnx --calib coco/train2017 \\
        --trained yolov5n.onnx --annotations coco/instances_val2017.json --images coco/val2017

The other tools get settings that their users must find for themselves: opset 13, a name for every node, the decode
excluded, weights per channel. NNCF takes part if it is installed (`pip install nncf`); onnxruntime's quantizer needs
sympy. Each tool runs in a process of its own; seconds and peak memory are those of the process.
"""

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx

from onnxq.api import open_data, plan
from onnxq.config import Config
from onnxq.evaluation.average_precision import measure_precision
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.latency import measure_latency
from onnxq.evaluation.predictor import Settings
from onnxq.ir import Model
from onnxq.ir.storage import load_proto
from onnxq.passes.normalize import Normalize
from onnxq.pipeline import Pipeline
from onnxq.progress import silent
from onnxq.runtime import RUNTIMES
from onnxq.targets import TARGETS
from onnxq.yolo.detector import detect

_THREADS = (1, 2)


@dataclass(frozen=True)
class Row:
    """One file of a model, and its measurements."""

    title: str
    runtime: str | None
    path: Path
    seconds: float | None = None
    peak_megabytes: float | None = None


def _named(path: Path, folder: Path) -> Path:
    """Write the model as the other tools need it: opset 13 or later, and a name for every node."""
    working = Model(load_proto(path))
    Pipeline([Normalize()]).run(working)
    named = folder / f"{path.stem}.named.onnx"
    onnx.save(working.to_proto(), named)
    return named


def _decode(path: Path) -> list[str]:
    """Return the names of the nodes of the decode."""
    chosen, _ = plan(path)
    names = {node.name for node in load_proto(path).graph.node}
    return [name for name, reason in chosen.skipped.items() if reason.code == "decode" and name in names]


def _feeds(path: Path, calib: Path, count: int) -> Iterator[dict[str, object]]:
    """Yield the same images in the same form for all tools."""
    model = load_proto(path)
    samples = open_data(str(calib), model, detect(model), Config(count=count))
    for load in samples.loaders:
        sample = load()
        if sample is not None:
            yield dict(sample.feed)


def _quantize_with_onnxruntime(path: Path, output: Path, calib: Path, count: int) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = _feeds(path, calib, count)

        def get_next(self) -> dict[str, object] | None:
            return next(self._feeds, None)

    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        output,
        Reader(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        nodes_to_exclude=_decode(path),
    )


def _quantize_with_nncf(path: Path, output: Path, calib: Path, count: int) -> None:
    import nncf

    made = nncf.quantize(
        load_proto(path),
        nncf.Dataset(_feeds(path, calib, count)),
        subset_size=count,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=_decode(path)),
    )
    onnx.save(made, output)


_OTHERS: dict[str, tuple[str, str, Callable[[Path, Path, Path, int], None]]] = {
    "onnxruntime": ("ort", "onnxruntime's quantizer, MinMax", _quantize_with_onnxruntime),
    "nncf": ("openvino", "NNCF", _quantize_with_nncf),
}
"""Module -> runtime of its files, title, and function that quantizes."""


_MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[2:], stdout=open(sys.argv[1], "w"), stderr=subprocess.STDOUT)
seconds = time.perf_counter() - start
print(json.dumps([code, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""
"""Runs a command from a small process, because the peak memory of a child includes that of its parent."""


def _timed(command: list[str], log: Path) -> tuple[float, float] | None:
    """Return seconds and peak memory (MB) of a command; None if it failed."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, log, *command], capture_output=True, text=True, check=True)
    code, seconds, peak = json.loads(done.stdout)
    return (seconds, peak) if code == 0 else None


def _rows(path: Path, folder: Path, calib: Path, count: int) -> Iterator[Row]:
    """Yield the float model and the file of each tool; if a tool fails, print a line on standard error instead."""
    yield Row("float", None, path)
    settings = ["--calib", str(calib), "--count", str(count)]
    named = str(_named(path, folder))
    commands = [
        (f"onnxq, `--target {name}`", name, ["-m", "onnxq", str(path), "--target", name, *settings, "-q"])
        for name, runtime in RUNTIMES.items()
        if name in TARGETS and runtime.is_installed()
    ]
    commands += [
        (title, name, [__file__, named, "--with", tool, *settings])
        for tool, (name, title, _) in _OTHERS.items()
        if importlib.util.find_spec(tool) is not None and RUNTIMES[name].is_installed()
    ]
    for number, (title, name, command) in enumerate(commands):
        output, log = folder / f"{path.stem}.{number}.onnx", folder / f"{path.stem}.{number}.txt"
        took = _timed([sys.executable, *command, "-o", str(output)], log)
        if took is None:
            print(f"{path.name}: {title} failed: {log.read_text().strip().splitlines()[-1:]}", file=sys.stderr)
        else:
            yield Row(title, name, output, *took)


def _ratios(rows: list[Row], rounds: int) -> dict[Path, list[str]]:
    """Map each file to its speedups over the float model, by minimum and median time, per number of threads."""
    cells: dict[Path, list[str]] = {}
    for name, runtime in RUNTIMES.items():
        paths = [rows[0].path, *(row.path for row in rows if row.runtime == name)]
        for threads in _THREADS if len(paths) > 1 else ():
            first, *others = measure_latency(paths, runtime, threads=threads, rounds=rounds, progress=silent)
            for found in others:
                ratio = f"{first.least / found.least:.2f} ({first.median / found.median:.2f})"
                cells.setdefault(found.path, []).append(ratio)
    return cells


def _precision(row: Row, truth: GroundTruth) -> float:
    return measure_precision(row.path, truth, Settings(runtime=row.runtime or "ort")).ap


def _table(path: Path, rows: list[Row], ratios: dict[Path, list[str]], precisions: dict[Path, float]) -> Iterator[str]:
    yield f"\n**{path.name}**\n"
    threads = " | ".join(f"{n} thread{'s' * (n > 1)}" for n in _THREADS)
    yield f"| file | {threads} | AP | change | MB | seconds | peak MB |"
    yield "| --- " * (len(_THREADS) + 6) + "|"
    base = precisions.get(path)
    for row in rows:
        precision = precisions.get(row.path)
        yield "| " + " | ".join([
            row.title,
            *ratios.get(row.path, ["1"] * len(_THREADS) if row.runtime is None else [""] * len(_THREADS)),
            "" if precision is None else f"{precision:.2f}",
            "" if precision is None or base is None or row.runtime is None else f"{precision - base:+.2f}",
            f"{row.path.stat().st_size / 1e6:.2f}",
            "" if row.seconds is None else f"{row.seconds:.1f}",
            "" if row.peak_megabytes is None else f"{row.peak_megabytes:.0f}",
        ]) + " |"  # fmt: skip


def _versions() -> str:
    names = ["onnx", "onnxruntime", "openvino", "nncf", "numpy"]
    found = [f"{name} {version(name)}" for name in names if importlib.util.find_spec(name) is not None]
    return f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {', '.join(found)}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--calib", type=Path, required=True, metavar="DIR", help="calibration images")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="number of calibration images (100)")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="timed runs of each file (40)")
    parser.add_argument("--trained", nargs="*", type=Path, default=[], metavar="MODEL", help="models to measure AP of")
    parser.add_argument("--annotations", type=Path, metavar="JSON", help="COCO detection file, for AP")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder with its images")
    parser.add_argument("--with", choices=tuple(_OTHERS), dest="tool", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tool is not None:
        _OTHERS[args.tool][2](args.models[0], args.output, args.calib, args.count)
        return
    if args.trained and None in (args.annotations, args.images):
        parser.error("--trained needs --annotations and --images")
    truth = GroundTruth.load(args.annotations, args.images) if args.trained else None
    print(_versions())
    with tempfile.TemporaryDirectory() as folder:
        for path in args.models:
            rows = list(_rows(path, Path(folder), args.calib, args.count))
            ratios = _ratios(rows, args.rounds)
            measured = rows if truth is not None and path in args.trained else []
            precisions = {row.path: _precision(row, truth) for row in measured if truth is not None}
            print("\n".join(_table(path, rows, ratios, precisions)), flush=True)


if __name__ == "__main__":
    main()
