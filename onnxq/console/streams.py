"""Standard output and error that may be full or closed: the work goes on without them, and the exit code tells it."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

BROKEN_PIPE = 141
"""Exit code of a program that SIGPIPE ended, as shells report it."""


class _Stream(io.TextIOBase):
    """A stream that drops everything after its first failure.

    Attributes:
        failure: the first failure; None: everything was written so far.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return self._stream.encoding

    def write(self, text: str, /) -> int:
        """Write a text."""
        if self.failure is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self.failure = error
        return len(text)

    def flush(self) -> None:
        """Write what is pending; nothing is if the stream was closed before, as when Python frees this one."""
        if self.failure is None and not self._stream.closed:
            try:
                self._stream.flush()
            except OSError as error:
                self.failure = error

    def isatty(self) -> bool:
        """Return whether this is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._stream.fileno()

    def discard(self) -> None:
        """Lead a stream that failed to the null device; otherwise Python reports the error at exit."""
        if self.failure is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


class Streams:
    """Standard output and error; each is None if it was closed when Python started."""

    def __init__(self) -> None:
        self.out, self.err = (None if each is None else _Stream(each) for each in (sys.stdout, sys.stderr))

    def finish(self, code: int) -> int:
        """Write what is pending, tell on stderr why stdout failed, and return the exit code.

        Args:
            code: exit code of the command itself; it stays unless it is 0.
        """
        streams = [each for each in (self.out, self.err) if each is not None]
        if self.out is not None:
            self.out.flush()
        failure = self.out.failure if self.out is not None else None
        if failure is not None and not isinstance(failure, BrokenPipeError) and self.err is not None:
            self.err.write(f"error: the results cannot be printed ({failure.strerror}); files are complete\n")
        if self.err is not None:
            self.err.flush()
        failures = [each.failure for each in streams if each.failure is not None]
        for each in streams:
            each.discard()
        if code or not failures:
            return code
        return BROKEN_PIPE if all(isinstance(each, BrokenPipeError) for each in failures) else 1


@contextlib.contextmanager
def watched() -> Iterator[Streams]:
    """Within the block, failures of standard output and error raise nothing."""
    streams = Streams()
    with contextlib.ExitStack() as stack:
        if streams.out is not None:
            stack.enter_context(contextlib.redirect_stdout(streams.out))
        if streams.err is not None:
            stack.enter_context(contextlib.redirect_stderr(streams.err))
        yield streams
