import contextlib
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import Net, classifier, copy, initializers, nodes, ops, relu_net, silu_chain, v5_raw, v8, yolox
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw
from tables import write_coco

from onnxq import evaluate
from onnxq.cli import main
from onnxq.config import Config
from onnxq.console.terminal import ERR, OUT
from onnxq.errors import ModelError
from onnxq.numerics.ranges import METHODS
from onnxq.passes import default
from onnxq.targets import TARGETS
from onnxq.version import VERSION
from onnxq.yolo.preprocess import YOLO, read_image

ROOT = Path(__file__).parents[2]
PASSES = [step.name for step in default(Config(), silu_chain(), None)]
NEVER_SATURATES = ("--bits", "re:.=7/8", "--no-reconstruct")
"""With these no runtime's sums saturate on any CPU, of which there would be a warning."""
SENTINEL = b"what was here before"


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def table(self):
        """What stdout says, however it was wrapped."""
        return " ".join(self.out.split())


@pytest.fixture(autouse=True)
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
def onnxq(capsys):
    """Run the command line, and give what it returns and says."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(each) for each in argv])
        except SystemExit as error:  # argparse
            code = error.code
        return Ran(code, *capsys.readouterr())

    return run


def save(model, name="model.onnx"):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, name)
    return Path(name)


def draw(name, seed=0, size=(48, 40)):
    """A picture of a few random shapes; size is (width, height)."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", size, tuple(map(int, rng.integers(0, 256, 3))))
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = map(int, rng.integers(0, size))
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        pen.ellipse([x - 8, y - 6, x + 8, y + 6], fill=colour)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    picture.save(name)


@pytest.fixture
def model():
    """A detector, its weights, and images to calibrate it on."""
    for number in range(3):
        draw(f"calib/{number}.png", number, (40 + 10 * number, 48))
    return save(v8())


