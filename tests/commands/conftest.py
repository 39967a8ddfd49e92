"""The command line of `python -m onnxq` in a working directory of its own."""

import logging
from pathlib import Path

import pytest
from command_line import Ran, draw, save
from graphs import v8

from onnxq.cli import main
from onnxq.console.terminal import ERR, OUT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory; consoles whatever the environment says of them; the root logger as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for console in (OUT, ERR):
        monkeypatch.setattr(console, "_color_system", None)
        monkeypatch.setattr(console, "_width", 80)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def onnxq(folder, capsys):
    """Run the command line without measuring speed, and give what it returns and says: `--speed` overrules this."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main(["--no-speed", *(str(each) for each in argv)])
        except SystemExit as error:  # argparse
            code = error.code
        return Ran(code, *capsys.readouterr())

    return run


_MADE: dict[tuple[object, ...], bytes] = {}


@pytest.fixture
def made(onnxq, model):
    """Write what the command line makes of `model` and its images with some options; it runs once for all tests."""

    def write(name, *options):
        if options not in _MADE:
            ran = onnxq(model, "--calib", "calib", "-o", name, *options)
            assert ran.code == 0, ran.err
            _MADE[options] = Path(name).read_bytes()
        Path(name).write_bytes(_MADE[options])

    return write


@pytest.fixture
def model(folder):
    """A detector, its weights, and images to calibrate it on."""
    for number in range(3):
        draw(f"calib/{number}.png", number, (40 + 10 * number, 48))
    return save(v8())
