import contextlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from command_line import (
    NEVER_SATURATES,
    PASSES,
    ROOT,
    SENTINEL,
    refused,
    runs,
    save,
    snapshot,
    spawn,
)
from graphs import nodes

from onnxq.cli import main
from onnxq.errors import ModelError
from onnxq.version import VERSION

pytestmark = pytest.mark.usefixtures("folder")


class TestDryRun:
    def test_writes_nothing_and_says_so(self, onnxq, model):
        before = snapshot()
        options = ["--report", "r.json", "--save-each", "steps", "--save-calibration", "seen.npz"]
        ran = onnxq(model, "--dry-run", *options)
        assert ran.code == 0
        assert snapshot() == before
        assert not Path("steps").exists()
        assert "output model.int8.onnx (not written: --dry-run)" in ran.table
        ignored = "--save-calibration, --save-each, --report"
        assert ran.err == f"warning: without effect, as --dry-run only plans: {ignored}\n"
        assert onnxq(model, "--dry-run", *options, "-q").err == onnxq(model, "--dry-run").err == ""

    def test_counts_the_float_convs_by_reason(self, onnxq, model):
        table = onnxq(model, "--dry-run").table
        assert "Convs 11 of 18 on integers" in table
        assert "1 float: near the image, with few channels" in table
        assert "model v8, 32 x 32" in table

    def test_needs_no_data(self, onnxq, model):
        ran = onnxq(model, "--dry-run", "--calib", "nowhere")
        assert ran.code == 0

    def test_lists_the_reason_of_every_float_node_with_v(self, onnxq, model):
        listed = onnxq(model, "--dry-run", "-v", "--exclude", "conv3").out
        reasons = dict(re.findall(r"^float: (\S+) \(\w+\): (.+)$", listed, re.MULTILINE))
        assert reasons["conv3"] == "excluded: matches conv3"
        assert reasons["conv0"] == "stem: 8 channels at 16 x 16, integer kernels save no time"
        assert reasons["decode_dfl"] == "decode: after the last layers"
        assert "conv4" not in reasons
        counted = re.search(r"other nodes +(\d+) of", listed)
        convs = sum(map(int, re.findall(r"^ +(\d+) float:", listed, re.MULTILINE)))
        assert len(reasons) == int(counted[1]) + convs

    def test_lists_them_in_the_order_of_the_graph(self, onnxq, model):
        listed = re.findall(r"^float: (\S+) ", onnxq(model, "--dry-run", "-v").out, re.MULTILINE)
        order = [name for name in nodes(onnx.load(model)) if name in listed]
        assert len(listed) > 20
        assert listed == order

    def test_says_the_same_as_a_run(self, onnxq, model):
        dry, run = onnxq(model, "--dry-run", "-v").out, onnxq(model, "--calib", "calib", "-v").out
        assert re.findall(".*float: .*", dry) == re.findall(".*float: .*", run)

    def test_refuses_what_a_run_refuses(self, onnxq, model):
        assert refused(onnxq, model, "--dry-run", "--exclude", "none_such").startswith("error: --exclude none_such")


