"""What the command lines of onnxq share: two consoles, tables, the progress bar, options, and errors as exit codes."""

import argparse
import contextlib
import io
import logging
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from itertools import chain, repeat
from pathlib import Path
from types import TracebackType
from typing import IO

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from onnxq.calibration import demo
from onnxq.errors import ConfigError, OnnxqError
from onnxq.evaluation.predictor import Settings
from onnxq.yolo.families import family_names
from onnxq.yolo.preprocess import PREPROCESSES


class _Console(Console):
    """Shows names of files and nodes as they are, though they may look like rich's markup, and cuts no line."""

    def __init__(self, stderr: bool) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr)

    def on_broken_pipe(self) -> None:
        """Leave it to `guarded`."""
        raise


OUT = _Console(stderr=False)

ERR = _Console(stderr=True)

INTERRUPTED = 130

NOBODY_READS = 141
"""As a shell says it of a program that SIGPIPE ended."""

_SECONDS_BETWEEN_PLAIN_LINES = 5.0

_LEAST_NAME = 12
"""Columns that names keep in a table where the terminal is too narrow for it."""

_LEAST_SAID = 20
"""Columns that a `Listing` breaks its lines at where the terminal is narrower still."""


def guarded(body: Callable[[], None], debug: bool = False, level: int = logging.WARNING) -> int:
    """Run a command's body and return its exit code: 0, or 1 with one message on stderr for an `OnnxqError`.

    With `debug` the error keeps its traceback. Other exceptions are bugs and pass through. What onnxq logs from `level`
    on is shown meanwhile, and by nobody else.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: no name may keep a result from being told
    try:
        with _shown(level):
            body()
    except OnnxqError as error:
        if debug:
            raise
        say(Text.assemble(("error:", "bold red"), f" {error}"), ERR)
        return 1
    except KeyboardInterrupt:
        if debug:
            raise
        say("interrupted; no file is half-written", ERR)
        return INTERRUPTED
    except BrokenPipeError:
        _give_up(sys.stdout, sys.stderr)
        return NOBODY_READS
    return 0


@contextlib.contextmanager
def _shown(level: int) -> Iterator[None]:
    """Show what onnxq logs, and leave logging as it was."""
    log, handler = logging.getLogger("onnxq"), LogHandler()
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def _give_up(*streams: IO[str]) -> None:
    """Let what is left for a pipe that nobody reads go nowhere, or Python complains of it at its end."""
    for stream in streams:
        try:
            stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def on_screen(console: Console) -> bool:
    """Whether it is a terminal; FORCE_COLOR, which makes rich say so of any file, is about colours only."""
    return console.file.isatty()


def say(what: str | Text, console: Console = OUT) -> None:
    """Print text, which a terminal gets broken between words; names are never cut, as they are to be copied."""
    text = Text(what) if isinstance(what, str) else what
    for line in _broken(text, console.width) if on_screen(console) else [text]:
        console.print(line)


def _broken(text: Text, width: int) -> Iterator[Text]:
    """Lines of so many columns, or of one word that is wider."""
    for line in text.split("\n", allow_blank=True):
        ends, column = [], 0
        for word in re.finditer(r"\S+\s*", line.plain):
            if column and column + cell_len(word[0].rstrip()) > width:
                ends.append(word.start())
                column = 0
            column += cell_len(word[0])
        for part in line.divide(ends):
            part.rstrip()
            yield part


def warn(message: str) -> None:
    """Show a warning on stderr."""
    say(Text.assemble(("warning:", "yellow"), f" {message}"), ERR)


class LogHandler(logging.Handler):
    """Shows log records on stderr: warnings and worse as `warn` does, others plain."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            say(record.getMessage(), ERR)


class Listing:
    """Labels with what is said of each, to be printed; lines break as those of `say`."""

    def __init__(self) -> None:
        self._rows: list[tuple[Text, Text]] = []

    def add_row(self, label: str | Text, said: str | Text) -> None:
        """Add a line; without a label it goes on with the one before."""
        bold = Text(label, "bold") if isinstance(label, str) else label
        self._rows.append((bold, Text(said) if isinstance(said, str) else said))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines of text."""
        indent = 2 + max((label.cell_len for label, _ in self._rows), default=0)
        width = max(_LEAST_SAID, options.max_width - indent)
        for label, said in self._rows:
            lines = _broken(said, width) if on_screen(console) else [said]
            for first, line in zip(chain([label], repeat(Text())), lines):
                yield Text.assemble(first, " " * (indent - first.cell_len), line)


class Columns(Table):
    """A table of names and numbers.

    Numbers are never cut. Names are folded only where a terminal is too narrow. No line ends in spaces.
    """

    def __init__(self, first: str, others: Iterable[str | Text], caption: str | None = None) -> None:
        super().__init__(
            box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_header=bool(first),
            caption=caption, caption_justify="left",
        )  # fmt: skip
        self.add_column(first, overflow="fold")
        for title in others:
            self.add_column(title, justify="right", no_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines of the table."""
        whole = console.measure(self, options=options.update(max_width=sys.maxsize)).maximum
        if on_screen(console):
            names = [column for column in self.columns if not column.no_wrap]
            spare = sum(max(0, _width(console, options, column) - _LEAST_NAME) for column in names)
            whole = min(whole, max(options.max_width, whole - spare))
        drawn = super().__rich_console__(console, options.update(width=whole))
        for line in Segment.split_lines(part for part in drawn if isinstance(part, Segment)):
            yield from _without_spaces_behind(line)
            yield Segment.line()


