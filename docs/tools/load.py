"""Time and memory of large inputs: many pictures, nodes, weights and outputs, large batches and pictures, many runs.

    python -m docs.tools.load --folder load

Everything is made: small pictures, and models with random weights. Each command runs in a process of its own; seconds
are those of the CPU, and the peak of memory is that of the process. The table is Markdown, for BENCHMARKS.md.
`--cases nodes outputs` measures some only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxq.calibration import demo
from onnxq.ir import storage

_WIDTH = 8
"""Channels of the Convs that make up a model of many nodes."""

_PICTURE = (64, 48)
"""Width and height of the pictures, px."""

_HEAVY = 2048
"""Channels of the Convs that make up a model of many weights: each has 151 MB."""

_AT_ONCE = 8
"""Runs that are measured side by side."""


@dataclass(frozen=True)
class Case:
    """A command to measure.

    Attributes:
        what: of what it takes much.
        command: the module and its arguments.
        size: how much, to be compared with half of it; 0: of its own.
        at_once: processes that run it side by side.
    """

    what: str
    command: Sequence[str]
    size: int = 0
    at_once: int = 1


@dataclass(frozen=True)
class Cost:
    """What a command takes.

    Attributes:
        seconds: of the CPU.
        megabytes: peak of memory of a process.
    """

    seconds: float
    megabytes: float


class ManyLayers:
    """Builds a detector-like graph whose nodes, outputs, classes, batch and size are given."""

    def __init__(self, size: int = 32, batch: int = 1) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._input = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])
        self.last = "images"
        self._channels = 3

    def conv(self, channels: int = _WIDTH, stride: int = 1) -> str:
        """Add a Conv of 3 x 3 with SiLU behind the last one, three nodes, and return its output."""
        name = f"n{len(self._nodes)}"
        scale = 1.5 / np.sqrt(9 * self._channels)
        values = self._rng.normal(0, scale, (channels, self._channels, 3, 3)).astype(np.float32)
        self._weights.append(numpy_helper.from_array(values, f"{name}_weight"))
        self._weights.append(numpy_helper.from_array(np.zeros(channels, np.float32), f"{name}_bias"))
        inputs = [self.last, f"{name}_weight", f"{name}_bias"]
        kernel = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [stride] * 2}
        self._nodes.append(helper.make_node("Conv", inputs, [f"{name}_conv"], name=f"{name}_conv", **kernel))
        self._nodes.append(helper.make_node("Sigmoid", [f"{name}_conv"], [f"{name}_gate"], name=f"{name}_gate"))
        self._nodes.append(helper.make_node("Mul", [f"{name}_conv", f"{name}_gate"], [name], name=name))
        self.last, self._channels = name, channels
        return name

    def save(self, path: Path, outputs: Sequence[str] = ()) -> None:
        """Write the model with these outputs, or the last one."""
        ends = [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in outputs or [self.last]]
        graph = helper.make_graph(self._nodes, "load", [self._input], ends, self._weights)
        storage.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def chain(path: Path, nodes: int) -> Path:
    """Write a model of so many nodes, one after the other."""
    made = ManyLayers()
    made.conv(stride=2)
    for _ in range(nodes // 3 - 1):
        made.conv()
    made.save(path)
    return path


def heavy(path: Path, convs: int, channels: int = _HEAVY) -> Path:
    """Write a model of so many Convs with many weights, on features of 2 x 2."""
    made = ManyLayers(64)
    for narrow in (channels // 64, channels // 32, channels // 8, channels // 4):
        made.conv(narrow, stride=2)
    made.conv(channels, stride=2)
    for _ in range(convs):
        made.conv(channels)
    made.conv(channels // 8)
    made.save(path)
    return path


def wide(path: Path, outputs: int) -> Path:
    """Write a model of so many outputs."""
    made = ManyLayers()
    made.save(path, [made.conv() for _ in range(outputs)])
    return path


def detector(path: Path, size: int = 640, batch: int = 1, classes: int = 80) -> Path:
    """Write a model of five strides, whose last layer has as many channels as one of YOLOv5 for these classes."""
    made = ManyLayers(size, batch)
    for channels in (16, 32, 64, 128, 128):
        made.conv(channels, stride=2)
    made.conv(3 * (5 + classes))
    made.save(path)
    return path


def pictures(folder: Path, count: int) -> Path:
    """Write so many small JPEG files into a folder, unless it has them, with COCO annotations beside it."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(len(list(folder.iterdir())), count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize(_PICTURE, Image.Resampling.BILINEAR).save(folder / f"{number:05}.jpg")
    width, height = _PICTURE
    images = [{"id": k + 1, "file_name": f"{k:05}.jpg", "width": width, "height": height} for k in range(count)]
    box = {"bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}
    boxes = [{"id": k + 1, "image_id": k + 1, "category_id": 1 + k % 6, **box} for k in range(count)]
    names = ("ring", "star", "cross", "crescent", "heart", "arrow")
    kinds = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    content = {"images": images, "annotations": boxes, "categories": kinds}
    folder.with_suffix(".json").write_text(json.dumps(content))
    return folder


def of_pictures(folder: Path, counts: Sequence[int]) -> Iterator[Case]:
    """Yield runs on more and more pictures."""
    for count in counts:
        images = pictures(folder / f"p{count}", count)
        quiet = ["--no-speed", "-q", "-o", str(folder / "out.onnx")]
        data = ["--calib", str(images), "--count", str(count)]
        yield Case("pictures, onnxq", ["onnxq", str(demo.model_path()), *data, *quiet], count)
        truth = ["--annotations", str(images.with_suffix(".json")), "--images", str(images)]
        yield Case("pictures, onnxq.evaluate", ["onnxq.evaluate", "demo", *truth, "-q"], count)
        both = ["demo", "demo", "--images", str(images), "--max-images", str(count), "-q"]
        yield Case("pictures, onnxq.compare", ["onnxq.compare", *both], count)


def of_nodes(folder: Path, counts: Sequence[int]) -> Iterator[Case]:
    """Yield runs on models of more and more nodes."""
    for count in counts:
        model = str(chain(folder / f"nodes{count}.onnx", count))
        out = str(folder / f"nodes{count}.int8.onnx")
        yield Case("nodes, onnxq --dry-run", ["onnxq", model, "--dry-run", "-q"], count)
        yield Case("nodes, onnxq", ["onnxq", model, "--count", "4", "-q", "-o", out], count)
        yield Case("nodes, onnxq.prove", ["onnxq.prove", out, "--with", "ort", "-q"], count)
        yield Case("nodes, onnxq.benchmark", ["onnxq.benchmark", model, out, "--rounds", "3", "-q"], count)
        report = ["--report", str(folder / "report.html"), "--count", "4", "-q", "-o", out, "--no-speed"]
        yield Case("nodes, onnxq --report", ["onnxq", model, *report], count)


def of_weights(folder: Path, counts: Sequence[int]) -> Iterator[Case]:
    """Yield runs on models of more and more weights, in MB."""
    for convs in (4, 8, 16):
        model, megabytes = heavy(folder / f"heavy{convs}.onnx", convs), 36 * _HEAVY**2 * convs // 10**6
        quiet = ["-q", "-o", str(folder / "out.onnx")]
        yield Case("MB of weights", ["onnxq", str(model), *quiet], megabytes)
        yield Case(
            "MB of weights, --rounding nearest", ["onnxq", str(model), "--rounding", "nearest", *quiet], megabytes
        )


def of_others(folder: Path, counts: Sequence[int]) -> Iterator[Case]:
    """Yield runs on models that are large in other ways."""
    out = ["--count", "4", "--no-speed", "-q", "-o", str(folder / "out.onnx")]
    for outputs in (75, 150, 300):
        yield Case("outputs", ["onnxq", str(wide(folder / f"wide{outputs}.onnx", outputs)), *out], outputs)
    for batch in (8, 16, 32):
        model = detector(folder / f"batch{batch}.onnx", 320, batch)
        yield Case("batch, 320 px", ["onnxq", str(model), *out, "--count", str(2 * batch)], batch)
    for size in (1024, 2048, 4096):
        yield Case(f"{size} x {size} px", ["onnxq", str(detector(folder / f"size{size}.onnx", size)), *out])
    for classes in (250, 500, 1000):
        model = detector(folder / f"classes{classes}.onnx", classes=classes)
        yield Case("classes", ["onnxq", str(model), *out], classes)


def of_runs(folder: Path, counts: Sequence[int]) -> Iterator[Case]:
    """Yield runs side by side."""
    model = str(detector(folder / "one.onnx"))
    command = ["onnxq", model, "--count", "4", "--no-speed", "-q", "-o"]
    yield Case("runs at once", [*command, str(folder / "alone.onnx")], 1)
    yield Case(f"{_AT_ONCE} runs at once, one output", [*command, str(folder / "same.onnx")], at_once=_AT_ONCE)


CASES: dict[str, Callable[[Path, Sequence[int]], Iterator[Case]]] = {
    "pictures": of_pictures,
    "nodes": of_nodes,
    "weights": of_weights,
    "others": of_others,
    "runs": of_runs,
}
"""Word of `--cases` -> function that makes the files of cases and yields them, one size after the other."""

_MEASURE = """
import json, os, subprocess, sys
running = [subprocess.Popen(sys.argv[2:]) for _ in range(int(sys.argv[1]))]
ended = [os.wait4(each.pid, 0)[1:] for each in running]
seconds = sum(usage.ru_utime + usage.ru_stime for _, usage in ended)
print(json.dumps([max(code for code, _ in ended), seconds, max(usage.ru_maxrss for _, usage in ended) / 1024]))
"""
"""Runs a command from a small process, because the peak memory of a child includes that of its parent."""


def measure(case: Case) -> Cost | None:
    """Return what a command takes; None if it fails."""
    command = [sys.executable, "-c", _MEASURE, str(case.at_once), sys.executable, "-m", *case.command]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    code, seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return Cost(seconds, megabytes) if code == 0 else None


def rows(cases: Iterator[Case]) -> Iterator[str]:
    """Measure cases, and yield the rows of a Markdown table."""
    before: dict[str, tuple[int, Cost]] = {}
    yield "| what | | CPU s | per doubling | peak MB |"
    yield "| --- | --- | --- | --- | --- |"
    for case in cases:
        cost = measure(case)
        if cost is None:
            yield f"| {case.what} | {case.size or ''} | failed | | |"
            continue
        smaller, factor = before.get(case.what), ""
        if smaller is not None and case.size == 2 * smaller[0]:
            factor = f"{cost.seconds / smaller[1].seconds:.2f}"
        before[case.what] = case.size, cost
        size = f"{case.size:,}" if case.size else ""
        yield f"| {case.what} | {size} | {cost.seconds:.1f} | {factor} | {cost.megabytes:.0f} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", metavar="DIR", type=Path, help="folder for the files; default: one that is removed")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="what to measure (all)")
    parser.add_argument(
        "--counts", metavar="N", nargs="+", type=int, default=(5000, 10_000, 20_000),
        help="numbers of pictures and of nodes (5000 10000 20000)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.mkdir(exist_ok=True)
        for name in args.cases:
            for row in rows(CASES[name](place, args.counts)):
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
