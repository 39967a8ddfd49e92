"""Shared by all commands: two consoles, tables, the progress bar, common options, and errors as exit codes."""

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
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, cast

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from onnxq._text import visible
from onnxq.calibration import demo
from onnxq.console.guards import add_guards, escaped_traceback
from onnxq.console.option_names import with_options
from onnxq.console.streams import watched
from onnxq.errors import ConfigError, OnnxqError
from onnxq.evaluation.predictor import Settings
from onnxq.evaluation.runtime_choice import CHOICES
from onnxq.memory import limited_to
from onnxq.process.interrupts import raised
from onnxq.yolo.columns import LAYOUT_HELP
from onnxq.yolo.families import family_names
from onnxq.yolo.preprocess import PREPROCESS_WORDS


class _Console(Console):
    """Console that prints names literally, even if they look like rich's markup, and never truncates a line."""

    def __init__(self, stderr: bool) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects; control characters in texts are shown escaped."""
        super().print(*(visible(each) if isinstance(each, str) else each for each in objects), **options)


OUT = _Console(stderr=False)
"""Console on stdout, for results."""

ERR = _Console(stderr=True)
"""Console on stderr, for messages and progress."""

INTERRUPTED = 130
"""Exit code of a program that SIGINT ended, as shells report it."""

_PLAIN_LINE_INTERVAL = 5.0
"""Least time between progress lines if there is no terminal, s."""

_LEAST_NAME = 12
"""Least width of a column of names in a `NumberTable`, in characters."""

_LEAST_TEXT = 20
"""Least width of the texts in a `Listing`, in characters."""


def guarded(
    body: Callable[[], None], debug: bool = False, level: int = logging.WARNING, max_memory: int | None = None
) -> int:
    """Run a command's body and return its exit code: 0, or 1 with one message on stderr for an `OnnxqError`.

    Other exceptions are bugs and propagate.

    Args:
        body: the command.
        debug: let an `OnnxqError` propagate with its traceback.
        level: least level of onnxq's log records that are shown on stderr.
        max_memory: limit of `onnxq.memory`, bytes; None: its default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: no name may fail to print
    with raised(), watched() as streams, escaped_traceback(), limited_to(max_memory):
        return streams.finish(_run(body, debug, level))


def _run(body: Callable[[], None], debug: bool, level: int) -> int:
    try:
        with _log_shown(level):
            body()
    except OnnxqError as error:
        if debug:
            raise
        first, *others = map(str, error.args)
        say(Text.assemble(("error:", "bold red"), f" {visible(with_options(first))}"), ERR)
        for line in others:
            say(line, ERR)
        return 1
    except KeyboardInterrupt:
        if debug:
            raise
        say("interrupted; no file is half-written", ERR)
        return INTERRUPTED
    return 0


@contextlib.contextmanager
def _log_shown(level: int) -> Iterator[None]:
    """Show onnxq's log records within the block, and restore the logger at its end."""
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


def on_screen(console: Console) -> bool:
    """Return whether the console is a terminal; unlike rich, FORCE_COLOR does not make a file one."""
    return console.file.isatty()


def say(message: str | Text, console: Console = OUT) -> None:
    """Print a text, wrapped between words on a terminal; words are not split, so that names can be copied.

    Control characters in a plain text are shown escaped.
    """
    text = Text(visible(message)) if isinstance(message, str) else message
    for line in _wrapped(text, console.width) if on_screen(console) else [text]:
        console.print(line)


def _wrapped(text: Text, width: int) -> Iterator[Text]:
    """Yield lines of at most `width` characters, or of one longer word."""
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
    say(Text.assemble(("warning:", "yellow"), f" {visible(message)}"), ERR)


class LogHandler(logging.Handler):
    """Shows log records on stderr: warnings and errors like `warn`, each once, others plain."""

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        if record.levelno >= logging.WARNING:
            if record.getMessage() not in self._warned:
                self._warned.add(record.getMessage())
                warn(record.getMessage())
        else:
            say(record.getMessage(), ERR)


