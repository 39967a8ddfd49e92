import argparse
import subprocess
import sys

import pytest

from onnxq.console.guards import add_guards


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_guards(parser)
    return parser.parse_args(words)


def test_the_options(capsys):
    assert parsed().max_memory is None
    assert not parsed().debug
    assert parsed("--max-memory", "2G").max_memory == 2 * 10**9
    with pytest.raises(SystemExit):
        parsed("--max-memory", "much")
    assert "argument --max-memory: expected a size as 500M or 4G, got 'much'" in capsys.readouterr().err


def test_a_traceback_shows_control_characters_escaped():
    code = (
        "from onnxq.console.terminal import guarded\n"
        "from onnxq.errors import ModelError\n"
        "def fail():\n"
        "    raise ModelError('node a\\x1b[2J\\u202e', 'another line')\n"
        "guarded(fail, debug=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("onnxq.errors.ModelError: node a\\x1b[2J\\u202e\nanother line\n")
    assert "\x1b" not in done.stderr
