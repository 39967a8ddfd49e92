"""Commands that are broken off at operations on files; the whole table is `python -m tests.fuzz.file_faults`."""

import shutil
import subprocess
import sys
from pathlib import Path

import file_faults
import pytest

ROOT = Path(__file__).resolve().parents[2]

TEMPORARY = "work/.onnxq-5bce98f7-d976528e7f7135c2"


def test_the_first_and_last_operation_of_each_kind_are_chosen():
    operations = [("open", TEMPORARY), *[("write", TEMPORARY)] * 5, ("rename", "work/a.onnx"), ("open", "tmp/onnxq")]
    assert file_faults.chosen(operations) == [1, 2, 6, 7, 8]


@pytest.mark.parametrize(
    ("name", "content", "whole"),
    [
        ("a.onnx", b"old", True),
        ("a.onnx", b"new", True),
        ("a.onnx", b"ne", False),
        ("a.json", b'{"seconds": 2}', True),
        ("a.json", b'{"seconds": ', False),
        ("a.html", b"<html>now</html>\n", True),
        ("a.html", b"<html>no", False),
        ("other.onnx", b"new", False),
        ("steps", file_faults.EMPTY, True),
        ("others", file_faults.EMPTY, False),
    ],
)
def test_a_file_is_whole_if_it_is_the_old_or_a_new_one(name, content, whole):
    names = ("a.onnx", "a.json", "a.html", "steps/a.onnx")
    assert file_faults.is_whole(name, content, {"a.onnx": b"old"}, dict.fromkeys(names, b"new")) is whole


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc")
def test_a_command_that_is_broken_off_leaves_whole_files():
    command = [sys.executable, "-m", "tests.fuzz.file_faults", "--cases", "evaluate", "--most", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].split()[-4:] == ["2", "6", "6", "0"]
