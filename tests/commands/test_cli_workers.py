"""`--workers` of `python -m onnxq`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, SENTINEL, draw, snapshot

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def address(dask_pool):
    """The address of a scheduler with two workers."""
    return dask_pool._client.scheduler.address


def test_files_have_the_same_bytes(onnxq, model, address):
    for number in range(3, 20):
        draw(f"calib/{number}.png", number)
    Path("calib/5.png").write_text("no picture")
    files = [("alone", ()), ("workers", ("--workers", address))]
    ran = {}
    for name, words in files:
        options = ("--save-calibration", f"{name}.npz", "--report", f"{name}.json", "-o", f"{name}.onnx")
        ran[name] = onnxq(model, "--calib", "calib", *options, *words)
        assert ran[name].code == 0, ran[name].err
    alone, workers = (Path(f"{name}.onnx").read_bytes() + Path(f"{name}.npz").read_bytes() for name, _ in files)
    assert alone == workers
    said = [[line for line in ran[name].err.splitlines() if "calibrating" not in line] for name, _ in files]
    assert said[0] == said[1]
    assert any("5.png" in line for line in said[0])


def test_what_is_no_address_is_wrong_usage(onnxq, model):
    ran = onnxq(model, "--workers", "localhost")
    assert ran.code == 2
    assert "--workers: expected a number of processes, or the address of a scheduler" in " ".join(ran.err.split())


def test_a_plan_needs_no_workers(onnxq, model):
    assert onnxq(model, "--dry-run", "--workers", "tcp://127.0.0.1:9").code == 0


def test_without_a_scheduler_nothing_is_written(onnxq, model, monkeypatch):
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    monkeypatch.setattr("onnxq.cluster.connect._PATIENCE", 0.3)
    before = snapshot()
    ran = onnxq(model, "--calib", "calib", "--workers", "tcp://127.0.0.1:9")
    assert ran.code == 1
    assert ran.err.startswith("error: --workers tcp://127.0.0.1:9: no scheduler answers (")
    assert snapshot() == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no process groups")
def test_ctrl_c_stops_the_processes():
    """A terminal sends the signal to all processes of the command."""
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    Path("demo.int8.onnx").write_bytes(SENTINEL)
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from onnxq.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--demo", "--count", "1000", "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]  # the first chunks are done
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.readlines()  # the end of the last process that may write to it
        assert process.wait(60) == 130
    assert said[0].startswith("calibrating: ")
    assert [line for line in said if not line.startswith("calibrating: ")] == ["interrupted; no file is half-written\n"]
    assert Path("demo.int8.onnx").read_bytes() == SENTINEL
