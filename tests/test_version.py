import re
import subprocess
import sys

import pytest

import onnxq
from onnxq.version import VERSION


def test_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+([ab]|rc)?\d*", VERSION)


@pytest.mark.slow
def test_is_the_one_of_the_package_and_of_the_command():
    assert onnxq.__version__ == VERSION
    said = subprocess.run([sys.executable, "-m", "onnxq", "--version"], capture_output=True, text=True, check=True)
    assert VERSION in said.stdout
