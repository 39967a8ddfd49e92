"""What protects a user from inputs of others: a limit of memory, and tracebacks that cannot disturb a terminal."""

import argparse
import contextlib
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

from onnxq import memory
from onnxq._text import visible


def add_guards(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Add the options `--max-memory` and `--debug`."""
    parser.add_argument(
        memory.OPTION,
        metavar="SIZE",
        type=_size,
        help="refuse what a model or data asks for at once beyond this: constants, activations, pictures, arrays; as "
        "500M or 4G (half of the machine's memory)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")


def _size(text: str) -> int:
    try:
        return memory.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@contextlib.contextmanager
def escaped_traceback() -> Iterator[None]:
    """Let Python show the traceback of what the block raises with its control characters escaped."""
    try:
        yield
    except BaseException:
        sys.excepthook = _show
        raise


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does; line breaks within a message stay."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print("\n".join(map(visible, text.rstrip("\n").split("\n"))), file=sys.stderr)
