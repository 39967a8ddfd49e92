"""What a run does to the files that it reads and writes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from command_line import ROOT, draw, refused, save, snapshot
from graphs import v8
from tables import TWO, write_coco

from onnxq import cli


class TestInputs:
    @pytest.mark.parametrize("option", ["-o", "--save-calibration"])
    @pytest.mark.parametrize(
        ("name", "what"),
        [("calib/1.png", "calibration data"), ("hard.onnx", "the input"), ("net.weights", "the input")],
    )
    def test_are_never_replaced(self, onnxq, model, option, name, what):
        os.link("model.onnx", "hard.onnx")
        onnx.save(v8(), "model.onnx", save_as_external_data=True, location="net.weights", size_threshold=0)
        os.replace("hard.onnx", "whole.onnx")
        os.link("model.onnx", "hard.onnx")
        message = refused(onnxq, model, "--calib", "calib", option, name)
        assert message == f"error: {name}: is {what}; give another name with {option}"

    @pytest.mark.parametrize("name", [".", "calib/../."])
    def test_are_never_replaced_by_the_steps(self, onnxq, model, name):
        os.rename(model, "04-fold-constants.onnx")
        message = refused(onnxq, "04-fold-constants.onnx", "--calib", "calib", "--save-each", name)
        assert "04-fold-constants.onnx in it is the input; give another folder" in message

    def test_no_result_joins_the_calibration_data(self, onnxq, model):
        Path("arrays").mkdir()
        message = refused(onnxq, model, "--calib", "arrays", "--save-calibration", "arrays/seen.npz")
        assert "would be among the data in arrays; give a place outside of it" in message

    @pytest.mark.parametrize("name", ["model.onnx", "calib/1.png"])
    def test_that_change_meanwhile_are_noticed_and_nothing_is_written(self, onnxq, model, monkeypatch, name):
        def quantize(*args, **options):
            with Path(name).open("ab") as file:
                file.write(b"\0")
            return made(*args, **options)

        made = cli.quantize
        monkeypatch.setattr(cli, "quantize", quantize)
        before = snapshot()
        ran = onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz", "--report", "r.md")
        assert (ran.code, ran.out) == (1, "")
        assert re.search(rf"^error: {name}: changed while it was in use", ran.err, re.MULTILINE)
        assert snapshot().keys() == before.keys()

    def test_of_an_evaluation_that_change_meanwhile_are_noticed(self, onnxq, model, monkeypatch, tmp_path):
        def measure(*args, **options):
            annotations.write_bytes(annotations.read_bytes() + b" ")
            return measured(*args, **options)

        annotations, images = write_coco(tmp_path, TWO, {1: "person", 2: "cat", 3: "car"})
        measured = cli.measure_precision
        monkeypatch.setattr(cli, "measure_precision", measure)
        labelled = ["--evaluate", "--annotations", annotations, "--images", images]
        ran = onnxq(model, "--calib", "calib", *labelled, "--report", "r.md")
        assert ran.code == 1
        last = ran.err.splitlines()[-1]
        assert re.search(r"^error: --evaluate: .*: changed while it was in use.*; model\.int8\.onnx was written$", last)
        assert not Path("r.md").exists()


class TestOutputs:
    def test_keep_their_modes(self, onnxq, model):
        names = ["model.int8.onnx", "seen.npz", "r.md", "cut.onnx", "cut.json"]
        for name in names:
            Path(name).write_text("old")
            Path(name).chmod(0o640)
        options = ["--save-calibration", "seen.npz", "--report", "r.md", "--cut-decode", "cut.onnx"]
        assert onnxq(model, "--calib", "calib", *options).code == 0
        assert {name: Path(name).stat().st_mode & 0o777 for name in names} == dict.fromkeys(names, 0o640)
        assert not [name for name in names if Path(name).read_bytes() == b"old"]

    def test_that_are_read_only_are_refused_before_the_work(self, onnxq, model):
        Path("r.md").write_text("old")
        Path("r.md").chmod(0o444)
        message = refused(onnxq, model, "--calib", "nowhere", "--report", "r.md")
        assert "r.md: is read-only; make it writable, or choose another place" in message


class TestPrinting:
    @pytest.fixture
    def run(self, model):
        """Run with all outputs in a process of its own, and return its exit code and what it said on stderr."""

        def start(out, err=subprocess.PIPE):
            options = ["--calib", "calib", "--no-speed", "--save-calibration", "s.npz", "--report", "r.md"]
            command = [sys.executable, "-m", "onnxq", str(model), *options]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env=environment, stdout=out, stderr=err, text=True, timeout=60, check=False)
            assert all(Path(name).stat().st_size for name in ("model.int8.onnx", "s.npz", "r.md"))
            return done.returncode, done.stderr

        return start

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
    def test_a_full_stdout_is_told_and_all_files_are_written(self, run):
        with open("/dev/full", "w") as full:
            code, err = run(full)
        assert code == 1
        assert err.splitlines()[-1] == (
            "error: the results cannot be printed (No space left on device); files are complete"
        )
        assert "Traceback" not in err

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
    def test_with_a_full_stderr_all_files_are_written(self, run):
        with open("/dev/full", "w") as full:
            assert run(subprocess.PIPE, full)[0] == 1

    def test_with_a_closed_pipe_all_files_are_written(self, run):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            code, _ = run(pipe, subprocess.STDOUT)
        assert code == 141


class TestNames:
    EVIL = "conv\x1b[2J\rerror: \u202e\n| x"

    @pytest.fixture
    def model(self, folder):
        """A detector whose nodes and classes have names with control characters."""
        model = v8()
        for node in model.graph.node:
            node.name = node.name + self.EVIL
        onnx.helper.set_model_props(model, {"names": str({0: self.EVIL, 1: "b"}), "task": "detect"})
        for number in range(3):
            draw(f"calib/{number}.png", number)
        return save(model, "m\x1b[31m.onnx")

    def test_with_control_characters_are_shown_escaped(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "-v", "--report", "r.md", "--sensitivity")
        assert ran.code == 0
        for text in (ran.out, Path("r.md").read_text()):
            assert r"\x1b[2J\rerror: \u202e\n" in text
        for text in (*ran[1:], Path("r.md").read_text()):
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
            assert not re.search("^error|^\\| x", text, re.MULTILINE)

    def test_errors_show_them_escaped(self, onnxq, model):
        message = refused(onnxq, model, "--exclude", "none\x1b[2J")
        assert r"--exclude none\x1b[2J: no node of the model matches" in message
        assert r"m\x1b[31m.onnx" in refused(onnxq, "m\x1b[31m.onnx.")
