"""What the command lines of onnxq share: two consoles, the progress bar, options, and errors turned into exit codes."""

import argparse
import io
import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from onnxq.errors import ConfigError, OnnxqError
from onnxq.heads import FAMILIES
from onnxq.images import PREPROCESSES
from onnxq.network import Settings

# Names of files and nodes may look like rich's markup or emoji codes; they are shown as they are.
OUT = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
ERR = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)

INTERRUPTED = 130
_SECONDS_BETWEEN_PLAIN_LINES = 5.0


def guarded(body: Callable[[], None], debug: bool = False) -> int:
    """Run a command's body and return its exit code: 0, or 1 with one message on stderr for an `OnnxqError`.

    With `debug` the error keeps its traceback. Other exceptions are bugs and pass through.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: no name may keep a result from being told
    try:
        body()
    except OnnxqError as error:
        if debug:
            raise
        ERR.print(Text.assemble(("error:", "bold red"), f" {error}"))
        return 1
    except KeyboardInterrupt:
        if debug:
            raise
        ERR.print("interrupted; no file is half-written")
        return INTERRUPTED
    return 0


def warn(message: str) -> None:
    """Show a warning on stderr."""
    ERR.print(Text.assemble(("warning:", "yellow"), f" {message}"))


class LogHandler(logging.Handler):
    """Shows log records on stderr: warnings and worse as `warn` does, others plain."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            ERR.print(record.getMessage())


class ProgressBar:
    """A `Progress` for the command line: a bar with time left on a terminal, a plain line now and then elsewhere.

    Use as a context manager; calls with another task name open another bar.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = RichProgress(
            TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=ERR, transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        if ERR.is_terminal and not self._quiet:
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
        if ERR.is_terminal:
            if task not in self._tasks:
                self._tasks[task] = self._bar.add_task(task, total=total or None)
            self._bar.update(self._tasks[task], completed=done)
        elif done == total or time.monotonic() - self._last_line > _SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line = time.monotonic()
            print(f"{task}: {done}/{total or '?'}", file=sys.stderr)


def image_size(text: str) -> tuple[int, int]:
    """Parse the value of an `--image-size` option, `640` or height x width as `384x640`, for argparse."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no image size; give 640, or height x width as 384x640")
    return int(match[1]), int(match[2] or match[1])


def add_settings(parser: argparse.ArgumentParser, default: Settings) -> None:
    """Add the options of what runs detectors on pictures: `Settings`, `--json`, `--quiet` and `--debug`."""
    most = default.max_images
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers and settings to this file as well")
    parser.add_argument("--family", choices=("auto", *FAMILIES), default=default.family, help="how outputs are decoded")
    parser.add_argument("--preprocess", choices=("auto", *PREPROCESSES), default=default.preprocess)
    parser.add_argument("--image-size", metavar="N|HxW", type=image_size, help="for models that take any size")
    parser.add_argument(
        "--conf", dest="confidence", metavar="SCORE", type=float, default=default.confidence,
        help=f"least score of a detection ({default.confidence:g})",
    )  # fmt: skip
    parser.add_argument("--iou", type=float, default=default.iou, help="boxes that overlap more are duplicates")
    parser.add_argument(
        "--max-images", metavar="N", type=int, default=most, help=f"at most so many pictures ({most or 'all'})"
    )
    parser.add_argument("--threads", metavar="N", type=int, default=default.threads, help="0: one per core")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the tables and nothing else")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")


def settings_of(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    """What was given for the options of `add_settings`; ends the program where one is out of range."""
    try:
        return Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    except ConfigError as error:
        parser.error(str(error))
