"""Several models in one command: each like a command of its own, and a table of all at the end."""

import argparse
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from onnxq._text import plural, visible
from onnxq.api import Quantized
from onnxq.config import Config
from onnxq.console.arguments import output_path
from onnxq.console.option_names import option_of, with_options
from onnxq.console.terminal import ERR, OUT, NumberTable, say
from onnxq.errors import ConfigError, OnnxqError
from onnxq.evaluation.average_precision import PrecisionSummary
from onnxq.facts import Plan, Speed, Verification
from onnxq.ir import storage
from onnxq.runtime.pool import Pool

_OF_ONE_MODEL = ("save_calibration", "calibration", "save_each", "cut_decode", "report")
"""Options that name a file, which can belong to one model only."""


class Row(NamedTuple):
    """What is told of a model at the end.

    Attributes:
        numbers: Convs on integers, SQNR, size, time of the float model by that of the quantized one, seconds.
        precision: AP of the quantized model, and its change, if they were measured; or the loss of expected AP alone.
    """

    numbers: tuple[str, str, str, str, str]
    precision: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, quantized: Quantized, files: tuple[Path, Path], seconds: float, found: PrecisionSummary | None, loss: str
    ) -> "Row":
        """Return the row of a model.

        Args:
            quantized: the result.
            files: the float model and the quantized one.
            seconds: that it took.
            found: the AP of both; None if it was not measured.
            loss: the loss of expected AP in words; empty if it was not measured.
        """
        plan, speed = quantized.facts[Plan], quantized.facts.get(Speed)
        convs = [name for name, op in plan.ops.items() if op in ("Conv", "ConvTranspose")]
        integers = sum(name not in plan.skipped for name in convs)
        before, after = (storage.size_on_disk(path) / 1e6 for path in files)
        sqnr = min(quantized.facts[Verification].sqnr.values(), default=None)
        numbers = (
            f"{integers} of {len(convs)}",
            "-" if sqnr is None else f"{sqnr:.1f}",
            f"{before:.2f} -> {after:.2f}",
            f"{speed.ratio:.2f}x" if speed is not None and speed.rounds else "-",
            f"{seconds:.1f}",
        )
        if found is not None:
            last = found.models[-1]
            return cls(numbers, tuple("-" if n is None else f"{n:z.2f}" for n in (last.AP, last.change)))
        return cls(numbers, (loss,) if loss else ())


def separate(args: argparse.Namespace, config: Config) -> list[argparse.Namespace]:
    """Return the arguments of each of several models.

    Raises:
        ConfigError: an option belongs to one model only, a model is given twice, or an output would replace another
            one or a model.
    """
    for name in _OF_ONE_MODEL:
        if getattr(args, name) is not None:
            raise ConfigError(f"{option_of(name)} names a file of one model; leave it out, or give one model")
    folder = args.output
    if folder is not None and not os.path.isdir(folder):
        raise ConfigError(f"-o {folder}: is no folder, which it must be for several models; make it, or leave -o out")
    made = []
    inputs: dict[Path, Path] = {}
    outputs: dict[Path, Path] = {}
    for path in args.inputs:
        if path.resolve() in inputs:
            raise ConfigError(f"{path}: is given twice; leave one out")
        inputs[path.resolve()] = path
    read = {file.resolve() for path in args.inputs for file in storage.files_of(path)}
    for path in inputs.values():
        one = argparse.Namespace(**{**vars(args), "input": path, "shown_input": path, "output": None})
        output = output_path(one, config)
        one.output = output if folder is None else folder / output.name
        first = outputs.setdefault(one.output.resolve(), path)
        if first is not path:
            raise ConfigError(f"{one.output}: would be written for {first} and for {path}; rename one, or leave -o out")
        if one.output.resolve() in inputs:
            raise ConfigError(f"{one.output}: is a model to quantize, and would be written for {path}; leave one out")
        if one.output.resolve() in read:
            raise ConfigError(f"{one.output}: has weights of a model, and would be written for {path}; give another -o")
        made.append(one)
    return made


def run_each(
    models: Sequence[argparse.Namespace],
    run: Callable[[argparse.Namespace, Pool], Row | None],
    pool: Pool,
) -> None:
    """Run the models one after the other, and show a table of all; what is wrong with one does not stop the others.

    Args:
        models: the arguments of each.
        run: runs one in the pool, and returns its row; None if there is nothing to tell.
        pool: for all of them.

    Raises:
        ConfigError: some failed, or were not run because the pool was lost.
    """
    rows: dict[Path, Row | None] = {}
    failed: dict[Path, str] = {}
    for number, args in enumerate(models, start=1):
        if pool.is_lost:
            failed[args.input] = "not run"
            continue
        if not args.quiet:
            say(f"{args.input} ({number} of {len(models)})", ERR)
        try:
            rows[args.input] = run(args, pool)
        except Exception as error:
            if args.debug:
                raise
            failed[args.input] = "failed"
            _tell(args.input, error)
    if not models[0].quiet and any(rows.values()):
        OUT.print(_table([args.input for args in models], rows, failed))
    if failed:
        names = ", ".join(map(str, failed))
        raise ConfigError(f"{len(failed)} of {len(models)} models failed: {names}")


def _tell(path: Path, error: Exception) -> None:
    """Show an error; a bug with its traceback."""
    if not isinstance(error, OnnxqError):
        say("".join(traceback.format_exception(error)).rstrip(), ERR)
        error = ConfigError("this is a bug of onnxq; please report it with the traceback above")
    first = str(error.args[0]) if error.args else ""
    told = with_options(first if str(path) in first else f"{path}: {first}")
    say(Text.assemble(("error:", "bold red"), f" {visible(told)}"), ERR)
    for line in error.args[1:]:
        say(str(line), ERR)


def _table(paths: Sequence[Path], rows: dict[Path, Row | None], failed: dict[Path, str]) -> NumberTable:
    """Return the table of all models."""
    extra = max((len(row.precision) for row in rows.values() if row), default=0)
    titles = ["Convs", "SQNR dB", "MB", "speed", "s", *{1: ["loss"], 2: ["AP", "change"]}.get(extra, [])]
    done = sum(row is not None for row in rows.values())
    table = NumberTable("model", titles, f"{done} of {len(paths)} model{plural(len(paths))} quantized")
    for path in paths:
        row = rows.get(path)
        cells = (*row.numbers, *row.precision) if row else (failed.get(path, ""),)
        table.add_row(Text(str(path)), *cells, *["-"] * (len(titles) - len(cells)))
    return table
