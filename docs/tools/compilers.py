"""Prove exports in the compilers that their files are for, and write the table of docs/matrix.md.

    python models/exports.py exports
    python -m docs.tools.compilers exports/*.onnx --python rknn=rknn/bin/python --document docs/matrix.md

Rows of other exports stay as they are in the document, so it can be written in parts.
"""

import argparse
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.api import quantize
from onnxq.compilers import COMPILERS
from onnxq.compilers.proof import DEFAULTS, LayerProof, Proof, prove
from onnxq.config import Config
from onnxq.console.terminal import guarded
from onnxq.errors import OnnxqError
from onnxq.evaluation.predictor import Settings
from onnxq.ir.files import atomic_write

PLACES = {"ort": "ort", "openvino": "openvino", "tensorrt": "tensorrt-rtx", "qnn": "qnn", "generic": "rknn"}
"""Target -> compiler; `generic` files run in QNN too, but a target of its own is for it."""

HEADING = "## In the compilers"

_BORDER = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Nodes at inputs and outputs, which NPUs leave to the CPU."""

_SETTINGS = Settings(confidence=DEFAULTS.confidence, max_images=1)


@dataclass(frozen=True)
class Result:
    """An export, quantized for a target, in the compiler of the target.

    Attributes:
        kept, wanted: numbers of layers on integers, and of those that the file means for integers.
        fallen: reasons of the others, with their layers.
        on_cpu: operators between input and output that the device leaves to the CPU, with their numbers.
        sqnr: of the worst output against the exact computation, dB; None if the result does not run here, -inf if a
            value is not finite.
        failed: what was said, if the file was refused or the compiler failed.
    """

    kept: int = 0
    wanted: int = 0
    fallen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    on_cpu: Mapping[str, int] = field(default_factory=dict)
    sqnr: float | None = None
    failed: str = ""

    def cell(self) -> str:
        """Return the text of its cell."""
        if self.failed:
            return "fails"
        counts = f"{self.kept} of {self.wanted}"
        if self.sqnr is None:
            return counts
        return f"{counts}, {self.sqnr:.1f} dB" if self.sqnr > -math.inf else f"{counts}, not finite"

    def notes(self) -> Iterator[str]:
        """Yield what a cell has no room for."""
        if self.failed:
            yield self.failed
        for reason, layers in self.fallen.items():
            yield f"not on integers: {', '.join(layers)} ({reason})"
        if self.on_cpu:
            yield f"on the CPU: {', '.join(f'{count} {op}' for op, count in self.on_cpu.items())}"


def result_of(proof: Proof) -> Result:
    """Return what the table has of a proof."""
    fallen: dict[str, list[str]] = {}
    for layer in proof.fallen:
        fallen.setdefault(_reason(layer), []).append(layer.name)
    # `/Concat (Concat)`
    left = Counter(node.rpartition("(")[2].rstrip(")") for node in proof.on_cpu)
    return Result(
        kept=len(proof.wanted) - len(proof.fallen),
        wanted=len(proof.wanted),
        fallen=fallen,
        on_cpu={op: count for op, count in left.items() if op not in _BORDER},
        sqnr=min(proof.outputs.values(), default=None),
    )


def _reason(layer: LayerProof) -> str:
    return layer.reason or f"{layer.types}, no reason known"


def measure(path: Path, targets: Sequence[str], pythons: Mapping[str, str]) -> dict[str, Result]:
    """Quantize an export for targets and build the files in their compilers.

    Args:
        path: a float model.
        targets: keys of `PLACES`.
        pythons: compiler -> the interpreter of the environment that has it; others are in this one.
    """
    return {target: _measured(path, target, pythons) for target in targets}


def _measured(path: Path, target: str, pythons: Mapping[str, str]) -> Result:
    compiler = COMPILERS[PLACES[target]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "quantized.onnx"
        try:
            quantize(path, None, Config(target=target, count=4)).save(file)
            proof = prove(file, compiler, settings=_SETTINGS, python=pythons.get(compiler.name, ""))
        except OnnxqError as error:
            return Result(failed=_in_a_line(str(error).replace(folder, "")))
    return result_of(proof)


def _in_a_line(message: str) -> str:
    """Return the first and the last line of a message; a compiler's last words end with the cause."""
    first, *others = message.splitlines()
    return f"{first} {others[-1].strip()}" if others else first


