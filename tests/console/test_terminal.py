import argparse
import contextlib
import io
import logging
import os
import sys

import pytest
from rich.console import Console
from rich.text import Text

from onnxq.console import terminal
from onnxq.console.terminal import ERR, OUT, Help, Listing, LogHandler, NumberTable, ProgressBar, guarded, say, warn
from onnxq.errors import ConfigError, DataError, ModelError, PipelineError
from onnxq.progress import silent

PATH = "models/a-folder-with-quite-a-long-name/and-another-one/a-detector-of-something-640x640.int8.onnx"
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


class TestLogging:
    def test_is_shown_from_the_level_on_and_by_nobody_else(self, capsys, caplog):
        def body():
            logging.getLogger("onnxq.passes.verify").warning("a")
            logging.getLogger("onnxq").info("b")
            logging.getLogger("onnxq").debug("c")

        guarded(body, level=logging.INFO)
        assert capsys.readouterr().err == "warning: a\nb\n"
        assert not caplog.records

    @pytest.mark.parametrize("end", [None, ModelError("x"), KeyboardInterrupt(), ZeroDivisionError()])
    def test_is_left_as_it_was(self, end, monkeypatch):
        monkeypatch.setattr(logging.getLogger("onnxq"), "propagate", True)

        def state():
            return [(log.level, log.propagate, log.handlers[:]) for log in map(logging.getLogger, ("", "onnxq"))]

        def body():
            if end is not None:
                raise end

        before = state()
        with contextlib.suppress(ZeroDivisionError):
            guarded(body, level=logging.ERROR)
        assert state() == before


