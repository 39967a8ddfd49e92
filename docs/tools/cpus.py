"""Run quantized files on several kinds of CPUs and write the table of docs/cpus.md.

    python -m docs.tools.cpus quantized/*.onnx --float models/demo.onnx yolov5n.onnx --images coco/val2017 \\
        --folder runs --document docs/cpus.md

A file belongs to the float model whose name begins its own: `yolov5n-ort.onnx` to `yolov5n.onnx`. Each file runs in
each runtime on each kind of CPU (`--cpus`); its outputs are compared with the exact computation of the file and with
the float model, both made here. On CPUs that are not emulated, runs are also timed, in turn with the float model, in
the runtimes that the file is for. Measure times on an idle machine.

`--folder` keeps all results: a second call computes only what is new. So several calls can share the work, and one with
`--stored` writes the table. Emulation needs qemu-user; AArch64 also needs apt-get, for Debian's packages.
"""

import argparse
import hashlib
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from docs.tools import cpu_probe
from docs.tools.cpu_kinds import KINDS, Kind, Launcher, Unavailable, emulator_version, flags, this_cpu, versions
from onnxq.api import open_data
from onnxq.calibration import demo
from onnxq.config import Config
from onnxq.console.terminal import guarded
from onnxq.errors import ConfigError
from onnxq.ir.files import atomic_write
from onnxq.ir.storage import load_proto
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.yolo.detector import detect

TITLES = {"ort": "onnxruntime", "openvino": "OpenVINO"}

_TIMED = {("ort", "ort"), ("openvino", "openvino"), ("generic", "ort"), ("generic", "openvino")}
"""Target and runtime of the files that are timed. Files for TensorRT are not: no other runtime tells their speed."""

_PROBE = Path(cpu_probe.__file__)

_CLEARLY_WRONG = 3.0
"""SQNR lost against the exact computation that is set in bold, dB; integer kernels round differently."""

_BEGIN, _END = "<!-- Written by docs/tools/cpus.py -->", "<!-- End -->"


@dataclass(frozen=True)
class Settings:
    """Options of all files; see the command line options of the same names."""

    floats: Sequence[Path]
    images: Path | None
    count: int
    rounds: int
    threads: int
    cpus: Sequence[str]
    runtimes: Sequence[str]
    folder: Path
    timeout: float
    stored: bool


@dataclass(frozen=True)
class Cell:
    """A file run in a runtime on a kind of CPU.

    Attributes:
        exact: output -> SQNR against the exact computation of the file, dB.
        real: output -> SQNR against the float model, dB.
        least, median: speedup over the float model, by the minimum and the median of the times.
        failed: what the run said last, if it failed.
    """

    exact: dict[str, float] = field(default_factory=dict)
    real: dict[str, float] = field(default_factory=dict)
    least: float | None = None
    median: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class File:
    """A quantized file, its float model and the SQNR of its exact computation against that, dB by output."""

    path: Path
    plain: Path
    target: str
    feeds: Path
    simulated: dict[str, float]


class Failure(Exception):
    """A run failed; the message is what it said last."""


class NotRun(Exception):
    """A result is not in the folder, and nothing new is to be run."""