def _width(console: Console, options: ConsoleOptions, column: Column) -> int:
    wide = options.update(max_width=sys.maxsize)
    return max(console.measure(cell, options=wide).maximum for cell in (column.header, *column.cells))


def _without_spaces_behind(line: list[Segment]) -> list[Segment]:
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []


class _Steps(MofNCompleteColumn):
    """Steps done, of how many if that is known."""

    def render(self, task: Task) -> Text:
        """Say nothing of what has no steps."""
        return Text("") if task.total is None and not task.completed else super().render(task)


class ProgressBar:
    """A `Progress` for the command line: a bar with time left on a terminal, a plain line now and then elsewhere.

    Use as a context manager. There is one bar at a time: of the task that was told of last.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = RichProgress(
            SpinnerColumn("line"),
            TextColumn("{task.description:<14}"),
            BarColumn(),
            _Steps(),
            TimeRemainingColumn(),
            console=ERR,
            transient=True,
        )
        self._drawn: TaskID | None = None
        self._told = ("", 0, 0)
        self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        if self._is_drawn():
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def __call__(self, task: str, done: int, total: int, /) -> None:
        """Show how far the task is."""
        if self._quiet:
            return
        if self._is_drawn():
            self._draw(task, done, total)
        elif 0 < done == total or time.monotonic() - self._last_line > _SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line = time.monotonic()
            print(f"{task}: {done}/{total or '?'}" if done or total else task, file=sys.stderr)

    def _is_drawn(self) -> bool:
        return not self._quiet and ERR.is_interactive and on_screen(ERR)

    def _draw(self, task: str, done: int, total: int) -> None:
        last_task, last_done, last_total = self._told
        if self._drawn is None or (task, total) != (last_task, last_total) or done < last_done:
            if self._drawn is not None:
                self._bar.remove_task(self._drawn)
            self._drawn = self._bar.add_task(task, total=total or None, completed=done)
        else:
            self._bar.update(self._drawn, completed=done)
        self._told = task, done, total


def image_size(text: str) -> tuple[int, int]:
    """Parse the value of an `--image-size` option, `640` or height x width as `384x640`, for argparse."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no image size; give 640, or height x width as 384x640")
    return int(match[1]), int(match[2] or match[1])


def model_file(text: str) -> Path:
    """Parse a MODEL argument, for argparse: a path, or `demo` for the demo model unless a file has this name."""
    path = Path(text)
    return demo.model_path() if text == "demo" and not path.exists() else path


class Help(argparse.HelpFormatter):
    """Help in which no name is broken at its hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def add_settings(parser: argparse.ArgumentParser, default: Settings) -> None:
    """Add the options of what runs detectors on pictures: `Settings`, `--json`, `--quiet` and `--debug`."""
    most = default.max_images
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers and settings to this file as well")
    for option, names, chosen, what in (
        ("--family", family_names(), default.family, "how outputs are decoded"),
        ("--preprocess", PREPROCESSES, default.preprocess, "how pictures become inputs"),
    ):
        choices = ("auto", *names)
        said = f"{what}: {', '.join(choices)} ({chosen})"
        parser.add_argument(option, metavar="NAME", choices=choices, default=chosen, help=said)
    parser.add_argument("--image-size", metavar="N|HxW", type=image_size, help="for models that take any size")
    parser.add_argument(
        "--conf", dest="confidence", metavar="SCORE", type=float, default=default.confidence,
        help=f"least score of a detection ({default.confidence:g})",
    )  # fmt: skip
    parser.add_argument(
        "--iou", metavar="SHARE", type=float, default=default.iou,
        help=f"boxes that overlap more are duplicates ({default.iou:g})",
    )  # fmt: skip
    parser.add_argument(
        "--max-images", metavar="N", type=int, default=most, help=f"at most so many pictures ({most or 'all'})"
    )
    threads = default.threads
    parser.add_argument("--threads", metavar="N", type=int, default=threads, help=f"0: one per core ({threads})")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the tables and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")


def settings_of(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    """What was given for the options of `add_settings`; ends the program where one is out of range."""
    try:
        return Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    except ConfigError as error:
        parser.error(str(error))