def test_a_pipe_that_nobody_reads_is_no_error(tmp_path, monkeypatch):
    """A closed pipe, as that of a shell's `head`, prints no error, neither during the run nor at exit."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, (tmp_path / "errors").open("w") as errors:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", errors)
        assert guarded(lambda: type(OUT)(stderr=False).print("x")) == 141
        pipe.flush()
    assert (tmp_path / "errors").read_text() == ""


@pytest.mark.parametrize("text", LITERAL)
def test_what_is_printed_is_shown_literally(capsys, text):
    OUT.print(text)
    ERR.print(text)
    say(text)
    assert capsys.readouterr() == (f"{text}\n{text}\n", f"{text}\n")


class Screen(io.StringIO):
    """The characters that a terminal receives."""

    def isatty(self):
        return True


def shown(what, width, file=None):
    """The lines that a terminal of this width, or a file, gets."""
    file = file or Screen()
    console = Console(file=file, width=width, soft_wrap=True, color_system=None)
    console.print(what) if not isinstance(what, str) else say(what, console)
    return file.getvalue().split("\n")[:-1]


class TestLines:
    def test_are_broken_between_words_on_a_terminal(self):
        assert shown("the first layer gives values", 12) == ["the first", "layer gives", "values"]

    def test_keep_names_whole(self):
        assert shown(f"error: {PATH}: no such file", 40) == ["error:", f"{PATH}:", "no such file"]

    def test_are_counted_in_columns(self):
        assert shown("ab 検出 器 cd", 8) == ["ab 検出", "器 cd"]

    def test_keep_their_own_ends(self):
        assert shown(Text("wrong:\n  a b\n  c"), 5) == ["wrong:", "  a b", "  c"]

    def test_stay_whole_in_a_file(self):
        assert shown("the first layer gives values", 12, io.StringIO()) == ["the first layer gives values"]

    def test_keep_their_colours(self):
        file = Screen()
        console = Console(file=file, width=12, _environ={"TERM": "xterm"})
        say(Text.assemble(("warning:", "yellow"), " what it is"), console)
        assert file.getvalue() == "\x1b[33mwarning:\x1b[0m\nwhat it is\n"


class TestListing:
    @pytest.fixture
    def listing(self):
        made = Listing()
        made.add_row("model", "v8, which has one box per cell")
        made.add_row("", "and so on")
        made.add_row(Text("output"), PATH)
        return made

    def test_in_a_file_each_row_is_a_line(self, listing):
        assert shown(listing, 30, io.StringIO()) == [
            "model   v8, which has one box per cell", "        and so on", f"output  {PATH}"
        ]  # fmt: skip

    def test_rows_are_broken_on_a_terminal_but_names_are_not(self, listing):
        assert shown(listing, 30) == [
            "model   v8, which has one box", "        per cell", "        and so on", f"output  {PATH}"
        ]  # fmt: skip

    def test_a_terminal_may_be_narrow(self, listing):
        assert shown(listing, 3)[-1] == f"output  {PATH}"


class TestColumns:
    @pytest.fixture
    def table(self):
        made = NumberTable("model", ["AP", "change"], "in percent")
        made.add_row("a.onnx", "63.87", "")
        made.add_row(Text(PATH), "63.46", "-0.41")
        return made

    @pytest.mark.parametrize("file", [Screen, io.StringIO])
    def test_no_line_ends_in_spaces(self, table, file):
        assert not [line for line in shown(table, 120, file()) if line.endswith(" ")]

    def test_nothing_is_folded_in_a_file(self, table):
        lines = shown(table, 30, io.StringIO())
        assert f" {PATH}  63.46   -0.41" in lines
        assert lines[-1] == "in percent"

    def test_only_names_are_folded_on_a_terminal(self, table):
        lines = shown(table, 60)
        assert max(map(len, lines)) <= 60
        assert " a.onnx" + 30 * " " in next(line for line in lines if "63.87" in line)
        assert PATH in "".join(line.split("  ")[0].strip() for line in lines)

    @pytest.mark.parametrize("width", [1, 10, 20])
    def test_numbers_are_whole_however_narrow(self, table, width):
        words = " ".join(shown(table, width)).split()
        assert {"63.87", "63.46", "-0.41", "change", "AP"} <= set(words)


def test_help_keeps_names_whole():
    parser = argparse.ArgumentParser(formatter_class=Help)
    parser.add_argument("--family", help="how outputs are decoded: " + ", ".join(20 * ["nms-counted"]))
    assert not [line for line in parser.format_help().splitlines() if line.endswith("-")]


@pytest.fixture
def screen(monkeypatch):
    """The characters that a terminal of 80 columns receives."""
    file = Screen()
    monkeypatch.setattr(terminal, "ERR", Console(file=file, width=80, soft_wrap=True, _environ={"TERM": "xterm"}))
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

    def test_shows_one_task_at_a_time(self, screen):
        with ProgressBar() as progress:
            progress("calibrating", 10, 10)
            progress("evaluating", 3, 7)
        sent = screen.getvalue()
        assert "10/10" in sent
        assert "3/7" in sent
        assert "calibrating" not in sent[sent.index("evaluating") :]

    def test_begins_anew_where_a_task_does(self, screen):
        with ProgressBar() as progress:
            progress("calibrating", 9, 10)
            progress("calibrating", 10, 10)
            progress("calibrating", 1, 10)
        sent = screen.getvalue()
        assert "0:00:00" not in sent[sent.index(" 1/10") :]  # nothing is known of the time that it takes

    def test_moves_without_steps_too(self, screen):
        with ProgressBar() as progress:
            progress("checking", 0, 0)
        assert "checking" in screen.getvalue()
        assert "0/" not in screen.getvalue()

    @pytest.mark.parametrize("environment", [{"TERM": "xterm", "FORCE_COLOR": "1"}, {"TERM": "dumb"}])
    def test_is_no_bar_in_a_file_with_colours_or_where_lines_cannot_be_erased(self, monkeypatch, capsys, environment):
        file = io.StringIO() if "FORCE_COLOR" in environment else Screen()
        monkeypatch.setattr(terminal, "ERR", Console(file=file, _environ=environment))
        with ProgressBar() as progress:
            progress("loading", 0, 0)
            progress("calibrating", 10, 10)
        assert (file.getvalue(), capsys.readouterr().err) == ("", "calibrating: 10/10\n")

    def test_a_task_without_steps_is_named_after_a_while(self, capsys, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
        with ProgressBar() as progress:
            progress("loading", 0, 0)
            now[0] += 60
            progress("checking", 0, 0)
        assert capsys.readouterr().err == "checking\n"

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