class Bench:
    """Runs files in processes of their own and keeps the results in a folder.

    Args:
        settings: the options.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._launchers: dict[str, Launcher | Unavailable] = {}
        self._runs = settings.folder / "runs"
        self._runs.mkdir(parents=True, exist_ok=True)

    def file(self, path: Path) -> File:
        """Return a file with its float model, its feeds and its exact SQNR."""
        plain = self._float_of(path)
        metadata = {entry.key: entry.value for entry in load_proto(path).metadata_props}
        feeds = self._feeds(plain)
        expected, exact = (self._run("native", "exact", model, feeds) for model in (plain, path))
        return File(path, plain, metadata.get("onnxq.target", "?"), feeds, _decibels(expected, exact))

    def cell(self, file: File, cpu: str, runtime: str) -> Cell:
        """Run a file; a failure is part of the result.

        Raises:
            Unavailable: the kind of CPU cannot be had here.
            NotRun: the result is not in the folder, and nothing new is to be run.
        """
        expected, exact = (self._run("native", "exact", model, file.feeds) for model in (file.plain, file.path))
        try:
            found = self._run(cpu, runtime, file.path, file.feeds)
            least, median = self._ratios(file, cpu, runtime)
        except Failure as failure:
            return Cell(failed=str(failure))
        return Cell(_decibels(exact, found), _decibels(expected, found), least, median)

    def _ratios(self, file: File, cpu: str, runtime: str) -> tuple[float | None, float | None]:
        rounds = self._settings.rounds
        if not rounds or not KINDS[cpu].is_timed or (file.target, runtime) not in _TIMED:
            return None, None
        more = ["--beside", str(file.plain), "--rounds", str(rounds)]
        try:
            [result] = self._stored(cpu, runtime, file.path, file.feeds, more)
        except NotRun:
            return None, None
        least, median = (reduce(result["seconds"], axis=0) for reduce in (np.min, np.median))
        return float(least[1] / least[0]), float(median[1] / median[0])

    def _run(self, cpu: str, runtime: str, model: Path, feeds: Path) -> list[dict[str, np.ndarray]]:
        return self._stored(cpu, runtime, model, feeds, [])

    def _stored(
        self, cpu: str, runtime: str, model: Path, feeds: Path, more: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Return what the probe stores; run it if it has not run yet."""
        settings = self._settings
        kind = KINDS[cpu]
        # Emulated CPUs compute the same on every machine.
        host = [] if kind.how == "emulated" else [platform.processor(), *sorted(flags())]
        contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (model, feeds, _PROBE)]
        key = repr([cpu, runtime, settings.threads, versions(), host, contents, [Path(word).name for word in more]])
        result = self._runs / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"
        said = result.with_suffix(".txt")
        if not result.exists() and not said.exists():
            if settings.stored:
                raise NotRun
            launcher = self._launcher(cpu)
            command = [*launcher.command, str(_PROBE), runtime, *(str(path) for path in (model, feeds, result))]
            error = _executed([*command, "--threads", str(settings.threads), *more], launcher, settings.timeout)
            if error:
                result.unlink(missing_ok=True)
                said.write_text(error)
        if said.exists():
            raise Failure(said.read_text())
        with np.load(result) as stored:
            arrays = dict(stored)
        return [arrays] if "seconds" in arrays else cpu_probe.grouped(arrays)

    def _launcher(self, cpu: str) -> Launcher:
        if cpu not in self._launchers:
            try:
                self._launchers[cpu] = KINDS[cpu].launcher(self._settings.folder)
            except Unavailable as error:
                self._launchers[cpu] = error
        found = self._launchers[cpu]
        if isinstance(found, Unavailable):
            raise found
        return found

    def _float_of(self, path: Path) -> Path:
        fitting = [plain for plain in self._settings.floats if path.name.startswith(plain.stem)]
        if not fitting:
            raise ConfigError(f"{path}: no model of --float has a name that begins this one")
        return max(fitting, key=lambda plain: len(plain.stem)).absolute()

    def _feeds(self, plain: Path) -> Path:
        """Write the feeds of a float model, and return their file."""
        stored = self._settings.folder / f"{plain.stem}.feeds.npz"
        model = load_proto(plain)
        is_demo = plain.read_bytes() == demo.model_path().read_bytes()
        data = demo.VALIDATION if is_demo else self._settings.images and str(self._settings.images)
        samples = open_data(data, model, detect(model), Config(count=self._settings.count))
        loaded = (load() for load in samples.loaders)
        with atomic_write(stored) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **cpu_probe.flat([dict(sample.feed) for sample in loaded if sample is not None]))
        return stored


