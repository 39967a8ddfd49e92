import io
import logging
import os
import sys

import pytest
from rich.console import Console

from onnxq import terminal
from onnxq.errors import ConfigError, DataError, ModelError, PipelineError
from onnxq.progress import silent
from onnxq.terminal import ERR, OUT, LogHandler, ProgressBar, guarded, warn

LITERAL = ["[red]x[/]", "a[0].b[-1]", "[/", r"re:\[x", "[link=http://x]y", ":car: :x:", "re:[a-", "100 %", "tail\\"]


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    """Whatever the environment says."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for console in (OUT, ERR):
        monkeypatch.setattr(console, "_color_system", None)


def failing(error):
    def body():
        raise error

    return body


class TestGuarded:
    def test_a_body_that_ends_is_0_and_silent(self, capsys):
        ran = []
        assert guarded(lambda: ran.append(1)) == 0
        assert ran == [1]
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError, PipelineError])
    def test_an_error_is_1_and_one_line_on_stderr(self, capsys, kind):
        assert guarded(failing(kind("a.onnx: no such file; check the path"))) == 1
        assert capsys.readouterr() == ("", "error: a.onnx: no such file; check the path\n")

    def test_an_interrupt_is_130_and_one_line_on_stderr(self, capsys):
        assert guarded(failing(KeyboardInterrupt())) == 130
        assert capsys.readouterr() == ("", "interrupted; no file is half-written\n")

    @pytest.mark.parametrize("error", [ModelError("x"), KeyboardInterrupt()])
    def test_debug_lets_it_through(self, capsys, error):
        with pytest.raises(type(error)):
            guarded(failing(error), debug=True)
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError, OSError, SystemExit])
    def test_bugs_pass_through(self, capsys, error):
        with pytest.raises(error):
            guarded(failing(error()))
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("text", LITERAL)
    def test_messages_are_shown_literally(self, capsys, text):
        assert guarded(failing(DataError(f"{text}: no such file; check"))) == 1
        assert capsys.readouterr().err == f"error: {text}: no such file; check\n"

    def test_long_messages_stay_one_line(self, capsys):
        guarded(failing(DataError("word " * 100)))
        assert len(capsys.readouterr().err.splitlines()) == 1


class TestWarnings:
    @pytest.mark.parametrize("text", LITERAL)
    def test_are_shown_literally(self, capsys, text):
        warn(text)
        assert capsys.readouterr() == ("", f"warning: {text}\n")

    @pytest.mark.parametrize("text", LITERAL)
    def test_from_the_log_look_the_same(self, capsys, text):
        logger = logging.Logger("a")
        logger.addHandler(LogHandler())
        logger.warning("%s!", text)
        logger.info("%s?", text)
        assert capsys.readouterr() == ("", f"warning: {text}!\n{text}?\n")


@pytest.mark.parametrize("text", LITERAL)
def test_what_is_printed_is_shown_literally(capsys, text):
    OUT.print(text)
    ERR.print(text)
    assert capsys.readouterr() == (f"{text}\n", f"{text}\n")


@pytest.fixture
def screen(monkeypatch):
    """What a terminal of 80 columns is sent."""
    file = io.StringIO()
    monkeypatch.setattr(terminal, "ERR", Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"}))
    return file


class TestProgressBar:
    def test_says_nothing_when_quiet(self, capsys):
        with ProgressBar(quiet=True) as progress:
            for done in range(11):
                progress("calibrating", done, 10)
        assert capsys.readouterr() == ("", "")

    def test_says_nothing_when_quiet_on_a_terminal(self, screen):
        with ProgressBar(quiet=True) as progress:
            progress("calibrating", 5, 10)
        assert screen.getvalue() == ""

    def test_a_fast_task_is_one_plain_line_where_there_is_no_terminal(self, capsys):
        with ProgressBar() as progress:
            for done in range(1, 11):
                progress("calibrating", done, 10)
        assert capsys.readouterr() == ("", "calibrating: 10/10\n")

    def test_a_slow_task_is_a_plain_line_now_and_then(self, capsys, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
        with ProgressBar() as progress:
            for done in range(1, 11):
                now[0] += 2
                progress("calibrating", done, 10)
        lines = capsys.readouterr().err.splitlines()
        assert lines == ["calibrating: 3/10", "calibrating: 6/10", "calibrating: 9/10", "calibrating: 10/10"]

    def test_an_unknown_total_is_a_question_mark(self, capsys, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
        with ProgressBar() as progress:
            now[0] += 60
            progress("calibrating", 7, 0)
        assert capsys.readouterr().err == "calibrating: 7/?\n"

    def test_plain_lines_have_no_control_codes(self, capsys):
        with ProgressBar() as progress:
            progress("calibrating", 10, 10)
        assert capsys.readouterr().err.isprintable() is False  # the line's end
        with ProgressBar() as progress:
            progress("calibrating", 10, 10)
        assert capsys.readouterr().err.rstrip("\n").isprintable()

    def test_is_a_bar_on_a_terminal_and_goes_when_done(self, screen):
        with ProgressBar() as progress:
            progress("calibrating", 5, 10)
            terminal.ERR.print("warning in between")
        sent = screen.getvalue()
        assert "calibrating" in sent
        assert "5/10" in sent
        assert "warning in between\n" in sent
        assert sent.rindex("\x1b[2K") > sent.rindex("5/10")  # the line is erased

    def test_has_a_bar_for_each_task(self, screen):
        with ProgressBar() as progress:
            progress("calibrating", 10, 10)
            progress("evaluating", 3, 7)
        sent = screen.getvalue()
        assert "10/10" in sent
        assert "3/7" in sent

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError])
    def test_gives_the_cursor_back_after_an_error(self, screen, error):
        def work():
            with ProgressBar() as progress:
                progress("calibrating", 1, 10)
                raise error

        with pytest.raises(error):
            work()
        sent = screen.getvalue()
        assert sent.rindex("\x1b[?25h") > sent.rindex("\x1b[?25l")

    def test_writes_no_bar_into_a_pipe(self):
        read, write = os.pipe()
        with open(read) as reader, open(write, "w") as writer:
            before, sys.stderr = sys.stderr, writer
            try:
                with ProgressBar() as progress:
                    progress("calibrating", 10, 10)
            finally:
                sys.stderr = before
            writer.close()
            assert reader.read() == "calibrating: 10/10\n"


def test_a_program_may_be_told_nothing(capsys):
    silent("calibrating", 1, 2)
    assert capsys.readouterr() == ("", "")
