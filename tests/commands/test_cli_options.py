import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import (
    draw,
    integer_layers,
    metadata,
    runs,
    save,
    scales,
    zero_points,
)
from graphs import initializers, nodes, ops, relu_net, silu_chain, yolox

from onnxq.numerics.range_methods import METHODS
from onnxq.targets import TARGETS

pytestmark = pytest.mark.usefixtures("folder")


class TestOptions:
    @pytest.mark.slow
    @pytest.mark.parametrize("method", METHODS)
    def test_method(self, onnxq, model, made, method):
        made("minmax.onnx", "--method", "minmax")
        ran = onnxq(model, "--calib", "calib", "--method", method)
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

    @pytest.mark.slow
    def test_the_default_method_is_uh(self, onnxq, model, made):
        made("default.onnx")
        assert onnxq(model, "--calib", "calib", "--method", "uh", "-o", "uh.onnx").code == 0
        assert Path("uh.onnx").read_bytes() == Path("default.onnx").read_bytes()

    def test_the_target_qnn(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--target", "qnn")
        assert ran.code == 0, ran.err
        assert "target qnn (" in ran.table
        assert metadata("model.w8a16.onnx")["onnxq.target"] == "qnn"
        runs("model.w8a16.onnx")
        assert np.dtype(np.uint16) in {values.dtype for values in zero_points("model.w8a16.onnx")}
        assert "conv0" in integer_layers("model.w8a16.onnx")

    @pytest.mark.slow
    @pytest.mark.parametrize("target", [target for target in TARGETS if target != "qnn"])
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

    @pytest.mark.slow
    def test_weight_bits(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--target", "generic", "--weight-bits", 3)
        assert ran.code == 0
        layers = integer_layers("model.w3a8.onnx")
        at_an_end = {"conv0", *(f"{kind}{k}" for kind in ("box", "cls") for k in range(3))}
        assert at_an_end < layers.keys()
        wide = {*at_an_end, "conv1"}
        assert min(weight.size for name, weight in layers.items() if name not in wide) > layers["conv1"].size
        assert {name: int(np.abs(weight).max()) for name, weight in layers.items()} == {
            name: 127 if name in wide else 3 for name in layers
        }
        assert "Clip" not in ops(onnx.load("model.w3a8.onnx"))
        runs("model.w3a8.onnx")

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_weight_method(self, made):
        stored = []
        for method in ("minmax", "mse"):
            made(f"{method}.onnx", "--weight-bits", 4, "--weight-method", method, "--no-reconstruct")
            stored.append(integer_layers(f"{method}.onnx"))
        assert stored[0].keys() == stored[1].keys()
        assert any((stored[0][name] != stored[1][name]).any() for name in stored[0])

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_8_bits_are_reconstructed_on_demand(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--reconstruct")
        assert ran.code == 0
        assert "reconstructing: " in ran.err
        runs("model.int8.onnx")

    @pytest.mark.slow
    def test_keep_bias(self, onnxq, model):
        before = initializers(onnx.load(model))
        arguments = [model, "--calib", "calib", "--target", "openvino", "--weight-bits", 4, "--no-reconstruct"]
        for options, kept in ([], False), (["--keep-bias"], True):
            assert onnxq(*arguments, *options).code == 0
            after = onnx.load("model.w4a8.onnx")
            values, convs = initializers(after), nodes(after)
            biases = {name: values[convs[name].input[2]] for name in integer_layers("model.w4a8.onnx")}
            assert len(biases) == 12
            assert all((biases[name] == before[f"{name}_bias"]).all() == kept for name in biases)
            runs("model.w4a8.onnx")

    @pytest.mark.slow
    def test_pack(self, onnxq, model, made):
        arguments = ["--weight-bits", 4, "--no-reconstruct"]
        made("plain.onnx", *arguments)
        assert onnxq(model, "--calib", "calib", *arguments, "--pack", "int4").code == 0
        assert Path("model.w4a8.onnx").stat().st_size < Path("plain.onnx").stat().st_size
        assert integer_layers("model.w4a8.onnx").keys() == integer_layers("plain.onnx").keys()
        runs("model.w4a8.onnx")

    @pytest.mark.slow
    @pytest.mark.parametrize(("target", "middle"), [("ort", 128), ("openvino", 128), ("tensorrt", 0)])
    def test_symmetric(self, onnxq, model, target, middle):
        assert onnxq(model, "--calib", "calib", "--target", target, "--symmetric").code == 0
        assert {int(values) for values in zero_points("model.int8.onnx")} == {middle}

    def test_activations_are_asymmetric_by_default(self, onnxq, model):
        assert onnxq(model, "--calib", "calib").code == 0
        assert len({int(values) for values in zero_points("model.int8.onnx")}) > 1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("patterns", "floats"),
        [
            (["conv3"], {"conv3"}),
            (["conv3", "conv4"], {"conv3", "conv4"}),
            (["re:^conv[34]$"], {"conv3", "conv4"}),
            (["conv3", "--exclude", "re:v4"], {"conv3", "conv4"}),
        ],
    )
    def test_exclude_by_name_and_by_regex(self, onnxq, model, made, patterns, floats):
        made("all.onnx", "--target", "openvino")
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
        assert json.loads(Path("r.json").read_text())["float"]["upsample"] == {
            "code": "excluded",
            "text": "excluded: matches op:ConvTranspose",
        }

    @pytest.mark.slow
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
