"""Faulty files end in an exit code and a message; a longer run of the same cases is `python -m tests.fuzz`."""

import os
import re

import pytest
from fuzzing import KINDS, make, prepare

from onnxq.console.terminal import ERR, OUT

SEEDS = range(int(os.environ.get("ONNXQ_FUZZ_CASES", "2")))


def call(command):
    """The exit code of a command in this process."""
    module = pytest.importorskip(command.module)
    try:
        return module.main(command.arguments)
    except SystemExit as end:
        return end.code


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folder with the sound files."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder, call)
    return folder


@pytest.mark.filterwarnings("ignore")  # Pillow and numpy warn of faulty files
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exit_code_and_a_message(kind, seed, sound, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for console in (OUT, ERR):
        monkeypatch.setattr(console, "_width", 80)
    code = call(make(kind, seed, sound, tmp_path))
    said = capsys.readouterr().err
    assert code in (0, 1, 2)
    assert code == 0 or re.search(r"^(onnxq: )?error: .", said, re.MULTILINE)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", said)