def _shown(text: str | Text) -> Text:
    """Return a text of one style whose control characters are escaped."""
    return Text(visible(text)) if isinstance(text, str) else Text(visible(text.plain), text.style)


class Listing:
    """Labels with a text beside each, wrapped like those of `say`."""

    def __init__(self) -> None:
        self._rows: list[tuple[Text, Text]] = []

    def add_row(self, label: str | Text, text: str | Text) -> None:
        """Add a row; one without a label continues the row before."""
        bold = Text(label, "bold") if isinstance(label, str) else label
        self._rows.append((_shown(bold), _shown(text)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the rows."""
        indent = 2 + max((label.cell_len for label, _ in self._rows), default=0)
        width = max(_LEAST_TEXT, options.max_width - indent)
        for label, text in self._rows:
            lines = _wrapped(text, width) if on_screen(console) else [text]
            for number, line in enumerate(lines):
                head = label if number == 0 else Text()
                yield Text.assemble(head, " " * (indent - head.cell_len), line)


class NumberTable(Table):
    """A table with a column of names and columns of numbers.

    Numbers are never truncated, names are folded only on a narrow terminal, and no line ends in spaces.
    """

    def __init__(self, first: str, others: Iterable[str | Text], caption: str | None = None) -> None:
        super().__init__(
            box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_header=bool(first),
            caption=caption, caption_justify="left",
        )  # fmt: skip
        self.add_column(first, overflow="fold")
        for title in others:
            self.add_column(title, justify="right", no_wrap=True)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row; control characters in its texts are shown escaped."""
        super().add_row(*(_shown(each) if isinstance(each, Text) else each for each in cells), **options)

    def add_column(self, header: Any = "", *others: Any, **options: Any) -> None:
        """Add a column; control characters in its title are shown escaped."""
        super().add_column(_shown(header) if isinstance(header, Text) else header, *others, **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table."""
        whole = console.measure(self, options=options.update(max_width=sys.maxsize)).maximum
        if on_screen(console):
            names = [column for column in self.columns if not column.no_wrap]
            spare = sum(max(0, _width(console, options, column) - _LEAST_NAME) for column in names)
            whole = min(whole, max(options.max_width, whole - spare))
        drawn = super().__rich_console__(console, options.update(width=whole))
        for line in Segment.split_lines(part for part in drawn if isinstance(part, Segment)):
            yield from _without_trailing_spaces(line)
            yield Segment.line()


def _width(console: Console, options: ConsoleOptions, column: Column) -> int:
    wide = options.update(max_width=sys.maxsize)
    return max(console.measure(cell, options=wide).maximum for cell in (column.header, *column.cells))


def _without_trailing_spaces(line: list[Segment]) -> list[Segment]:
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []


class _Steps(MofNCompleteColumn):
    """Progress column with the steps done, and all steps if their number is known."""

    def render(self, task: Task) -> Text:
        """Render nothing for a task without steps."""
        return Text("") if task.total is None and not task.completed else super().render(task)


class ProgressBar:
    """A `Progress` that shows a bar with the time left on a terminal, and else a plain line every few seconds.

    Use as a context manager. Only the latest task has a bar.
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
        self._latest = ("", 0, 0)
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
        """Show the progress of a task."""
        if self._quiet:
            return
        if self._is_drawn():
            self._draw(task, done, total)
        elif 0 < done == total or time.monotonic() - self._last_line > _PLAIN_LINE_INTERVAL:
            self._last_line = time.monotonic()
            print(visible(f"{task}: {done}/{total or '?'}" if done or total else task), file=sys.stderr)

    def _is_drawn(self) -> bool:
        return not self._quiet and ERR.is_interactive and on_screen(ERR)

    def _draw(self, task: str, done: int, total: int) -> None:
        last_task, last_done, last_total = self._latest
        if self._drawn is None or (task, total) != (last_task, last_total) or done < last_done:
            if self._drawn is not None:
                self._bar.remove_task(self._drawn)
            self._drawn = self._bar.add_task(task, total=total or None, completed=done)
        else:
            self._bar.update(self._drawn, completed=done)
        self._latest = task, done, total


def image_size(text: str) -> tuple[int, int]:
    """Parse the value of an `--image-size` option, `640` or `384x640` (height x width), for argparse.

    Returns:
        Height and width, px.

    Raises:
        ArgumentTypeError: the text has another form.
    """
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected 640, or height x width as 384x640, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def model_file(text: str) -> Path:
    """Parse a MODEL argument, for argparse: a path, or `demo` for the demo model unless a file has this name."""
    path = Path(text)
    return demo.model_path() if text == "demo" and not os.path.isfile(path) else path


class Parser(argparse.ArgumentParser):
    """A parser that shows control characters in words escaped, and exits with 1 if help cannot be printed."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words, as `argparse.ArgumentParser` does it."""
        with watched() as streams:
            try:
                return super().parse_known_args(args, namespace)
            except SystemExit as end:
                raise SystemExit(streams.finish(cast("int", end.code))) from None

    def error(self, message: str) -> NoReturn:
        """Tell on stderr how to use the command and what is wrong; exit with 2."""
        super().error(visible(with_options(message)))


class Help(argparse.HelpFormatter):
    """Help formatter that does not break names at hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def add_settings(parser: argparse.ArgumentParser, default: Settings, how_to_run: bool = True) -> None:
    """Add the options of commands that run detectors on images: `Settings`, `--json`, `--quiet`, and the guards."""
    most = default.max_images
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all numbers and settings to this file")
    families = ("auto", *family_names())
    parser.add_argument(
        "--family", metavar="NAME", choices=families, default=default.family,
        help=f"head family, which decides how outputs are decoded: {', '.join(families)} ({default.family})",
    )  # fmt: skip
    parser.add_argument(
        "--preprocess", metavar="NAME|WORDS", default=default.preprocess,
        help=f"how images become inputs: {PREPROCESS_WORDS} ({default.preprocess})",
    )  # fmt: skip
    parser.add_argument("--layout", metavar="WORD", action="extend", nargs="+", default=[], help=LAYOUT_HELP)
    parser.add_argument(
        "--image-size", metavar="N|HxW", type=image_size, help="input size, for models with a dynamic one"
    )
    parser.add_argument(
        "--conf", dest="confidence", metavar="SCORE", type=float, default=default.confidence,
        help=f"score threshold of detections ({default.confidence:g})",
    )  # fmt: skip
    parser.add_argument(
        "--iou", metavar="SHARE", type=float, default=default.iou,
        help=f"NMS threshold: boxes with a greater IoU are duplicates ({default.iou:g})",
    )  # fmt: skip
    parser.add_argument(
        "--max-images", metavar="N", type=int, default=most, help=f"greatest number of images ({most or 'all'})"
    )
    if how_to_run:
        parser.add_argument(
            "--runtime", choices=CHOICES, default=default.runtime,
            help="what runs the models, on the CPU; exact: onnxruntime without integer kernels, which saturate on some "
            f"CPUs ({default.runtime}: the runtime of the target that a quantized file names, if it is installed)",
        )  # fmt: skip
        parser.add_argument(
            "--threads", metavar="N", type=int, default=default.threads,
            help=f"images to process in parallel; 0: one per core ({default.threads})",
        )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the tables")
    add_guards(parser)


def add_max_detections(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Add the option `--max-detections` of commands that measure AP."""
    default = Settings.max_detections
    parser.add_argument(
        "--max-detections",
        metavar="N",
        type=int,
        default=default,
        help=f"greatest number of detections of a class per image that AP counts ({default}, as COCO)",
    )


def settings_of(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    """Return the settings of the options that `add_settings` adds; exit with usage if one is out of range."""
    try:
        given = {each.name: getattr(arguments, each.name) for each in fields(Settings) if hasattr(arguments, each.name)}
        return Settings(**{**given, "layout": tuple(given["layout"])})
    except ConfigError as error:
        parser.error(str(error))