def snapshot():
    """Every file below the working directory."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def metadata(name):
    return {entry.key: entry.value for entry in onnx.load(name).metadata_props}


def runs(name, size=(1, 3, 32, 32)):
    """Assert that onnxruntime loads and runs a valid model, and give its first output."""
    onnx.checker.check_model(onnx.load(name), full_check=True)
    session = ort.InferenceSession(name, providers=["CPUExecutionProvider"])
    [first, *_] = session.run(None, {session.get_inputs()[0].name: np.zeros(size, np.float32)})
    assert np.isfinite(first).all()
    return first


def spawn(*argv, seed="0", code=None, **environment):
    """`python -m onnxq`, or this code, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "COLUMNS": "100", **environment}
    env.pop("FORCE_COLOR", None)
    command = [sys.executable, *(["-m", "onnxq"] if code is None else ["-c", code]), *map(str, argv)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


# --- where the result goes --------------------------------------------------------------------------------------------


class TestOutput:
    def test_stands_beside_the_input_by_default(self, onnxq, model):
        save(onnx.load(model), "deep/down/net.v2.onnx")
        assert onnxq("deep/down/net.v2.onnx", "--calib", "calib").code == 0
        assert sorted(os.listdir("deep/down")) == ["net.v2.int8.onnx", "net.v2.onnx"]
        runs("deep/down/net.v2.int8.onnx")

    @pytest.mark.parametrize(
        ("weight_bits", "act_bits", "name"),
        [(8, 8, "model.int8.onnx"), (4, 4, "model.w4a4.onnx"), (4, 8, "model.w4a8.onnx"), (8, 6, "model.w8a6.onnx")],
    )
    def test_is_named_after_the_widths(self, onnxq, model, weight_bits, act_bits, name):
        options = ["--weight-bits", weight_bits, "--act-bits", act_bits]
        ran = onnxq(model, "--calib", "calib", *options)
        assert ran.code == 0
        assert sorted(path.name for path in Path().glob("*.onnx")) == sorted(["model.onnx", name])
        assert metadata(name)["onnxq.bits"] == f"W{weight_bits}A{act_bits}"
        assert f"output {name}" in ran.table

    def test_goes_where_it_is_told(self, onnxq, model):
        Path("out").mkdir()
        assert onnxq(model, "--calib", "calib", "-o", "out/small.onnx").code == 0
        assert os.listdir("out") == ["small.onnx"]
        assert not Path("model.int8.onnx").exists()
        runs("out/small.onnx")

    def test_replaces_what_was_there_as_a_whole(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "-o", "fresh.onnx").code == 0
        Path("model.int8.onnx").write_bytes(SENTINEL * 10_000)
        assert onnxq(model, "--calib", "calib").code == 0
        assert Path("model.int8.onnx").read_bytes() == Path("fresh.onnx").read_bytes()

    def test_is_the_only_new_file(self, onnxq, model):
        before = snapshot()
        assert onnxq(model, "--calib", "calib").code == 0
        after = snapshot()
        assert after.keys() - before.keys() == {"model.int8.onnx"}
        assert before.items() <= after.items()

    def test_is_integer_where_it_should_be_and_takes_and_gives_what_the_float_model_does(self, onnxq, model):
        assert onnxq(model, "--calib", "calib").code == 0
        before, after = onnx.load(model), onnx.load("model.int8.onnx")
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        int8 = [name for name, values in initializers(after).items() if values.dtype == np.int8 and values.ndim >= 2]
        assert len(int8) == 16
        assert ops(after).count("QuantizeLinear") > 10

    def test_brackets_and_colons_of_names_are_shown_literally(self, onnxq, model):
        changed = onnx.load(model)
        nodes(changed)["conv0"].name = "[red]conv:x:[/red]"
        save(changed, "[red]a :car: [b].onnx")
        Path("calib").rename("[i]calib")
        ran = onnxq("[red]a :car: [b].onnx", "--calib", "[i]calib", "-v")
        assert ran.code == 0
        assert "output [red]a :car: [b].int8.onnx" in ran.table
        assert "calibration 3 images in [i]calib" in ran.table
        assert (
            "float: [red]conv:x:[/red] (Conv): stem: 8 channels at 16 x 16, integer kernels save no time" in ran.table
        )
        assert "'[red]a :car: [b].onnx' '[red]a :car: [b].int8.onnx'" in ran.out.splitlines()[-1]
        assert Path("[red]a :car: [b].int8.onnx").is_file()

    def test_the_command_that_is_proposed_next_names_both_models(self, onnxq, model):
        save(onnx.load(model), "my net.onnx")
        last = onnxq("my net.onnx", "--calib", "calib").out.splitlines()[-1]
        words = shlex.split(last.removeprefix("next: "))
        assert words[:5] == ["python", "-m", "onnxq.evaluate", "my net.onnx", "my net.int8.onnx"]

    def test_what_has_no_ap_is_to_be_compared(self, onnxq):
        for build, taken in ((silu_chain, "unknown"), (classifier, "classes")):
            save(build())
            ran = onnxq("model.onnx", "--count", 2)
            assert f"model {taken}, " in ran.table
            assert ran.out.splitlines()[-1] == "next: python -m onnxq.compare model.onnx model.int8.onnx --images DIR"


class TestSameInputSameBytes:
    def test_twice(self, onnxq, model):
        for name in ("a.onnx", "b.onnx"):
            assert onnxq(model, "--calib", "calib", "-o", name).code == 0
        assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()

    def test_in_two_processes_with_other_hashes(self, model):
        for seed in ("1", "2"):
            ran = spawn(model, "--calib", "calib", "-o", f"{seed}.onnx", "--save-calibration", f"{seed}.npz", seed=seed)
            assert ran.code == 0, ran.err
        assert Path("1.onnx").read_bytes() == Path("2.onnx").read_bytes()
        assert Path("1.npz").read_bytes() == Path("2.npz").read_bytes()
        with zipfile.ZipFile("1.npz") as archive:  # two seconds apart they would differ
            assert {member.date_time[0] for member in archive.infolist()} == {1980}

    def test_with_shuffled_rows(self, onnxq, model):
        rng = np.random.default_rng(0)
        # Of very different magnitudes, so that histograms have to grow while they count.
        data = (rng.random((9, 3, 32, 32)) * 4.0 ** rng.integers(-6, 1, (9, 1, 1, 1))).astype(np.float32)
        for name, order in {"a": np.arange(9), "b": np.arange(9)[::-1], "c": rng.permutation(9)}.items():
            np.savez(f"{name}.npz", images=data[order])
            assert onnxq(model, "--calib", f"{name}.npz", "-o", f"{name}.onnx").code == 0
        assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes() == Path("c.onnx").read_bytes()


# --- what it calibrates on --------------------------------------------------------------------------------------------


def _sources():
    """The same three images, named in every way; each gives the arguments of --calib and the description."""
    files = [f"calib/{number}.png" for number in range(3)]
    Path("list.txt").write_text("# pictures\n" + "\n".join(files) + "\n")
    annotations = {"images": [{"id": k, "file_name": Path(file).name} for k, file in enumerate(files)]}
    Path("instances_calib.json").write_text(json.dumps(annotations))
    arrays = np.concatenate([YOLO(read_image(Path(file)), (32, 32))[0] for file in files])
    np.savez("data.npz", images=arrays)
    np.save("data.npy", arrays)
    for number, array in enumerate(arrays):
        np.save(f"{number}.npy", array)
    return {
        "folder": (["calib"], "3 images in calib"),
        "glob": (["calib/*.png"], "3 images in calib/*.png"),
        "files": (files, "3 images in calib"),
        "list": (["list.txt"], "3 images in list.txt"),
        "coco": (["instances_calib.json"], "3 images in instances_calib.json"),
        "npz": (["data.npz"], "3 samples in data.npz"),
        "npy": (["data.npy"], "3 samples in data.npy"),
        "several npy": (["0.npy", "1.npy", "2.npy"], "3 samples in 0.npy, 1.npy, 2.npy"),
    }


class TestData:
    @pytest.mark.parametrize("kind", ["glob", "files", "list", "coco", "npz", "npy", "several npy"])
    def test_every_way_to_give_it_gives_the_same_result_as_the_folder(self, onnxq, model, kind):
        sources = _sources()
        for name, (paths, description) in (("folder", sources["folder"]), (kind, sources[kind])):
            ran = onnxq(model, "-o", f"{name}.onnx", "--calib", *paths)
            assert ran.code == 0, ran.err
            assert f"calibration {description}" in ran.table
            assert "synthetic" not in ran.err + ran.out
        assert Path(f"{kind}.onnx").read_bytes() == Path("folder.onnx").read_bytes()
        assert metadata(f"{kind}.onnx")["onnxq.samples"] == "3"

    def test_without_any_synthetic_scenes_are_used_and_a_warning_says_so(self, onnxq, model):
        ran = onnxq(model, "--count", 4)
        assert ran.code == 0
        assert re.search("^warning: .*synthetic scenes.*--calib", ran.err, re.MULTILINE)
        assert "calibration 4 synthetic scenes" in ran.table
        assert metadata("model.int8.onnx")["onnxq.samples"] == "4"

    def test_count_limits_it(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--count", 2)
        assert "calibration 2 of 3 images in calib" in ran.table
        assert metadata("model.int8.onnx")["onnxq.samples"] == "2"

    def test_an_unreadable_image_is_named_skipped_and_counted(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "-o", "good.onnx").code == 0
        Path("calib/broken.png").write_bytes(b"no picture")
        ran = onnxq(model, "--calib", "calib")
        assert ran.code == 0
        assert re.search(r"^warning: .*calib/broken\.png", ran.err, re.MULTILINE)
        assert "1 left out, calib/broken.png" in ran.table
        assert Path("model.int8.onnx").read_bytes() == Path("good.onnx").read_bytes()

    def test_several_unreadable_images_are_counted_and_one_is_named(self, onnxq, model):
        for name in ("x", "y"):
            Path(f"calib/{name}.png").write_bytes(b"no picture")
        ran = onnxq(model, "--calib", "calib", *NEVER_SATURATES)
        assert re.search(r"2 left out, such as calib/[xy]\.png", ran.table)
        assert len(re.findall("^warning: ", ran.err, re.MULTILINE)) == 2

    def test_a_file_that_a_list_names_and_that_is_not_there_is_counted(self, onnxq, model):
        Path("list.txt").write_text("calib/0.png\ncalib/none.png\n")
        ran = onnxq(model, "--calib", "list.txt")
        assert ran.code == 0
        assert re.search(r"^warning: list\.txt: .*calib/none\.png", ran.err, re.MULTILINE)
        assert "1 left out, calib/none.png" in ran.table


class TestSavedCalibration:
    @pytest.mark.parametrize("options", [["--method", "mse"], ["--act-bits", "5", "--symmetric", "--no-reconstruct"]])
    def test_gives_the_bytes_that_a_direct_run_with_other_options_gives(self, onnxq, model, options):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz", "-o", "uh.onnx").code == 0
        ran = onnxq(model, "--calibration", "seen.npz", *options, "-o", "later.onnx")
        assert ran.code == 0
        assert "calibration from seen.npz" in ran.table
        assert onnxq(model, "--calib", "calib", *options, "-o", "direct.onnx").code == 0
        assert Path("later.onnx").read_bytes() == Path("direct.onnx").read_bytes()
        assert Path("later.onnx").read_bytes() != Path("uh.onnx").read_bytes()

    def test_spares_the_calibration(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        ran = onnxq(model, "--calibration", "seen.npz")
        assert "calibrating" not in ran.err
        assert "synthetic" not in ran.err + ran.out

    def test_may_be_saved_again(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        assert onnxq(model, "--calibration", "seen.npz", "--save-calibration", "again.npz").code == 0
        assert Path("again.npz").read_bytes() == Path("seen.npz").read_bytes()


# --- how it quantizes -------------------------------------------------------------------------------------------------


def scales(name):
    """The scales of the activations by tensor."""
    model = onnx.load(name)
    values = initializers(model)
    return {n.input[0]: float(values[n.input[1]]) for n in model.graph.node if n.op_type == "QuantizeLinear"}


def zero_points(name):
    """The zero points of the activations."""
    model = onnx.load(name)
    values = initializers(model)
    return [values[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]


def integer_layers(name):
    """Names of the Convs whose weights are integers, with these."""
    model = onnx.load(name)
    values = initializers(model)
    stored = {n.output[0]: values.get(n.input[0]) for n in model.graph.node if n.op_type == "DequantizeLinear"}
    layers = (n for n in model.graph.node if n.op_type in ("Conv", "Gemm"))
    return {n.name: stored[n.input[1]] for n in layers if n.input[1] in stored}


class TestOptions:
    @pytest.mark.parametrize("method", METHODS)
    def test_method(self, onnxq, model, method):
        for name, options in {"minmax.onnx": ["--method", "minmax"], "model.int8.onnx": ["--method", method]}.items():
            ran = onnxq(model, "--calib", "calib", "-o", name, *options)
            assert ran.code == 0, ran.err
        assert metadata("model.int8.onnx")["onnxq.method"] == method
        assert f", {method}, W8A8" in ran.table
        runs("model.int8.onnx")
        widest, chosen = scales("minmax.onnx"), scales("model.int8.onnx")
        assert widest.keys() == chosen.keys()
        assert (widest == chosen) == (method == "minmax")

    def test_widths_of_single_nodes_are_told(self, onnxq, model):
        ran = onnxq(model, "--dry-run", "--weight-bits", 4, "--bits", "op:Conv=6/8", "--calib", "calib")
        assert ", W4A8 op:Conv=6/8" in ran.table

    def test_the_default_method_is_uh(self, onnxq, model):
        assert onnxq(model, "--calib", "calib").code == 0
        assert onnxq(model, "--calib", "calib", "--method", "uh", "-o", "uh.onnx").code == 0
        assert Path("uh.onnx").read_bytes() == Path("model.int8.onnx").read_bytes()

    @pytest.mark.parametrize("target", TARGETS)
    def test_target(self, onnxq, model, target):
        ran = onnxq(model, "--calib", "calib", "--target", target)
        assert ran.code == 0, ran.err
        assert f"target {target} (" in ran.table
        assert metadata("model.int8.onnx")["onnxq.target"] == target
        runs("model.int8.onnx")
        after = onnx.load("model.int8.onnx")
        sigmoids = {node.output[0] for node in after.graph.node if node.op_type == "Sigmoid"}
        kinds = {values.dtype for values in zero_points("model.int8.onnx")}
        assert kinds == {np.dtype(np.int8 if target == "tensorrt" else np.uint8)}
        assert bool(sigmoids & scales("model.int8.onnx").keys()) == (target in ("ort", "generic"))
        assert ("conv0" in integer_layers("model.int8.onnx")) == (target != "ort")
        assert ("Gemm" in ops(after)) == (target == "ort")
        assert ("onnxruntime runs" in ran.table) == (target == "ort")

    def test_weight_bits(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--target", "generic", "--weight-bits", 3)
        assert ran.code == 0
        layers = integer_layers("model.w3a8.onnx")
        at_an_end = {"conv0", *(f"{kind}{k}" for kind in ("box", "cls") for k in range(3))}
        assert at_an_end < layers.keys()
        assert {name: int(np.abs(weight).max()) for name, weight in layers.items()} == {
            name: 127 if name in at_an_end else 3 for name in layers
        }
        assert "Clip" not in ops(onnx.load("model.w3a8.onnx"))
        runs("model.w3a8.onnx")

    def test_act_bits(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--target", "openvino", "--act-bits", 4).code == 0
        after = onnx.load("model.w8a4.onnx")
        values = initializers(after)
        limits = {
            tuple(int(values[name]) for name in node.input[1:]) for node in after.graph.node if node.op_type == "Clip"
        }
        [(low, high)] = limits
        assert high - low == 15
        assert 0 < ops(after).count("Clip") < ops(after).count("QuantizeLinear")  # both ends keep 8 bits
        assert {int(np.abs(weight).max()) for weight in integer_layers("model.w8a4.onnx").values()} == {127}
        runs("model.w8a4.onnx")

    def test_weight_method(self, onnxq, model):
        stored = []
        for method in ("minmax", "mse"):
            arguments = ["--calib", "calib", "--weight-bits", 4, "--weight-method", method, "--no-reconstruct"]
            arguments += ["-o", f"{method}.onnx"]
            assert onnxq(model, *arguments).code == 0
            stored.append(integer_layers(f"{method}.onnx"))
        assert stored[0].keys() == stored[1].keys()
        assert any((stored[0][name] != stored[1][name]).any() for name in stored[0])

    def test_below_8_bits_layers_are_reconstructed_from_images(self, onnxq, model):
        narrow = [model, "--weight-bits", 4]
        ran = onnxq(*narrow)
        assert ran.code == 1
        assert "reconstruction needs real images" in ran.err
        assert "calibrating" not in ran.err
        assert not Path("model.w4a8.onnx").exists()
        stored = []
        for options in ([], ["--no-reconstruct"]):
            ran = onnxq(*narrow, "--calib", "calib", *options)
            assert ran.code == 0
            assert ("reconstructing: " in ran.err) == (not options)
            stored.append(integer_layers("model.w4a8.onnx"))
        assert stored[0].keys() == stored[1].keys()
        assert any((stored[0][name] != stored[1][name]).any() for name in stored[0])

    def test_8_bits_are_reconstructed_on_demand(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--reconstruct")
        assert ran.code == 0
        assert "reconstructing: " in ran.err
        runs("model.int8.onnx")

    def test_keep_bias(self, onnxq, model):
        before = initializers(onnx.load(model))
        arguments = [model, "--calib", "calib", "--target", "openvino", "--weight-bits", 4, "--no-reconstruct"]
        for options, kept in ([], False), (["--keep-bias"], True):
            assert onnxq(*arguments, *options).code == 0
            after = onnx.load("model.w4a8.onnx")
            values, convs = initializers(after), nodes(after)
            biases = {name: values[convs[name].input[2]] for name in integer_layers("model.w4a8.onnx")}
            assert len(biases) == 17
            assert all((biases[name] == before[f"{name}_bias"]).all() == kept for name in biases)
            runs("model.w4a8.onnx")

    def test_pack(self, onnxq, model):
        arguments = [model, "--calib", "calib", "--weight-bits", 4, "--no-reconstruct"]
        assert onnxq(*arguments, "-o", "plain.onnx").code == 0
        assert onnxq(*arguments, "--pack", "int4").code == 0
        assert Path("model.w4a8.onnx").stat().st_size < Path("plain.onnx").stat().st_size
        assert integer_layers("model.w4a8.onnx").keys() == integer_layers("plain.onnx").keys()
        runs("model.w4a8.onnx")

    @pytest.mark.parametrize(("target", "middle"), [("ort", 128), ("openvino", 128), ("tensorrt", 0)])
    def test_symmetric(self, onnxq, model, target, middle):
        assert onnxq(model, "--calib", "calib", "--target", target, "--symmetric").code == 0
        assert {int(values) for values in zero_points("model.int8.onnx")} == {middle}

    def test_activations_are_asymmetric_by_default(self, onnxq, model):
        assert onnxq(model, "--calib", "calib").code == 0
        assert len({int(values) for values in zero_points("model.int8.onnx")}) > 1

    @pytest.mark.parametrize(
        ("patterns", "floats"),
        [
            (["conv3"], {"conv3"}),
            (["conv3", "conv4"], {"conv3", "conv4"}),
            (["re:^conv[34]$"], {"conv3", "conv4"}),
            (["conv3", "--exclude", "re:v4"], {"conv3", "conv4"}),
        ],
    )
    def test_exclude_by_name_and_by_regex(self, onnxq, model, patterns, floats):
        assert onnxq(model, "--calib", "calib", "--target", "openvino", "-o", "all.onnx").code == 0
        assert onnxq(model, "--calib", "calib", "--target", "openvino", "--exclude", *patterns).code == 0
        assert integer_layers("all.onnx").keys() - integer_layers("model.int8.onnx").keys() == floats
        weights = initializers(onnx.load("model.int8.onnx"))
        assert all(weights[f"{name}_weight"].dtype == np.float32 for name in floats)
        runs("model.int8.onnx")

    def test_exclude_by_operator(self, onnxq):
        save(relu_net())
        options = ["--count", 2, "--target", "generic", "--report", "r.json"]
        for patterns, kind in ([], np.int8), (["--exclude", "op:ConvTranspose"], np.float32):
            assert onnxq("model.onnx", *options, *patterns).code == 0
            after = onnx.load("model.int8.onnx")
            [stored] = [v for name, v in initializers(after).items() if "upsample_weight" in name and v.ndim == 4]
            assert stored.dtype == kind
        floats = json.loads(Path("r.json").read_text())["float"]
        assert floats["upsample"]["text"] == "excluded: matches op:ConvTranspose"

    @pytest.mark.parametrize(
        ("name", "words", "greatest"),
        [
            ("yolo", "RGB, 0-1, letterbox centred", 1),
            ("yolo-255", "RGB, 0-255, letterbox centred", 255),
            ("yolox", "BGR, 0-255, letterbox top-left", 255),
        ],
    )
    def test_preprocess(self, onnxq, model, name, words, greatest):
        ran = onnxq(model, "--calib", "calib", "--preprocess", name, "--report", "r.json", "--target", "generic")
        assert ran.code == 0
        assert f"images {words}" in ran.table
        [image] = [a for a in json.loads(Path("r.json").read_text())["activations"] if a["tensor"] == "images"]
        assert 0.9 * greatest < image["high"] <= greatest

    def test_preprocess_is_told_by_the_model_otherwise(self, onnxq):
        save(yolox())
        ran = onnxq("model.onnx", "--count", 2)
        assert "model yolox-raw, 32 x 32" in ran.table
        assert "images BGR, 0-255, letterbox top-left" in ran.table

    @pytest.mark.parametrize(("given", "shown"), [("64", "64 x 64"), ("32x64", "32 x 64"), ("96x32", "96 x 32")])
    def test_image_size_of_a_dynamic_model(self, onnxq, given, shown):
        draw("a.png")
        save(silu_chain(dynamic=True))
        ran = onnxq("model.onnx", "--image-size", given, "--calib", "a.png")
        assert ran.code == 0, ran.err
        assert f"model unknown, {shown}:" in ran.table
        first = runs("model.int8.onnx", (2, 3, 32, 96))
        assert first.shape[2:] == (32, 96)

    def test_image_size_of_a_static_model_may_be_repeated(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--image-size", "32x32").code == 0

    def test_the_image_size_decides_what_is_calibrated_on(self, onnxq):
        draw("a.png", size=(64, 64))
        save(silu_chain(dynamic=True))
        for size in (32, 64):
            assert onnxq("model.onnx", "--image-size", size, "--calib", "a.png", "-o", f"{size}.onnx").code == 0
        assert scales("32.onnx") != scales("64.onnx")


# --- what else it writes ----------------------------------------------------------------------------------------------


class TestSaveEach:
    def test_writes_a_numbered_valid_model_for_each_pass_that_edits(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--save-each", "deep/steps").code == 0
        names = sorted(os.listdir("deep/steps"))
        assert all(re.fullmatch(r"\d\d-[a-z0-9-]+\.onnx", name) for name in names)
        assert [name[3:-5] for name in names] == [
            "infer-shapes", "insert-qdq", "write-docs", "pointwise-to-matmul", "expand-softmax", "remove-unused",
        ]  # fmt: skip
        for name in names:
            runs(f"deep/steps/{name}")
        assert "QuantizeLinear" not in ops(onnx.load(f"deep/steps/{names[0]}"))
        assert "QuantizeLinear" in ops(onnx.load(f"deep/steps/{names[-1]}"))

    def test_the_numbers_are_the_places_of_the_passes(self, onnxq):
        save(v8(opset=11))
        assert onnxq("model.onnx", "--count", 2, "--save-each", "steps").code == 0
        editing = ("normalize", "insert-qdq", "write-docs", "pointwise-to-matmul", "remove-unused")
        assert sorted(os.listdir("steps")) == [f"{PASSES.index(name) + 1:02}-{name}.onnx" for name in editing]

    def test_folding_is_an_edit(self, onnxq):
        save(v8(batch_norm=True))
        assert onnxq("model.onnx", "--count", 2, "--save-each", "steps").code == 0
        before, after = (
            onnx.load(f"steps/{PASSES.index(name) + 1:02}-{name}.onnx") for name in ("infer-shapes", "fold-batch-norm")
        )
        assert "BatchNormalization" in ops(before)
        assert "BatchNormalization" not in ops(after)


class TestSensitivity:
    def test_the_worst_pieces_are_shown_and_all_are_reported(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--sensitivity", "--report", "r.json")
        report = json.loads(Path("r.json").read_text())
        pieces = report["sensitivity"]
        assert {name for piece in pieces for name in piece["nodes"]} >= set(report["layers"]["integer"])
        assert [piece["moved"] for piece in pieces] == sorted((piece["moved"] for piece in pieces), reverse=True)
        assert f"sensitivity, the 10 worst of {len(pieces)} (-v: all), over 3 pictures" in ran.table
        first = pieces[0]
        assert f"{first['nodes'][0]} {first['sqnr']:.1f} {first['moved']:.2f}" in ran.table
        assert pieces[10]["nodes"][0] not in ran.out

    def test_all_are_shown_with_v_and_in_markdown(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--sensitivity", "-v", "--report", "r.md")
        section = Path("r.md").read_text().split("## Sensitivity, worst first\n\n")[1].split("\n## ")[0]
        rows = section.strip().split("\n\n")[1].splitlines()[2:]
        assert len(rows) > 10
        assert all(row.split("`")[1] in ran.out for row in rows)

    def test_is_not_measured_unasked(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--report", "r.json")
        assert "sensitivity" not in ran.out
        assert json.loads(Path("r.json").read_text())["sensitivity"] == []

    def test_changes_nothing_in_the_file(self, onnxq, model):
        onnxq(model, "--calib", "calib", "-o", "plain.onnx")
        onnxq(model, "--calib", "calib", "-o", "measured.onnx", "--sensitivity")
        assert Path("plain.onnx").read_bytes() == Path("measured.onnx").read_bytes()


class TestLimits:
    @pytest.fixture
    def others(self):
        for number in range(10, 13):
            draw(f"others/{number}.png", number)
        return "others"

    def plain(self, onnxq, model, others):
        """What the model has without anything kept, dB."""
        found = onnxq(model, "--calib", "calib", "--min-sqnr", 0, "--images", others, "-o", "plain.onnx")
        return float(re.search(r"measured +([\d.]+) dB on 3 pictures, after 1 trials?", found.out)[1])

    def test_as_few_pieces_as_needed_stay_float(self, onnxq, model, others):
        plain = self.plain(onnxq, model, others)
        options = ["--calib", "calib", "--min-sqnr", plain + 1, "--images", others, "--report", "r.json"]
        ran = onnxq(model, *options)
        assert ran.code == 0, ran.err
        reached, trials = re.search(r"measured +([\d.]+) dB on 3 pictures, after (\d+) trials", ran.out).groups()
        assert float(reached) >= plain + 1
        assert int(trials) > 1
        report = json.loads(Path("r.json").read_text())
        excluded, search = report["exclude"], report["search"]
        assert (search["said"], search["pictures"]) == (f"{reached} dB", 3)
        assert len(search["trials"]) == int(trials)
        assert {"kept": len(search["kept"]), "said": search["said"]} in search["trials"]
        assert [name for piece in search["kept"] for name in piece["nodes"]] == excluded
        kept = re.search(r"kept (\d+) float: (\S+?),? ", ran.table)
        assert 1 <= int(kept[1]) <= len(excluded)
        assert kept[2] == excluded[0]
        assert onnxq(model, "--calib", "calib", "--exclude", *excluded, "-o", "again.onnx").code == 0
        assert Path("again.onnx").read_bytes() == Path("model.int8.onnx").read_bytes()

    def test_a_second_run_takes_the_record_of_the_first(self, onnxq, model, others):
        plain = self.plain(onnxq, model, others)
        options = ["--calib", "calib", "--min-sqnr", plain + 1, "--images", others]
        first = onnxq(model, *options)
        made = Path("model.int8.onnx").read_bytes()
        assert Path("model.int8.search.json").exists()
        second = onnxq(model, *options)
        assert Path("model.int8.onnx").read_bytes() == made
        assert "comparing" in first.err
        assert "comparing" not in second.err

    def test_what_is_calibrated_with_is_not_judged_by(self, onnxq, model):
        message = refused(onnxq, model, "--calib", "calib", "--min-sqnr", 20, "--images", "calib")
        assert "calib/0.png is calibrated with too" in message
        assert "--on-calibration" in message
        ran = onnxq(model, "--calib", "calib", "--min-sqnr", 0, "--images", "calib", "--on-calibration")
        assert ran.code == 0
        assert ran.out.splitlines()[-1].endswith("model.int8.onnx --annotations A.json --images calib")

    def test_what_cannot_be_reached_is_refused(self, onnxq, model, others):
        before = set(Path().iterdir())
        ran = onnxq(model, "--calib", "calib", "--min-sqnr", 500, "--images", others)
        assert ran.code == 1
        assert "the limit cannot be kept" in ran.err
        assert {path.name for path in set(Path().iterdir()) - before} == {"model.int8.search.json"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--max-drop", 1], "--annotations JSON and --images DIR"),
            (["--max-drop", 1, "--images", "calib"], "--annotations JSON and --images DIR"),
            (["--max-drop", "nan", "--demo"], "--max-drop nan: expected a number"),
            (["--min-sqnr", "inf", "--images", "calib"], "--min-sqnr inf: expected a number"),
            (["--min-sqnr", 30], "--images DIR"),
            (["--images", "calib"], "give one of these"),
            (["--on-calibration"], "give one of these"),
        ],
    )
    def test_options_that_do_not_go_together(self, onnxq, model, options, message):
        assert message in misused(onnxq, model, *options)

    def test_a_kept_calibration_has_no_pictures(self, onnxq, model):
        assert "give --calib" in misused(onnxq, model, "--calibration", "seen.npz", "--sensitivity")

    def test_one_limit_at_a_time(self, onnxq, model):
        assert "not allowed with" in misused(onnxq, model, "--max-drop", 1, "--min-sqnr", 30)


class TestEvaluate:
    @pytest.fixture
    def labelled(self):
        """Pictures with an object each, and the options that name them."""
        pictures = {f"{name}.png": ((48, 40), [(8, 8, 24, 24, 1)]) for name in "ab"}
        annotations, images = write_coco(Path(), pictures, {1: "a", 2: "b", 3: "c"})
        return ["--annotations", annotations, "--images", images]

    def test_says_what_the_command_beside_it_says(self, onnxq, model, labelled, capsys):
        ran = onnxq(model, "--calib", "calib", "--evaluate", *labelled, "--report", "r.json")
        assert ran.code == 0, ran.err
        assert evaluate.main([*map(str, (model, "model.int8.onnx", *labelled)), "--json", "e.json", "-q"]) == 0
        assert ran.out.endswith(capsys.readouterr().out)
        assert "2 images" in ran.out
        assert "next:" not in ran.out
        assert json.loads(Path("r.json").read_text())["evaluation"] == json.loads(Path("e.json").read_text())

    def test_changes_nothing_in_the_file(self, onnxq, model, labelled):
        onnxq(model, "--calib", "calib", "-o", "plain.onnx")
        onnxq(model, "--calib", "calib", "-o", "measured.onnx", "--evaluate", *labelled)
        assert Path("plain.onnx").read_bytes() == Path("measured.onnx").read_bytes()

    @pytest.mark.parametrize("name", ["r.md", "r.html"])
    def test_is_in_the_report_of_a_quiet_run(self, onnxq, model, labelled, name):
        ran = onnxq(model, "--calib", "calib", "--evaluate", *labelled, "--report", name, "-q")
        assert ran == (0, "", "")
        text = Path(name).read_text()
        assert "Average precision" in text
        assert "on 2 pictures of" in text

    @pytest.mark.parametrize("given", [[], ["--annotations", "a.json"], ["--images", "calib"]])
    def test_without_labels(self, onnxq, model, given):
        message = misused(onnxq, model, "--evaluate", *given)
        assert "--evaluate measures AP: it needs --annotations JSON and --images DIR" in message

    def test_labels_that_are_missing_are_told_before_the_work(self, onnxq, model):
        message = refused(onnxq, model, "--evaluate", "--annotations", "none.json", "--images", "calib")
        assert "none.json: cannot be read" in message

    @pytest.mark.parametrize(
        ("make", "reason"),
        [(classifier, "its task is classify"), (v5_raw, "the anchors of its boxes are not in the file: give --family")],
    )
    def test_a_model_that_has_no_ap_is_told_before_the_work(self, onnxq, model, labelled, make, reason):
        message = refused(onnxq, save(make(), "other.onnx"), "--calib", "calib", "--evaluate", *labelled)
        assert message.startswith(f"error: --evaluate: the model: {reason}")
        assert "python -m onnxq.compare needs no AP" in message

    def test_other_categories_are_told_before_the_work(self, onnxq, model):
        annotations, images = write_coco(Path(), {"a.png": ((48, 40), [(8, 8, 24, 24, 1)])}, {1: "a"})
        options = ["--annotations", annotations, "--images", images]
        message = refused(onnxq, model, "--calib", "calib", "--evaluate", *options)
        assert "--evaluate: the model: has 3 classes, but the annotations have 1 categories" in message

    def test_what_is_calibrated_with_is_not_measured_on(self, onnxq, model, labelled):
        options = [model, "--calib", "images", "--evaluate", *labelled]
        message = refused(onnxq, *options)
        assert "images/a.png is calibrated with too" in message
        assert "--on-calibration" in message
        assert onnxq(*options, "--on-calibration").code == 0

    def test_of_a_kept_calibration(self, onnxq, model, labelled):
        onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz", "-o", "other.onnx")
        ran = onnxq(model, "--calibration", "seen.npz", "--evaluate", *labelled)
        assert ran.code == 0
        assert "2 images" in ran.out

    def test_the_data_is_opened_once(self, onnxq, model, labelled):
        Path("list.txt").write_text("calib/0.png\nnone.png\n")
        ran = onnxq(model, "--calib", "list.txt", "--evaluate", *labelled)
        assert ran.code == 0
        assert ran.err.count("none.png") == 1
        assert "1 left out, none.png" in ran.table

    def test_what_fails_after_the_work_leaves_the_model(self, onnxq, model, labelled):
        Path("images/b.png").write_text("hello")
        ran = onnxq(model, "--calib", "calib", "--evaluate", *labelled, "--report", "r.json")
        assert ran.code == 1
        last = ran.err.splitlines()[-1]
        assert re.search(r"^error: --evaluate: \S*b\.png: cannot be read as an image", last)
        assert last.endswith("; model.int8.onnx is written all the same")
        runs("model.int8.onnx")
        assert not Path("r.json").exists()

    def test_a_dry_run_measures_nothing(self, onnxq, model):
        assert onnxq(model, "--dry-run", "--demo", "--evaluate") == onnxq(model, "--dry-run")


class TestDryRun:
    def test_writes_nothing_and_says_so(self, onnxq, model):
        before = snapshot()
        options = ["--report", "r.json", "--save-each", "steps", "--save-calibration", "seen.npz"]
        ran = onnxq(model, "--dry-run", *options)
        assert ran.code == 0
        assert snapshot() == before
        assert not Path("steps").exists()
        assert "output model.int8.onnx (not written: --dry-run)" in ran.table
        assert ran.err == ""

    def test_counts_the_float_convs_by_reason(self, onnxq, model):
        table = onnxq(model, "--dry-run").table
        assert "Convs 16 of 18 on integers" in table
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
        assert reasons["decode_dfl"] == "decode: behind the last layers"
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


class TestReport:
    def test_as_json(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--report", "r.json", "--exclude", "conv3").code == 0
        report = json.loads(Path("r.json").read_text())
        assert (report["model"], report["target"], report["method"]) == ("model.onnx", "ort", "uh")
        assert (report["weight_bits"], report["act_bits"], report["exclude"]) == (8, 8, ["conv3"])
        assert report["onnxq"] == VERSION
        assert report["detector"]["family"] == "v8"
        assert report["detector"]["size"] == [32, 32]
        assert report["calibration"] == "3 images in calib"
        sizes = {"before": model.stat().st_size, "after": Path("model.int8.onnx").stat().st_size}
        assert report["bytes"] == sizes
        assert set(report["layers"]["integer"]) == set(integer_layers("model.int8.onnx"))
        assert report["layers"]["fused"] == len(report["layers"]["integer"])
        assert report["float"]["conv3"] == {"code": "excluded", "text": "excluded: matches conv3"}
        assert report["sqnr"]["output"] > 10
        assert {a["tensor"] for a in report["activations"]} >= set(scales("model.int8.onnx"))

    def test_as_markdown(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--report", "r.md").code == 0
        text = Path("r.md").read_text()
        assert text.startswith("# model.onnx\n")
        assert "- 1: stem: 8 channels at 16 x 16, integer kernels save no time: `conv0`\n" in text

    def test_as_a_page(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--report", "r.html").code == 0
        text = Path("r.html").read_text()
        assert "<h1>model.onnx</h1>" in text
        assert "1: stem: 8 channels at 16 x 16, integer kernels save no time" in text

    def test_of_a_given_calibration(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        assert onnxq(model, "--calibration", "seen.npz", "--report", "r.json").code == 0
        assert json.loads(Path("r.json").read_text())["calibration"] == "given statistics"


# --- what it says -----------------------------------------------------------------------------------------------------


class TestCutHead:
    def test_writes_the_float_model_without_decode_and_its_ranges(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--target", "generic", "--cut-decode", "cut.onnx", "--report", "r.json")
        assert ran.code == 0, ran.err
        cut = onnx.load("cut.onnx")
        runs("cut.onnx")
        assert len(cut.graph.output) == 6
        assert not {"QuantizeLinear", "Softmax"} & set(ops(cut))
        ranges = json.loads(Path("cut.json").read_text())
        tensors = {name for node in cut.graph.node for name in (*node.input, *node.output)}
        assert {output.name for output in cut.graph.output} <= ranges.keys() <= tensors
        assert all(bounds["low"] < bounds["high"] for bounds in ranges.values())
        reported = json.loads(Path("r.json").read_text())["activations"]
        assert {a["tensor"]: {"low": a["low"], "high": a["high"]} for a in reported} == ranges

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--cut-decode", "cut.txt"], "--cut-decode cut.txt: the name must end in .onnx"),
            (["--cut-decode", "model.onnx"], "model.onnx: is the input; give another name with --cut-decode"),
            (["--cut-decode", "r.onnx", "--report", "r.json"], "r.json: is written by --report already; give another"),
        ],
    )
    def test_names_that_cannot_be(self, onnxq, model, options, message):
        ran = onnxq(model, "--calib", "calib", *options)
        assert ran.code == 1
        assert message in " ".join(ran.err.split())
        assert not Path("model.int8.onnx").exists()


class TestTalk:
    def test_the_table_goes_to_stdout_and_progress_to_stderr(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", *NEVER_SATURATES)
        for row in ("model v8", "images RGB", "target ort", "Convs 16 of", "SQNR ", "size ", "time ", "output "):
            assert row in ran.table
        assert ran.err == "calibrating: 3/3\n"

    def test_v_gives_a_line_per_pass_and_the_reason_of_each_float_node(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "-v")
        assert re.findall(r"^([a-z0-9-]+) .* s$", ran.err, re.MULTILINE) == PASSES
        assert "\nfloat: conv0 (Conv): stem: 8 channels at 16 x 16, integer kernels save no time\n" in ran.out

    def test_v_is_not_told_of_v(self, onnxq, model):
        assert "(-v says which and why)" in onnxq(model, "--dry-run").table
        assert "-v says" not in onnxq(model, "--dry-run", "-v").table

    def test_without_v_no_pass_is_named(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib")
        assert "compute-qparams" not in ran.err
        assert "\nfloat: " not in ran.out

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

    def test_in_a_file_names_are_whole_and_no_line_ends_in_spaces(self, onnxq, model):
        long = Path("a folder with quite a long name", "and-another-one-below-it", "model-32x32-final.onnx")
        save(onnx.load(model), long)
        lines = onnxq(long, "--calib", "calib", "--sensitivity", "-v").out.splitlines()
        assert f"output       {long.with_suffix('')}.int8.onnx" in lines
        assert not [line for line in lines if line.endswith(" ")]

    def test_a_given_calibration_takes_no_time(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").table.count("calibration") == 2
        assert onnxq(model, "--calibration", "seen.npz").table.count("calibration") == 1

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

    def test_what_is_no_terminal_gets_no_colours(self, model):
        ran = spawn(model, "--count", 2)
        assert ran.code == 0
        assert "\x1b" not in ran.out + ran.err

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
    @pytest.mark.parametrize(
        "name", ["\u043c\u043e\u0434\u0435\u043b\u044c", "model\udcff"], ids=["Cyrillic", "no text"]
    )
    def test_names_that_the_terminal_cannot_show_are_no_error(self, model, name):
        save(onnx.load(model), f"{name}.onnx")
        ran = spawn(f"{name}.onnx", "--calib", "calib", PYTHONIOENCODING="ascii")
        assert ran.code == 0, ran.err
        assert f"output {name.encode('ascii', 'backslashreplace').decode()}.int8.onnx" in ran.table

    def test_as_a_module(self, model):
        ran = spawn(model, "--calib", "calib")
        assert ran.code == 0
        assert "output model.int8.onnx" in ran.table
        assert spawn(model, "--method", "none").code == 2


# --- errors -----------------------------------------------------------------------------------------------------------


def refused(onnxq, *argv, code=1):
    """Assert that a run ends with one line of error, and that no file is made, changed or left; give the line."""
    Path("model.int8.onnx").write_bytes(SENTINEL)
    before = snapshot()
    ran = onnxq(*argv)
    assert ran.code == code, ran
    assert ran.out == ""
    assert snapshot() == before
    lines = [line for line in ran.err.splitlines() if not re.match(r"calibrating: \d+/\d+$|warning: ", line)]
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("error: ")
    return lines[0]


def misused(onnxq, *argv):
    """Assert that a run ends with how to use it, and that nothing is written; give the last line."""
    before = snapshot()
    ran = onnxq(*argv)
    assert ran.code == 2
    assert ran.out == ""
    assert snapshot() == before
    first, last = ran.err.splitlines()
    assert first.startswith("usage: onnxq INPUT.onnx ")
    assert last.startswith("onnxq: error: ")
    return last


def behind(model, op, dims, kind=TensorProto.FLOAT, **attributes):
    """A model whose input has another shape or type and goes through one more node."""
    model = copy(model)
    for node in model.graph.node:
        node.input[:] = ["inner" if name == "images" else name for name in node.input]
    inputs = ["images"]
    if op == "Unsqueeze":
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
        inputs.append("axes")
    model.graph.node.insert(0, helper.make_node(op, inputs, ["inner"], "first", **attributes))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", kind, dims))
    onnx.checker.check_model(model, full_check=True)
    return model


def with_two_inputs():
    model = silu_chain()
    model.graph.input.append(helper.make_tensor_value_info("shapes", TensorProto.FLOAT, [1, 2]))
    return model


def without_conv():
    net = Net()
    return net.model(net.add("Relu", "images"))


def with_nan_weights():
    model = silu_chain()
    for weight in model.graph.initializer:
        if weight.name == "conv1_weight":
            values = numpy_helper.to_array(weight).copy()
            values[0] = np.nan
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return model


def with_nan_from_the_decode():
    """0 / 0 behind the last layer."""
    net = Net()
    x = net.conv(net.block(net.block("images", 8), 8), 4, name="last")
    zero = net.add("Sub", x, x, name="decode_sub")
    return net.model(net.add("Div", zero, zero, name="decode_div"))


class TestBadModels:
    def test_missing(self, onnxq):
        assert re.search(r"nope\.onnx: no such file", refused(onnxq, "nope.onnx"))

    def test_in_a_folder_that_is_missing(self, onnxq):
        assert re.search(r"nowhere.nope\.onnx: no such file", refused(onnxq, "nowhere/nope.onnx"))

    @pytest.mark.parametrize("name", ["calib", ".", ".."])
    def test_a_folder(self, onnxq, model, name):
        assert f"{name}: is a folder, not an ONNX file" in refused(onnxq, name)

    @pytest.mark.parametrize(
        "content",
        [b"", b"hello, this is text\n", b"\x89PNG\r\n\x1a\n", np.random.default_rng(0).bytes(5000)],
        ids=["empty", "text", "png", "random"],
    )
    def test_no_onnx_file(self, onnxq, content):
        Path("model.onnx").write_bytes(content)
        assert re.search(r"model\.onnx: not an ONNX file.*; export .*again|without nodes", refused(onnxq, "model.onnx"))

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999])
    def test_cut_short(self, onnxq, model, share):
        whole = model.read_bytes()
        model.write_bytes(whole[: int(len(whole) * share)])
        assert re.search(r"model\.onnx: not an ONNX file, or .*; export ", refused(onnxq, model))

    def test_already_quantized(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "-o", "small.onnx").code == 0
        message = refused(onnxq, "small.onnx", "--calib", "calib")
        assert re.search("already quantized: node '.+' is a QuantizeLinear; give the float model", message)

    def test_no_conv(self, onnxq):
        save(without_conv())
        assert "the model has no Conv" in refused(onnxq, "model.onnx")

    def test_nothing_left_to_quantize(self, onnxq, model):
        message = refused(onnxq, model, "--exclude", "op:Conv", "--calib", "calib")
        assert re.search("no Conv can be quantized: .*excluded: matches op:Conv", message)

    def test_input_of_another_rank(self, onnxq):
        save(behind(silu_chain(), "Unsqueeze", [3, 32, 32]))
        message = refused(onnxq, "model.onnx")
        assert "input images float32 (3, 32, 32) is no image: float32, float16 or uint8 (batch, 3, " in message

    def test_float64_input(self, onnxq):
        save(behind(silu_chain(), "Cast", [1, 3, 32, 32], TensorProto.DOUBLE, to=TensorProto.FLOAT))
        message = refused(onnxq, "model.onnx")
        assert "input images double (1, 3, 32, 32) is no image: float32, float16 or uint8" in message

    def test_two_inputs(self, onnxq):
        save(with_two_inputs())
        message = refused(onnxq, "model.onnx")
        assert "scenes can feed one input only, the model has images, shapes; give .npz files or an iterable" in message

    def test_nan_weights(self, onnxq):
        save(with_nan_weights())
        message = refused(onnxq, "model.onnx", "--count", 2)
        assert re.search("tensor '.+' holds NaN or infinite values .*; check the model and its preprocessing", message)

    def test_nan_in_the_output(self, onnxq):
        save(with_nan_from_the_decode())
        message = refused(onnxq, "model.onnx", "--count", 2)
        assert "the float model gives NaN in output 'output'; check the model" in message


def _write_npz(**arrays):
    np.savez("data.npz", **arrays)


SAMPLE = np.full((1, 3, 32, 32), 0.5, np.float32)


class TestBadData:
    def test_missing(self, onnxq, model):
        assert "nowhere: no such file or folder; check the path" in refused(onnxq, model, "--calib", "nowhere")

    def test_one_of_several_missing(self, onnxq, model):
        assert "nowhere: no such file or folder" in refused(onnxq, model, "--calib", "calib", "nowhere")

    def test_a_pattern_that_matches_nothing(self, onnxq, model):
        assert "calib/*.gif: matches no image" in refused(onnxq, model, "--calib", "calib/*.gif")

    def test_brackets_of_a_name_are_shown(self, onnxq, model):
        assert "error: [red]none[/]: " in refused(onnxq, model, "--calib", "[red]none[/]")

    def test_an_empty_folder(self, onnxq, model):
        Path("empty").mkdir()
        message = refused(onnxq, model, "--calib", "empty")
        assert re.search(r"empty: has no images \(.*\.jpg.*\).*; give another folder", message)

    def test_all_images_unreadable(self, onnxq, model):
        for number in range(3):
            Path(f"calib/{number}.png").write_bytes(b"no picture")
        message = refused(onnxq, model, "--calib", "calib")
        assert re.search(r"none of the 3 images could be read; first: calib/\d\.png", message)

    def test_a_kind_of_file_that_is_not_known(self, onnxq, model):
        Path("data.tar").write_bytes(b"")
        assert "data.tar: files of this kind are not known; give" in refused(onnxq, model, "--calib", "data.tar")

    def test_a_list_of_files_that_are_not_there(self, onnxq, model):
        Path("list.txt").write_text("a.png\nb.png\n")
        message = refused(onnxq, model, "--calib", "list.txt")
        assert "list.txt: names 2 files and none exists, such as a.png; put them in" in message

    def test_json_that_is_no_coco(self, onnxq, model):
        Path("data.json").write_text('{"pictures": []}')
        message = refused(onnxq, model, "--calib", "data.json")
        assert "data.json: has no images with a file_name; give annotations in COCO's format" in message

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": SAMPLE[:, :, :16]}, r"images has shape \(1, 3, 16, 32\), not \(\?, 3, 32, 32\); resize"),
            ({"images": SAMPLE.transpose(0, 2, 3, 1)}, r"images has shape \(1, 32, 32, 3\), not .*transpose"),
            ({"images": SAMPLE[0, 0]}, r"images has shape \(32, 32\), not"),
            ({"images": SAMPLE[:0]}, "holds no samples; leave it out"),
            ({"picture": SAMPLE, "other": SAMPLE}, "has picture, other, the model's inputs are images; name"),
            ({"images": (SAMPLE * 255).astype(np.uint8)}, "takes float32, values 0-255 as uint8: scale them"),
            ({"images": SAMPLE.astype(np.int64)}, "takes float32, not int64: convert it"),
            ({"images": SAMPLE * np.nan}, "sample 0: input images has NaN or infinite values; repair it"),
            ({"images": SAMPLE * np.float32(np.inf)}, "input images has NaN or infinite values; repair it"),
        ],
        ids=["size", "layout", "rank", "no rows", "keys", "uint8", "int64", "nan", "inf"],
    )
    def test_arrays_that_do_not_fit(self, onnxq, model, arrays, message):
        _write_npz(**arrays)
        assert re.search(rf"error: data\.npz.*{message}", refused(onnxq, model, "--calib", "data.npz"))

    def test_nan_in_a_later_row(self, onnxq, model):
        rows = np.repeat(SAMPLE, 5, axis=0)
        rows[3, 2, 5, 7] = np.nan
        _write_npz(images=rows)
        assert "error: data.npz, sample 3: input images has NaN" in refused(onnxq, model, "--calib", "data.npz")

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
    def test_no_archive(self, onnxq, model, content):
        Path("data.npz").write_bytes(content)
        assert "error: data.npz: cannot be read as arrays" in refused(onnxq, model, "--calib", "data.npz")


class TestBadOptions:
    @pytest.mark.parametrize(
        ("pattern", "hint"),
        [("cnov3", "did you mean .*conv3"), ("op:conv", r"did you mean Conv\?"), ("zzzz", "-v lists the nodes")],
    )
    def test_exclude_that_matches_nothing(self, onnxq, model, pattern, hint):
        message = refused(onnxq, model, "--calib", "calib", "--exclude", pattern)
        assert re.search(f"--exclude {pattern}: no node of the model matches; {hint}", message)

    def test_exclude_with_a_broken_regex(self, onnxq, model):
        message = refused(onnxq, model, "--calib", "calib", "--exclude", "re:[a-")
        assert "--exclude re:[a-: not a regular expression (" in message

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--method", "best"], "argument --method: invalid choice: 'best'"),
            (["--target", "gpu"], "argument --target: invalid choice: 'gpu'"),
            (["--weight-method", "uh"], "argument --weight-method: invalid choice: 'uh'"),
            (["--preprocess", "none"], "argument --preprocess: invalid choice: 'none'"),
            (["--weight-bits", "9"], "weight_bits: 9 bits: weights of onnxruntime on CPUs have 2 to 8 bits"),
            (["--act-bits", "1"], "act_bits: 1 bits: activations of onnxruntime on CPUs have 2 to 8 bits"),
            (["--act-bits", "x"], "argument --act-bits: invalid int value: 'x'"),
            (["--count", "0"], "count: 0 is less than 1"),
            (["--count", "-3"], "count: -3 is less than 1"),
            (["--count", "many"], "argument --count: invalid int value: 'many'"),
            (["--image-size", "0"], "argument --image-size: '0' is no image size; give 640, or height x width as"),
            (["--image-size", "640x"], "'640x' is no image size"),
            (["--image-size", "640,640"], "'640,640' is no image size"),
            (["--image-size", "-64"], "argument --image-size"),
            (["--frobnicate"], "unrecognized arguments: --frobnicate"),
            (["second.onnx"], "unrecognized arguments: second.onnx"),
        ],
    )
    def test_wrong_use(self, onnxq, model, options, message):
        assert message in misused(onnxq, model, *options)

    def test_no_input(self, onnxq):
        assert "required: INPUT.onnx" in misused(onnxq)

    def test_an_image_size_that_contradicts_the_model(self, onnxq, model):
        message = refused(onnxq, model, "--calib", "calib", "--image-size", "64")
        assert "the image size 64x64 was given, but the model's input is 32x32" in message

    def test_a_dynamic_model_without_image_size(self, onnxq):
        save(silu_chain(dynamic=True))
        message = refused(onnxq, "model.onnx")
        assert "height and width are dynamic, and it has no imgsz metadata: give --image-size 640" in message

    @pytest.mark.parametrize("option", ["-o", "--save-calibration", "--report"])
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("none/x.json", "none/x.json: cannot be written (No such file or directory); choose another place"),
            ("folder.json", "folder.json: is a folder; give the name of a file"),
            ("model.onnx/x.json", "model.onnx/x.json: cannot be written (Not a directory); choose another place"),
        ],
    )
    def test_a_place_that_cannot_be_written_to_is_told_before_the_work(self, onnxq, model, option, name, message):
        Path("folder.json").mkdir()
        # The data is bad, too: were it read first, the message would be another.
        assert message in refused(onnxq, model, "--calib", "nowhere", option, name)

    @pytest.mark.parametrize("name", ["model.onnx", "./model.onnx", "calib/../model.onnx"])
    @pytest.mark.parametrize("option", ["-o", "--save-calibration"])
    def test_the_input_is_never_replaced(self, onnxq, model, option, name):
        message = refused(onnxq, model, "--calib", "calib", option, name)
        assert re.search(rf"model\.onnx: is the input; give another name with {option}$", message)

    def test_the_input_is_never_replaced_through_a_link(self, onnxq, model):
        Path("link.onnx").symlink_to("model.onnx")
        assert "link.onnx: is the input" in refused(onnxq, model, "--calib", "calib", "-o", "link.onnx")

    def test_two_results_under_one_name(self, onnxq, model):
        message = refused(onnxq, model, "--calib", "calib", "-o", "a.json", "--report", "./a.json")
        assert "a.json: is written by -o already; give another name with --report" in message

    def test_the_given_calibration_is_never_replaced(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        message = refused(onnxq, model, "--calibration", "seen.npz", "-o", "seen.npz")
        assert "seen.npz: is the given calibration; give another name with -o" in message

    @pytest.mark.parametrize("option", ["-o", "--save-calibration", "--report"])
    def test_data_and_annotations_are_never_replaced(self, onnxq, model, option):
        Path("seen.json").write_text("{}")
        before = Path("seen.json").read_bytes()
        refusal = refused(onnxq, model, "--calib", "seen.json", "calib", option, "seen.json")
        assert f"seen.json: is calibration data; give another name with {option}" in refusal
        labelled = ["--evaluate", "--annotations", "seen.json", "--images", "calib"]
        refusal = refused(onnxq, model, "--calib", "calib", *labelled, option, "seen.json")
        assert f"seen.json: is the file of annotations; give another name with {option}" in refusal
        assert Path("seen.json").read_bytes() == before

    def test_a_report_of_another_kind(self, onnxq, model):
        message = refused(onnxq, model, "--calib", "nowhere", "--report", "r.txt")
        assert "--report r.txt: the name must end in .json, .md, .html" in message

    @pytest.mark.parametrize("name", ["model.onnx", "model.onnx/a/b"])
    def test_a_file_where_each_step_should_go(self, onnxq, model, name):
        message = refused(onnxq, model, "--calib", "calib", "--save-each", name)
        assert f"--save-each {name}: model.onnx is a file; give the name of a folder" in message


class TestBadCalibration:
    def test_beside_data(self, onnxq, model):
        message = misused(onnxq, model, "--calib", "calib", "--calibration", "seen.npz")
        assert "--calib and --calibration: give one of the two" in message

    def test_missing(self, onnxq, model):
        message = refused(onnxq, model, "--calibration", "none.npz")
        assert "none.npz: no such calibration file; make one with --save-calibration" in message

    @pytest.mark.parametrize(
        "content", [b"", b"garbage", b"PK\x03\x04garbage", b"\x93NUMPY\x01\x00"], ids=["empty", "text", "zip", "npy"]
    )
    def test_garbage(self, onnxq, model, content):
        Path("seen.npz").write_bytes(content)
        message = refused(onnxq, model, "--calibration", "seen.npz")
        assert "seen.npz: not a calibration file written by --save-calibration" in message

    def test_data_instead(self, onnxq, model):
        _write_npz(images=SAMPLE)
        message = refused(onnxq, model, "--calibration", "data.npz")
        assert "data.npz: not a calibration file written by --save-calibration" in message

    @pytest.mark.parametrize("damage", ["cut", "flipped"])
    def test_damaged(self, onnxq, model, damage):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        whole = Path("seen.npz").read_bytes()
        middle = len(whole) // 2
        broken = whole[:middle] if damage == "cut" else whole[:middle] + bytes(50) + whole[middle + 50 :]
        Path("seen.npz").write_bytes(broken)
        message = refused(onnxq, model, "--calibration", "seen.npz")
        assert "seen.npz: not a calibration file written by --save-calibration" in message

    def test_of_another_model(self, onnxq, model):
        save(v8(seed=1), "other.onnx")
        assert onnxq("other.onnx", "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        message = refused(onnxq, model, "--calibration", "seen.npz")
        assert "the calibration was made with another model, or with another choice of --equalize" in message

    def test_of_another_target(self, onnxq, model):
        arguments = ["--calib", "calib", "--target", "openvino", "--save-calibration", "seen.npz"]
        assert onnxq(model, *arguments).code == 0
        message = refused(onnxq, model, "--calibration", "seen.npz", "--target", "generic")
        assert re.search("holds nothing of tensor '.+': it was made for another target .*; calibrate again", message)


class TestDebug:
    def test_keeps_the_exception(self, model):
        with pytest.raises(ModelError, match=r"nope\.onnx: no such file"):
            main(["nope.onnx", "--debug"])

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
from onnxq.calibration import readers

read_image = readers.read_image

def press(path):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    return read_image(path)

readers.read_image = press
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
sys.exit(cli.main(sys.argv[1:]))
"""


SLOW = """
import signal, sys, time
from onnxq import cli
from onnxq.calibration import readers

read_image = readers.read_image

def read(path):
    time.sleep(0.3)
    return read_image(path)

readers.read_image = read
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(cli.main(sys.argv[1:]))
"""
ERASED = "\x1b[2K"


class TestInterrupted:
    def test_during_the_calibration(self, model):
        """In a process of its own: where OpenVINO was used, its alternate signal stack may be gone."""
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


class TestDoubts:
    def test_are_rows_of_the_closing_table_and_of_the_report(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--preprocess", "yolo-255", "--report", "r.json")
        assert re.search(r"^warning +the first layer, ", ran.out, re.MULTILINE)
        [doubt] = json.loads(Path("r.json").read_text())["doubts"]
        assert "may be scaled too much" in doubt
        assert "warning" not in onnxq(model, "--calib", "calib").out
