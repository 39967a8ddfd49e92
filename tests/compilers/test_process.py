import os
import signal
import sys
import time

import numpy as np
import pytest
from graphs import silu_chain

from onnxq.compilers.base import Job
from onnxq.compilers.process import has_module, last_words, outputs_of, run_worker
from onnxq.errors import ConfigError, ModelError


@pytest.fixture
def run(tmp_path):
    """Run the text of a script as a compiler, and return its result, what it printed and the job."""
    folder = tmp_path / "work"
    folder.mkdir()

    def start(text, timeout=60.0, feeds=(), python=sys.executable):
        script = tmp_path / "script.py"
        script.write_text(text)
        job = Job(silu_chain(), (), feeds, folder, "", python, timeout)
        return *run_worker(script, "The compiler", job, {"level": 2}), job

    return start


ECHO = """
import json, pathlib
import numpy as np
job = json.loads(pathlib.Path("job.json").read_text())
assert pathlib.Path("model.onnx").stat().st_size > 0
for number in range(job["feeds"]):
    with np.load(f"feed_{number}.npz") as feed:
        np.savez(f"outputs_{number}.npz", **{"0": 2 * feed["x/y"]})
print("said")
pathlib.Path("result.json").write_text(json.dumps(job))
"""


def test_options_and_feeds_reach_the_script_and_results_come_back(run):
    feeds = [{"x/y": np.full(3, number, np.float32)} for number in range(2)]
    told, printed, job = run(ECHO, feeds=feeds)
    assert told == {"level": 2, "feeds": 2}
    assert printed == "said\n"
    [name] = [output.name for output in job.model.graph.output]
    assert [outputs[name].tolist() for outputs in outputs_of(job)] == [[0, 0, 0], [2, 2, 2]]


def test_a_script_that_fails_is_told_with_its_last_words(run):
    with pytest.raises(ModelError) as raised:
        run("print('noise\\n' * 20)\nraise SystemExit('no such operator: Foo')")
    first, *words = raised.value.args
    assert first == "The compiler failed (exit code 1); its last words:"
    assert words[-1] == "  no such operator: Foo"
    assert len(words) == 6


def test_a_crash_is_told_with_its_signal(run):
    with pytest.raises(ModelError, match=r"The compiler crashed \(SIGABRT\); its last words:\n  about to"):
        run("import os\nprint('about to', flush=True)\nos.abort()")


def test_a_script_without_a_result_has_failed(run):
    with pytest.raises(ModelError, match=r"The compiler ended without a result; its last words:\n  \(none\)"):
        run("")


def test_a_script_that_hangs_is_ended_with_the_processes_that_it_started(run, tmp_path):
    pid = tmp_path / "pid"
    text = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(pid)!r}).write_text(str(child.pid))
print("working", flush=True)
time.sleep(600)
"""
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"was ended after \d+ s \(--timeout\); its last words:\n  working"):
        run(text, timeout=3.0)
    assert time.monotonic() - start < 60
    assert is_gone(int(pid.read_text()))


def is_gone(pid):
    """Whether a process ended within some seconds; nobody may be there to reap it."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return False


def test_an_interpreter_that_is_absent(run):
    with pytest.raises(ConfigError, match=r"^/nowhere/python: cannot be run \(No such file or directory\)"):
        run("", python="/nowhere/python")
    with pytest.raises(ConfigError, match="--python /nowhere/python: cannot be run"):
        has_module("/nowhere/python", "json")


def test_modules_are_looked_for_in_the_environment_of_the_interpreter():
    assert has_module(sys.executable, "json")
    assert not has_module(sys.executable, "no_such_module")


def test_last_words_are_short():
    assert last_words("a\n\n  b  \n" + "c" * 1000) == ["  a", "    b", "  " + "c" * 300]
    assert last_words("\x1b[0;93ma warning\x1b[m\n") == ["  a warning"]
    assert last_words("\n") == ["  (none)"]