class TestTalk:
    def test_the_table_goes_to_stdout_and_progress_to_stderr(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", *NEVER_SATURATES)
        for row in ("model v8", "images RGB", "target ort", "Convs 11 of", "SQNR ", "size ", "time ", "output "):
            assert row in ran.table
        assert ran.err == "calibrating: 3/3\nwarning: only 3 calibration samples: give about 100 images\n"
        assert "warning only 3 calibration samples" in ran.table

    def test_v_gives_a_line_per_pass_and_the_reason_of_each_float_node(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "-v")
        assert re.findall(r"^([a-z0-9-]+) .* s$", ran.err, re.MULTILINE) == PASSES
        assert "\nfloat: conv0 (Conv): stem: 8 channels at 16 x 16, integer kernels save no time\n" in ran.out

    def test_the_speed_is_told_beside_the_noise(self, onnxq, model):
        assert re.search(
            r"^speed +\d+\.\d\d times the float model's, in onnxruntime", onnxq(model, "--speed").out, re.M
        )
        assert "times the float" not in onnxq(model).out

    def test_v_lists_the_layers_that_are_held_back(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--target", "openvino", "-v")
        held_back = dict(re.findall(r"^held back: (\S+): (\d+) output channels?$", ran.out, re.MULTILINE))
        assert "conv0" in held_back
        total = sum(map(int, held_back.values()))
        assert f"any CPU wider scales of {total} output channels in {len(held_back)} layers: " in ran.table
        assert "(-v says which)" in onnxq(model, "--calib", "calib", "--target", "openvino").table
        for full in (("--target", "openvino", "--cpu", "vnni"), ("--target", "tensorrt")):
            ran = onnxq(model, "--calib", "calib", *full, "-v")
            assert "held back: " not in ran.out
            assert "any CPU" not in ran.table

    def test_v_is_not_told_of_v(self, onnxq, model):
        assert "(-v says which and why)" in onnxq(model, "--dry-run").table
        assert "-v says" not in onnxq(model, "--dry-run", "-v").table

    def test_without_v_no_pass_is_named(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib")
        assert "compute-qparams" not in ran.err
        assert "\nfloat: " not in ran.out

    @pytest.mark.slow
    @pytest.mark.parametrize("data", [[], ["--calib", "calib"]])
    def test_q_says_nothing(self, onnxq, model, data):
        Path("calib/broken.png").write_bytes(b"no picture")
        ran = onnxq(model, "--count", 4, "-q", *data)
        assert ran == (0, "", "")
        runs("model.int8.onnx")

    def test_q_leaves_the_table_of_a_dry_run(self, onnxq, model):
        assert onnxq(model, "--dry-run", "-q") == onnxq(model, "--dry-run")

    def test_logging_is_left_as_it_was(self, onnxq, model, caplog):
        onnxq(model, "--calib", "calib", "-q")
        logging.getLogger("onnxq").warning("heard")
        assert caplog.messages == ["heard"]

    @pytest.mark.slow
    def test_in_a_file_names_are_whole_and_no_line_ends_in_spaces(self, onnxq, model):
        long = Path("a folder with quite a long name", "and-another-one-below-it", "model-32x32-final.onnx")
        save(onnx.load(model), long)
        lines = onnxq(long, "--calib", "calib", "--sensitivity", "-v").out.splitlines()
        assert f"output       {long.with_suffix('')}.int8.onnx" in lines
        assert not [line for line in lines if line.endswith(" ")]

    def test_a_given_calibration_takes_no_time(self, onnxq, model):
        first = onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz", "--no-migrate")
        assert first.table.count("calibration") == 3
        assert onnxq(model, "--calibration", "seen.npz", "--no-migrate").table.count("calibration") == 1

    def test_q_still_tells_errors(self, onnxq, model):
        assert onnxq(model, "-q", "--calib", "none").err.startswith("error: none: ")

    def test_v_and_q_exclude_each_other(self, onnxq, model):
        assert onnxq(model, "-q", "-v").code == 2

    def test_version(self, onnxq):
        assert onnxq("--version") == (0, f"onnxq {VERSION}\n", "")

    def test_help_names_every_option(self, onnxq):
        ran = onnxq("--help")
        assert ran.code == 0
        options = "output calib target method weight-method weight-bits act-bits symmetric exclude count"
        options += (
            " keep-bias image-size save-calibration calibration save-each report dry-run verbose quiet debug version"
        )
        for option in options.split():
            assert f"--{option}" in ran.out

    @pytest.mark.slow
    def test_what_is_no_terminal_gets_no_colours(self, model):
        ran = spawn(model, "--count", 2)
        assert ran.code == 0
        assert "\x1b" not in ran.out + ran.err

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
    @pytest.mark.parametrize(
        "name", ["\u043c\u043e\u0434\u0435\u043b\u044c", "model\udcff"], ids=["Cyrillic", "no text"]
    )
    def test_names_that_the_terminal_cannot_show_are_no_error(self, model, name):
        save(onnx.load(model), f"{name}.onnx")
        ran = spawn(f"{name}.onnx", "--calib", "calib", PYTHONIOENCODING="ascii")
        assert ran.code == 0, ran.err
        assert f"output {name.encode('ascii', 'backslashreplace').decode()}.int8.onnx" in ran.table

    @pytest.mark.slow
    def test_as_a_module(self, model):
        ran = spawn(model, "--calib", "calib")
        assert ran.code == 0
        assert "output model.int8.onnx" in ran.table
        assert spawn(model, "--method", "none").code == 2


class TestDebug:
    def test_keeps_the_exception(self, model):
        with pytest.raises(ModelError, match=r"nope\.onnx: no such file"):
            main(["nope.onnx", "--debug"])

    @pytest.mark.slow
    def test_shows_the_traceback(self, model):
        ran = spawn("nope.onnx", "--debug")
        assert ran.code == 1
        assert ran.err.startswith("Traceback (most recent call last):")
        assert "ModelError: nope.onnx: no such file" in ran.err

    def test_without_it_there_is_none(self, model):
        ran = spawn("nope.onnx")
        assert ran.code == 1
        assert ran.err == "error: nope.onnx: no such file; check the path\n"


PRESSES_CTRL_C = """
import os, signal, sys, time
from onnxq import cli
from onnxq.yolo.inputs.image_files import ImageReader

read_image = ImageReader.__call__

def press(self, path):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    return read_image(self, path)

ImageReader.__call__ = press
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
sys.exit(cli.main(sys.argv[1:]))
"""


SLOW = """
import signal, sys, time
from onnxq import cli
from onnxq.yolo.inputs.image_files import ImageReader

read_image = ImageReader.__call__

def read(self, path):
    time.sleep(0.3)
    return read_image(self, path)

ImageReader.__call__ = read
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(cli.main(sys.argv[1:]))
"""


ERASED = "\x1b[2K"


class TestInterrupted:
    @pytest.mark.slow
    def test_during_the_calibration(self, model):
        """Runs in a separate process, because OpenVINO's alternate signal stack may be gone."""
        Path("model.int8.onnx").write_bytes(SENTINEL)
        before = snapshot()
        options = ["--calib", "calib", "--save-calibration", "seen.npz", "--report", "r.json"]
        ran = spawn(model, *options, code=PRESSES_CTRL_C)
        assert ran.code == 130
        assert ran.out == ""
        assert [line for line in ran.err.splitlines() if not line.startswith("calibrating: ")] == [
            "interrupted; no file is half-written"
        ]
        assert snapshot() == before

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
    def test_on_a_terminal_the_bar_goes(self, model):
        terminal, programs = os.openpty()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
        command = [sys.executable, "-c", SLOW, str(model), "--calib", "calib"]
        sent = b""
        with subprocess.Popen(command, env=env, stdin=programs, stdout=programs, stderr=programs) as process:
            os.close(programs)
            with contextlib.suppress(OSError):  # the end, on Linux
                while some := os.read(terminal, 4096):
                    if b"calibrating" in some and b"calibrating" not in sent:
                        process.send_signal(signal.SIGINT)
                    sent += some
            assert process.wait(10) == 130
        os.close(terminal)
        before, after = sent.decode().split("interrupted; no file is half-written")
        assert after == "\r\n"
        assert before.endswith(ERASED)
        assert before.index("loading") < before.index("preparing") < before.index("calibrating")
        assert not Path("model.int8.onnx").exists()

    def test_while_the_result_is_written(self, onnxq, model, monkeypatch):
        def half(proto, path):
            Path(path).write_bytes(proto.SerializeToString()[:100])
            raise KeyboardInterrupt

        monkeypatch.setattr("onnxq.ir.storage.onnx.save", half)
        Path("model.int8.onnx").write_bytes(SENTINEL)
        before = snapshot()
        assert onnxq(model, "--calib", "calib").code == 130
        assert snapshot() == before


class TestUnforeseenErrors:
    def test_keep_their_traceback_and_leave_no_file(self, onnxq, model, monkeypatch):
        def fail(self, path):
            raise RuntimeError("a bug")

        monkeypatch.setattr("onnxq.api.Quantized.save", fail)
        before = snapshot()
        with pytest.raises(RuntimeError, match="a bug"), contextlib.redirect_stderr(io.StringIO()):
            onnxq(model, "--calib", "calib")
        assert snapshot() == before


class TestDataWarnings:
    @pytest.mark.slow
    def test_are_rows_of_the_closing_table_and_of_the_report(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--preprocess", "yolo-255", "--report", "r.json")
        assert re.search(r"^warning +the first layer, ", ran.out, re.MULTILINE)
        warnings = json.loads(Path("r.json").read_text())["data_warnings"]
        assert sum("may be scaled too much" in warning for warning in warnings) == 1
        assert "the first layer" not in onnxq(model, "--calib", "calib").out
