import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onnxq.process import interrupts

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = ("onnxq", "onnxq.evaluate", "onnxq.compare", "onnxq.benchmark", "onnxq.prove", "onnxq.view")


@pytest.fixture
def handler():
    """Give SIGINT the handler that Python gives it, and restore the one it had."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupts_end_the_process_until_they_are_raised(handler):
    interrupts.end_at_once()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    with interrupts.raised():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda number, frame: None])
def test_the_handler_of_others_stays(handler, own):
    signal.signal(signal.SIGINT, own)
    interrupts.end_at_once()
    with interrupts.raised():
        assert signal.getsignal(signal.SIGINT) is own
    assert signal.getsignal(signal.SIGINT) is own


def test_other_threads_change_nothing(handler):
    thread = threading.Thread(target=interrupts.end_at_once)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("argv", "words", "expected"),
    [
        (["-m"], ["python", "-m", "onnxq.prove", "a.onnx"], True),
        (["-m", "a.onnx"], ["python", "-X", "dev", "-m", "onnxq"], True),
        (["-m"], ["python", "-m", "pytest", "onnxq"], False),
        (["-m"], ["python", "-m"], False),
        (["/usr/bin/onnxq", "a.onnx"], ["python", "/usr/bin/onnxq", "a.onnx"], True),
        (["script.py"], ["python", "script.py", "-m", "onnxq"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_commands_are_known_by_their_words(monkeypatch, argv, words, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", words)
    assert interrupts.is_command() == expected


@pytest.mark.skipif(sys.platform == "win32", reason="a signal of POSIX")
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_while_a_command_starts_prints_nothing(command, tmp_path):
    # An import that lasts until the interrupt comes.
    (tmp_path / "onnx_graphsurgeon.py").write_text("import time\nprint('imports', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-m", command, "model.onnx"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
        # A shell that starts the tests in the background has it ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "imports\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == -signal.SIGINT
