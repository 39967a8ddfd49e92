import json
import os
import re
import shlex
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import (
    PASSES,
    SENTINEL,
    integer_layers,
    metadata,
    runs,
    save,
    scales,
    snapshot,
    spawn,
)
from graphs import classifier, initializers, nodes, ops, silu_chain, v8, with_opaque_nms

from onnxq import compare, evaluate
from onnxq.version import VERSION

pytestmark = pytest.mark.usefixtures("folder")


def unclear():
    """A model whose boxes are 77 times too large and whose scores are above 1."""
    model = v8()
    [output] = model.graph.output
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(77), "much"))
    model.graph.node.append(onnx.helper.make_node("Mul", [output.name, "much"], ["more"]))
    output.name = "more"
    return model


class TestOutput:
    def test_stands_beside_the_input_by_default(self, onnxq, model):
        save(onnx.load(model), "deep/down/net.v2.onnx")
        assert onnxq("deep/down/net.v2.onnx", "--calib", "calib").code == 0
        assert sorted(os.listdir("deep/down")) == ["net.v2.int8.onnx", "net.v2.onnx"]
        runs("deep/down/net.v2.int8.onnx")

    @pytest.mark.slow
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

    def test_replaces_what_was_there_as_a_whole(self, onnxq, model, made):
        made("fresh.onnx")
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
        assert len(int8) == 11
        assert ops(after).count("QuantizeLinear") > 9

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

    def test_the_command_that_is_proposed_next_prepares_images_alike(self, onnxq, model):
        options = ["--preprocess", "bgr,stretch", "--image-size", "32x32", "--layout", "cx", "cy", "w", "h", "scores"]
        last = onnxq(model, "--calib", "calib", *options).out.splitlines()[-1]
        assert shlex.split(last)[-len(options) :] == options

    def test_what_has_no_ap_is_to_be_compared(self, onnxq):
        for build, taken in ((silu_chain, "unknown"), (classifier, "classes")):
            save(build())
            ran = onnxq("model.onnx", "--count", 2)
            assert f"model {taken}, " in ran.table
            assert ran.out.splitlines()[-1] == "next: python -m onnxq.compare model.onnx model.int8.onnx --images DIR"

    @pytest.mark.parametrize(
        "build",
        [silu_chain, classifier, v8, unclear, lambda: with_opaque_nms(silu_chain()), lambda: with_opaque_nms(v8())],
        ids=["unknown", "classes", "detector", "unclear", "operator not known", "detector and operator not known"],
    )
    def test_the_command_that_is_proposed_next_runs(self, onnxq, model, build):
        save(build())
        proposed = onnxq(model, "--calib", "calib").out.splitlines()[-1].removeprefix("next: python -m ")
        categories = [{"id": number, "name": f"class {number}"} for number in range(3)]
        images = [{"id": k, "file_name": f"{k}.png", "width": 40 + 10 * k, "height": 48} for k in range(3)]
        box = {"id": 1, "image_id": 0, "category_id": 0, "bbox": [1, 1, 9, 9]}
        Path("A.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": [box]}))
        command, *words = shlex.split(proposed)
        main = {"onnxq.evaluate": evaluate.main, "onnxq.compare": compare.main}[command]
        assert main([{"DIR": "calib"}.get(word, word) for word in words]) == 0

    def test_images_that_do_not_fit_are_not_proposed(self, onnxq, model):
        four = onnx.load(model)
        four.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
        weight = next(w for w in four.graph.initializer if w.name == nodes(four)["conv0"].input[1])
        values = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(np.concatenate([values, values[:, :1]], axis=1), weight.name))
        save(four)
        np.save("four.npy", np.random.default_rng(0).random((12, 4, 32, 32), np.float32))
        ran = onnxq(model, "--calib", "four.npy")
        assert ran.code == 0, ran.err
        assert "next:" not in ran.out


@pytest.mark.slow
class TestSameInputSameBytes:
    def test_twice(self, onnxq, model):
        for name in ("a.onnx", "b.onnx"):
            assert onnxq(model, "--calib", "calib", "-o", name).code == 0
        assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()

    @pytest.mark.slow
    def test_in_two_processes_with_other_hashes(self, model):
        for seed in ("1", "2"):
            ran = spawn(model, "--calib", "calib", "-o", f"{seed}.onnx", "--save-calibration", f"{seed}.npz", seed=seed)
            assert ran.code == 0, ran.err
        assert Path("1.onnx").read_bytes() == Path("2.onnx").read_bytes()
        assert Path("1.npz").read_bytes() == Path("2.npz").read_bytes()
        with zipfile.ZipFile("1.npz") as archive:  # two seconds apart they would differ
            assert {member.date_time[0] for member in archive.infolist()} == {1980}

    @pytest.mark.slow
    def test_with_shuffled_rows(self, onnxq, model):
        rng = np.random.default_rng(0)
        # Of very different magnitudes, so that histograms have to grow while they count.
        data = (rng.random((9, 3, 32, 32)) * 4.0 ** rng.integers(-6, 1, (9, 1, 1, 1))).astype(np.float32)
        for name, order in {"a": np.arange(9), "b": np.arange(9)[::-1], "c": rng.permutation(9)}.items():
            np.savez(f"{name}.npz", images=data[order])
            assert onnxq(model, "--calib", f"{name}.npz", "-o", f"{name}.onnx").code == 0
        assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes() == Path("c.onnx").read_bytes()


class TestSaveEach:
    @pytest.mark.slow
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


class TestReport:
    def test_as_json(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--report", "r.json", "--exclude", "conv3").code == 0
        report = json.loads(Path("r.json").read_text())
        assert (report["model"], report["target"], report["method"]) == ("model.onnx", "ort", "uh")
        assert (report["weight_bits"], report["act_bits"], report["exclude"]) == (8, 8, ["conv3"])
        assert next(iter(report.items())) == ("format", 1)
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

    @pytest.mark.slow
    def test_of_a_given_calibration(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        assert onnxq(model, "--calibration", "seen.npz", "--report", "r.json").code == 0
        assert json.loads(Path("r.json").read_text())["calibration"] == "given statistics"


class TestCutHead:
    @pytest.mark.slow
    @pytest.mark.parametrize("target", ["generic", "qnn"])
    def test_writes_the_float_model_without_decode_and_its_ranges(self, onnxq, model, target):
        ran = onnxq(model, "--calib", "calib", "--target", target, "--cut-decode", "cut.onnx", "--report", "r.json")
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
        seen = {a["tensor"]: {"low": a["low"], "high": a["high"]} for a in reported}
        assert ranges == {name: bounds for name, bounds in seen.items() if name in tensors}
        assert (len(seen) > len(ranges)) == (target == "qnn")  # whose plan has some of the decode

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
