"""`--workers` of `python -m onnxq`, `onnxq.evaluate` and `onnxq.compare`."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import ROOT, SENTINEL, draw, snapshot

import onnxq as onnxq_api
from onnxq import compare, evaluate
from onnxq.calibration import demo
from onnxq.evaluation.ground_truth import demo_ground_truth

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


def test_finished_samples_are_looked_for_beside_the_output(onnxq, model, address):
    Path("model.int8.finished.npz").write_text("notes")
    ran = onnxq(model, "--calib", "calib", "--workers", address)
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("error: model.int8.finished.npz: is no file of finished samples (")
    assert onnxq(model, "--calib", "calib").code == 0


def test_several_models_share_the_workers(onnxq, model, address):
    shutil.copy(model, "second.onnx")
    Path("broken.onnx").write_text("no model")
    expected = []
    for words in ((), ("--workers", address)):
        ran = onnxq(model, "broken.onnx", "second.onnx", "--calib", "calib", *words)
        assert ran.code == 1
        assert ran.err.splitlines()[-1] == "error: 1 of 3 models failed: broken.onnx"
        assert "error: broken.onnx: " in ran.err
        assert ran.out.count(" of ") == 3
        expected.append([Path(name).read_bytes() for name in ("model.int8.onnx", "second.int8.onnx")])
    assert expected[0] == expected[1]


@pytest.mark.slow
def test_a_search_finds_the_same(onnxq, model, address):
    for number in range(4):
        draw(f"others/{number}.png", 50 + number)
    options = ("--calib", "calib", "--images", "others", "--weight-bits", "4", "--no-reconstruct", "--min-sqnr", "50")
    found = []
    for name, words in (("alone", ()), ("workers", ("--workers", address))):
        ran = onnxq(model, *options, *words, "-o", f"{name}.onnx", "--report", f"{name}.json")
        assert ran.code == 0, ran.err
        found.append((Path(f"{name}.onnx").read_bytes(), json.loads(Path(f"{name}.json").read_text())["search"]))
    assert found[0] == found[1]
    assert len(found[0][1]["trials"]) > 2


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """The demo model on integers."""
    path = tmp_path_factory.mktemp("quantized") / "demo.int8.onnx"
    onnxq_api.quantize(demo.model_path(), demo.CALIBRATION, onnxq_api.Config(count=10)).save(path)
    return path


@pytest.mark.parametrize(
    ("command", "runtime"),
    [
        pytest.param(evaluate.main, "ort", id="evaluate"),
        pytest.param(evaluate.main, "openvino", id="evaluate in OpenVINO", marks=pytest.mark.slow),
        pytest.param(compare.main, "ort", id="compare", marks=pytest.mark.slow),
    ],
)
def test_numbers_are_the_same(command, runtime, quantized, address, capsys):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    printed = []
    for name, words in (("alone", ()), ("workers", ("--workers", address))):
        options = ("--demo", "--max-images", "16", "--runtime", runtime, "--json", f"{name}.json", *words)
        assert command([str(demo.model_path()), str(quantized), *options]) == 0
        said = capsys.readouterr()
        printed.append((said.out, [line for line in said.err.splitlines() if "/16" not in line]))
    assert Path("alone.json").read_bytes() == Path("workers.json").read_bytes()
    assert printed[0] == printed[1]


@pytest.mark.slow
def test_the_model_is_measured_by_the_same_workers(onnxq, address, monkeypatch):
    monkeypatch.setattr("onnxq.cli.demo_ground_truth", lambda: demo_ground_truth(8))
    options = ("--demo", "--count", "8", "--evaluate", "-o", "made.onnx", "-q")
    found = []
    for words in ((), ("--workers", address)):
        assert onnxq(*options, *words, "--report", "r.json").code == 0
        found.append(json.loads(Path("r.json").read_bytes())["evaluation"])
    assert found[0] == found[1]
    assert found[0]["images"] == 8


def test_a_picture_that_workers_cannot_read_is_an_error(quantized, address, capsys):
    for number in range(3):
        draw(f"pictures/{number}.png", number)
    Path("pictures/1.png").write_text("no picture")
    said = []
    for words in ((), ("--workers", address)):
        assert compare.main([str(demo.model_path()), str(quantized), "--images", "pictures", *words]) == 1
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].startswith("error: pictures/1.png: cannot be read as an image")


def test_drawing_is_left_to_one_process(quantized, capsys):
    with pytest.raises(SystemExit) as end:
        compare.main([str(demo.model_path()), str(quantized), "--demo", "--draw", "out", "--workers", "2"])
    assert end.value.code == 2
    assert "where the models then run: leave --workers out" in " ".join(capsys.readouterr().err.split())


def test_what_is_no_address_is_wrong_usage(onnxq, model):
    ran = onnxq(model, "--workers", "localhost")
    assert ran.code == 2
    assert "--workers: expected a number of processes below 1000, or the address of" in " ".join(ran.err.split())


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


def start_with_workers():
    """Start a long run with workers, in a process group of its own, as a terminal does."""
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from onnxq.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--demo", "--count", "1000", "--workers", "1", "--no-migrate"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)


def has_workers(group):
    """Return whether a process group has a process that Python's `multiprocessing` started."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            is_of_group = int((path / "stat").read_text().rpartition(")")[2].split()[2]) == group
            if is_of_group and b"spawn_main" in (path / "cmdline").read_bytes():
                return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="has no /proc")
def test_ctrl_c_while_the_processes_start():
    with start_with_workers() as process:
        while process.poll() is None and not has_workers(process.pid):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == "interrupted; no file is half-written\n"
        assert process.wait(60) == 130
    assert not list(Path().iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no process groups")
def test_ctrl_c_stops_the_processes():
    Path("demo.int8.onnx").write_bytes(SENTINEL)
    with start_with_workers() as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]  # the first chunks are done
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.readlines()  # the end of the last process that may write to it
        assert process.wait(60) == 130
    assert said[0].startswith("calibrating: ")
    assert [line for line in said if not line.startswith("calibrating: ")] == ["interrupted; no file is half-written\n"]
    assert Path("demo.int8.onnx").read_bytes() == SENTINEL