_INTRODUCTION = """\
`docs/tools/compilers.py` writes this part. A cell has the number of layers on integers, of those that the file means
for integers. Where the result runs on this machine, it has the SQNR of the worst output against the exact computation
of the file. Behind a TopK that is low: objects stand in another order. [prove.md](prove.md) explains the compilers,
[targets.md](targets.md) what each target leaves in float.
"""


@dataclass(frozen=True)
class Section:
    """The part of the document.

    Attributes:
        rows: export -> the texts of its cells by target.
        notes: (export, target) -> sentences.
    """

    rows: dict[str, dict[str, str]]
    notes: dict[tuple[str, str], list[str]]

    @classmethod
    def read(cls, text: str) -> "Section":
        """Read what a document has already."""
        lines = text.partition(f"{HEADING}\n")[2].splitlines()
        tables = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
        targets = [_target(title) for title in tables[0][1:]] if tables else []
        rows = {name: dict(zip(targets, cells, strict=True)) for name, *cells in tables[2:]}
        notes: dict[tuple[str, str], list[str]] = {}
        for line in lines:
            if line.startswith("- "):
                where, _, note = line[2:].partition(": ")
                export, _, title = where.partition(", ")
                notes.setdefault((export, _target(title)), []).append(note)
        return cls(rows, notes)

    def add(self, export: str, results: Mapping[str, Result]) -> None:
        """Put in the results of an export."""
        self.rows.setdefault(export, {})
        for target, result in results.items():
            self.rows[export][target] = result.cell()
            self.notes[export, target] = list(result.notes())

    def text(self) -> str:
        """Return the part of the document."""
        lines = [HEADING, "", _INTRODUCTION, _line("export", *map(_title, PLACES)), _line(*["---"] * (1 + len(PLACES)))]
        lines += [_line(name, *(self.rows[name].get(target, "") for target in PLACES)) for name in sorted(self.rows)]
        notes = [
            f"- {export}, {_title(target)}: {note}"
            for (export, target), sentences in sorted(self.notes.items())
            for note in sentences
        ]
        return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _title(target: str) -> str:
    return f"`{target}` in {COMPILERS[PLACES[target]].title}"


def _target(title: str) -> str:
    return title.split("`")[1]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path)
    parser.add_argument("--targets", metavar="TARGET", nargs="+", choices=tuple(PLACES), default=tuple(PLACES))
    parser.add_argument(
        "--python", metavar="COMPILER=PATH", nargs="+", default=[],
        help="interpreters of the environments of compilers that are not in this one",
    )  # fmt: skip
    parser.add_argument("--document", metavar="FILE", type=Path, help="the page that has the table; default: print it")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args), debug=False)


def _run(args: argparse.Namespace) -> None:
    pythons = dict(each.split("=", 1) for each in args.python)
    before, _, old = args.document.read_text(encoding="utf-8").partition(HEADING) if args.document else ("", "", "")
    section = Section.read(f"{HEADING}{old}")
    for done, path in enumerate(args.models, start=1):
        results = measure(path, args.targets, pythons)
        section.add(path.stem, results)
        cells = ", ".join(f"{target}: {result.cell()}" for target, result in results.items())
        print(f"{done}/{len(args.models)} {path.stem}: {cells}", file=sys.stderr)
        if args.document is not None:
            with atomic_write(args.document) as temporary:
                temporary.write_text(f"{before.rstrip()}\n\n{section.text()}", encoding="utf-8")
    if args.document is None:
        print(section.text(), end="")


if __name__ == "__main__":
    sys.exit(main())