def _executed(command: Sequence[str], launcher: Launcher, timeout: float) -> str:
    """Run a command and return an empty text, or why it failed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"OPENBLAS_NUM_THREADS": "1", **launcher.environment}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {timeout:.0f} s"
    if ran.returncode == 0:
        return ""
    lines = [line for line in ran.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {ran.returncode}"


def _decibels(expected: Sequence[cpu_probe.Arrays], found: Sequence[cpu_probe.Arrays]) -> dict[str, float]:
    meter = SqnrMeter()
    for wanted, got in zip(expected, found, strict=True):
        meter.add(dict(wanted), dict(got))
    return meter.decibels()


# The table


def markdown(paths: Sequence[Path], settings: Settings) -> Iterator[str]:
    """Yield the lines of the tables: one for each float model and runtime."""
    bench = Bench(settings)
    files = [bench.file(path) for path in paths]
    skipped: dict[str, str] = {}
    failures: list[str] = []
    yield _tested(settings)
    for plain in dict.fromkeys(file.plain for file in files):
        own = [file for file in files if file.plain == plain]
        for runtime in settings.runtimes:
            yield from ("", _line(f"{plain.stem} in {TITLES[runtime]}", *(file.target for file in own)))
            yield _line(*["---"] * (1 + len(own)))
            yield _line("exact", *(f"- / {_worst(file.simulated)}" for file in own))
            for cpu in settings.cpus:
                try:
                    cells = [_cell(bench, file, cpu, runtime) for file in own]
                except Unavailable as error:
                    skipped[KINDS[cpu].title] = str(error)
                    continue
                if any(cells):
                    yield _line(_named(KINDS[cpu]), *(_text(file, cell) for file, cell in zip(own, cells, strict=True)))
                failures += [
                    f"- {file.path.stem} in {TITLES[runtime]} on {KINDS[cpu].title}: {cell.failed}"
                    for file, cell in zip(own, cells, strict=True)
                    if cell is not None and cell.failed
                ]
    if skipped:
        yield from ("", *(f"- {title} was not measured: {reason}" for title, reason in skipped.items()))
    if failures:
        yield from ("", "Failures:", "", *failures)


def _cell(bench: Bench, file: File, cpu: str, runtime: str) -> Cell | None:
    try:
        return bench.cell(file, cpu, runtime)
    except NotRun:
        return None


def _tested(settings: Settings) -> str:
    emulator = [emulator_version()] if any(KINDS[cpu].how == "emulated" for cpu in settings.cpus) else []
    tools = ", ".join([*(f"{name} {release}" for name, release in versions().items()), *filter(None, emulator)])
    images = f"{settings.count} image{'s' * (settings.count != 1)}"
    return (
        f"Measured on {this_cpu()} with {tools}, {settings.threads} threads; SQNR over {images} in dB, of the worst "
        f"output; ratios of {settings.rounds} paired rounds."
    )


def _named(kind: Kind) -> str:
    return f"{kind.title}, emulated" if kind.how == "emulated" else kind.title


def _text(file: File, cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.failed:
        return "fails"
    text = f"{_worst(cell.exact)} / {_worst(cell.real)}"
    lost = (simulated - cell.real.get(name, -math.inf) for name, simulated in file.simulated.items())
    if max(lost, default=0.0) > _CLEARLY_WRONG:
        text = f"**{text}**"
    return text if cell.least is None else f"{text}, {cell.least:.2f}x ({cell.median:.2f})"


def _worst(sqnr: dict[str, float]) -> str:
    return f"{min(sqnr.values()):.1f}" if sqnr else "-"


def _line(*cells: str) -> str:
    line = f"| {' | '.join(cells)} |"
    print(line, file=sys.stderr)
    return line


def replaced(page: str, table: str) -> str:
    """Return a page with another table between its two marks.

    Raises:
        ConfigError: the page lacks a mark.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ConfigError(f"the page has no place for the table: put it between {_BEGIN} and {_END}")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    runtimes = tuple(name for name in TITLES if name == "ort" or find_spec(name))
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="quantized files")
    parser.add_argument("--float", metavar="MODEL", nargs="+", type=Path, required=True, help="their float models")
    parser.add_argument("--images", metavar="DIR", type=Path, help="images; default: synthetic scenes")
    parser.add_argument("--count", metavar="N", type=int, default=2, help="number of images (2)")
    parser.add_argument("--rounds", metavar="N", type=int, default=40, help="timed rounds (40; 0: none)")
    parser.add_argument("--threads", metavar="N", type=int, default=2, help="threads of a run (2)")
    parser.add_argument("--cpus", metavar="CPU", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--runtimes", metavar="RUNTIME", nargs="+", choices=runtimes, default=runtimes)
    parser.add_argument("--folder", metavar="DIR", type=Path, default=Path("cpus"), help="keeps the results (cpus)")
    parser.add_argument("--timeout", metavar="S", type=float, default=1800, help="longest run, s (1800)")
    parser.add_argument("--stored", action="store_true", help="run nothing new: show what the folder has")
    parser.add_argument("--document", metavar="FILE", type=Path, help="put the table into this page; default: print it")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args), debug=False)


def _run(args: argparse.Namespace) -> None:
    settings = Settings(
        args.float, args.images, args.count, args.rounds, args.threads, args.cpus, args.runtimes,
        args.folder.absolute(), args.timeout, args.stored,
    )  # fmt: skip
    table = "\n".join(markdown([path.absolute() for path in args.files], settings))
    if args.document is None:
        print(table)
        return
    page = replaced(args.document.read_text(encoding="utf-8"), table)
    with atomic_write(args.document) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
