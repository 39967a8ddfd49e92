"""Ctrl+C while a command is starting: imports take a second, and an interrupt within them is no fault to trace."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_NAME = "onnxq"


def end_at_once() -> None:
    """Let an interrupt end the process at once, without a traceback; `raised` lets it raise an exception again."""
    if _handler() is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Let an interrupt raise KeyboardInterrupt within the block, as Python does."""
    if before := _handler() is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if before:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _handler() -> object:
    """Return the handler of SIGINT; None in a thread that cannot set it."""
    return signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None


def is_command() -> bool:
    """Return whether this process is `python -m onnxq...`, whose modules are being imported, or the script `onnxq`."""
    if sys.argv[:1] != ["-m"]:
        return bool(sys.argv) and Path(sys.argv[0]).stem == _NAME
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return module.split(".")[0] == _NAME
