import errno
import io
import os
import sys

import pytest

from onnxq.console.streams import Streams, watched


class Failing(io.StringIO):
    """A stream that takes no text."""

    def __init__(self, error, descriptor):
        super().__init__()
        self.error, self.descriptor = error, descriptor

    def write(self, text):
        raise self.error

    def fileno(self):
        return self.descriptor


@pytest.fixture
def descriptor(tmp_path):
    found = os.open(tmp_path / "stream", os.O_CREAT | os.O_WRONLY)
    yield found
    os.close(found)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "own", "code", "told"),
    [
        (FULL, 0, 1, "error: the results cannot be printed (No space left on device); files are complete\n"),
        (FULL, 2, 2, "error: the results cannot be printed (No space left on device); files are complete\n"),
        (BrokenPipeError(), 0, 141, ""),
        (BrokenPipeError(), 1, 1, ""),
    ],
)
def test_of_stdout(monkeypatch, descriptor, error, own, code, told):
    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Failing(error, descriptor))
    monkeypatch.setattr(sys, "stderr", err)
    with watched() as streams:
        print("a")
        print("b", file=sys.stderr)
        assert streams.finish(own) == code
    assert err.getvalue() == "b\n" + told
    assert os.path.samestat(os.fstat(descriptor), os.stat(os.devnull))


@pytest.mark.parametrize(("error", "code"), [(FULL, 1), (BrokenPipeError(), 141)])
def test_of_stderr(monkeypatch, descriptor, error, code):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", Failing(error, descriptor))
    with watched() as streams:
        print("b", file=sys.stderr, flush=True)
        print("a")
        assert streams.finish(0) == code
    assert out.getvalue() == "a\n"


def test_closed_ones_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with watched() as streams:
        print("a")
        assert streams.finish(0) == 0


def test_good_ones_pass_everything_on(capsys):
    before = sys.stdout
    with watched() as streams:
        print("a", end="")
        assert sys.stdout.encoding == before.encoding
        assert not sys.stdout.isatty()
        assert streams.finish(0) == 0
    assert sys.stdout is before
    assert capsys.readouterr() == ("a", "")


def test_a_stream_that_was_closed_before_is_freed_in_silence(monkeypatch):
    closed = io.StringIO()
    monkeypatch.setattr("sys.stdout", closed)
    streams = Streams()
    closed.close()
    streams.out.flush()
    streams.out.close()
