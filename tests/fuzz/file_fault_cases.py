"""The commands that `file_faults` breaks off, each with all its outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    """A command and what replaces parts of it.

    Attributes:
        module: has a `main`.
        arguments: of the command line.
        outputs: files that are there before, and that it replaces.
        prepare: called in the process before the command.
    """

    module: str
    arguments: list[str]
    outputs: tuple[str, ...]
    prepare: Callable[[], None] = lambda: None


def _smaller_limits() -> None:
    """Treat weights as large ones, which go to a file beside the model."""
    from onnxq.ir import storage
    from onnxq.ir.weights import links

    storage.LARGEST, links.LARGE = 4000, 1000


WORKER = """
import json, pathlib
import numpy as np
job = json.loads(pathlib.Path("job.json").read_text())
for number in range(job["feeds"]):
    np.savez(f"outputs_{number}.npz", **{"0": np.zeros((1, 7, 21), np.float32)})
pathlib.Path("result.json").write_text(json.dumps(job))
"""
"""A vendor's compiler: reads its job, and writes results."""


def _vendor() -> None:
    """Put a compiler that runs a process of its own in the place of a vendor's."""
    from onnxq import compilers
    from onnxq.compilers import process
    from onnxq.compilers.base import Built, Compiler, Ran

    class Vendor(Compiler):
        name = title = "vendor"

        def require(self, python: str) -> None:
            if not process.has_module(python, "json"):
                raise RuntimeError("no interpreter")

        def build(self, job):  # type: ignore[no-untyped-def]
            script = Path("worker.py").resolve()
            process.run_worker(script, self.title, job, {})
            layers = {layer.name: Ran("int8 x int8", True) for layer in job.layers}
            return Built("1.0", layers, process.outputs_of(job), [], [])

    compilers.COMPILERS["qnn"] = Vendor()


def _view() -> None:
    """Let the server end as soon as it has started."""
    import netron

    netron.wait = lambda: None


_LABELS = ["--annotations", "labels.json", "--images", "images"]

DATA = ["--calib", "calib", "--no-speed", "-q"]

CASES = {
    "onnxq": Case(
        "onnxq.cli",
        [
            "model.onnx",
            *DATA,
            "-o",
            "out.onnx",
            "--report",
            "r.html",
            "--save-calibration",
            "seen.npz",
            "--cut-decode",
            "cut.onnx",
            "--save-each",
            "steps",
            "--prove",
        ],
        ("out.onnx", "r.html", "seen.npz", "cut.onnx", "cut.json"),
    ),
    "onnxq, weights beside": Case(
        "onnxq.cli",
        ["model.onnx", *DATA, "-o", "out.onnx", "--report", "r.json", "--save-each", "steps"],
        ("out.onnx", "r.json"),
        _smaller_limits,
    ),
    "onnxq --min-sqnr": Case(
        "onnxq.cli",
        ["model.onnx", *DATA, "-o", "out.onnx", "--min-sqnr", "1", "--images", "images", "--report", "r.md"],
        ("out.onnx", "r.md"),
    ),
    "onnxq --workers": Case("onnxq.cli", ["model.onnx", *DATA, "-o", "out.onnx", "--workers", "1"], ("out.onnx",)),
    "evaluate": Case("onnxq.evaluate", ["model.onnx", "q.onnx", *_LABELS, "--json", "e.json", "-q"], ("e.json",)),
    "compare": Case(
        "onnxq.compare",
        ["model.onnx", "q.onnx", "--images", "images", "--json", "c.json", "--draw", "drawn", "-q"],
        ("c.json",),
    ),
    "benchmark": Case("onnxq.benchmark", ["model.onnx", "q.onnx", "--rounds", "1", "--json", "b.json"], ("b.json",)),
    "prove, onnxruntime": Case("onnxq.prove", ["q.onnx", "--with", "ort", "--json", "p.json", "-q"], ("p.json",)),
    "prove, OpenVINO": Case("onnxq.prove", ["q.onnx", "--with", "openvino", "--json", "p.json", "-q"], ("p.json",)),
    "prove, a vendor's": Case(
        "onnxq.prove", ["q.onnx", "--with", "qnn", "--json", "p.json", "-q"], ("p.json",), _vendor
    ),
    "view": Case("onnxq.view", ["model.onnx", "--no-browser"], (), _view),
}
"""Name -> a command with all its outputs."""

VENDORS = {"prove, QNN": "qnn", "prove, TensorRT-RTX": "tensorrt"}
"""Name -> the target whose compiler, a vendor's, a command runs."""


def of_vendor(target: str, python: str) -> Case:
    """Return the command that runs a vendor's compiler.

    Args:
        target: one of `VENDORS`.
        python: interpreter of the environment that has its compiler.
    """
    return Case("onnxq.prove", [f"q.{target}.onnx", "--python", python, "--json", "p.json", "-q"], ("p.json",))
