import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import (
    misused,
    refused,
    save,
)
from graphs import Net, copy, silu_chain
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.usefixtures("folder")


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
    """Return a model with 0 / 0 after the last layer."""
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
        assert "input images float32 (3, 32, 32) is not an image: expected float32, float16 or uint8" in message

    def test_float64_input(self, onnxq):
        save(behind(silu_chain(), "Cast", [1, 3, 32, 32], TensorProto.DOUBLE, to=TensorProto.FLOAT))
        message = refused(onnxq, "model.onnx")
        assert "input images double (1, 3, 32, 32) is not an image: expected float32, float16 or uint8" in message

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
            (["--preprocess", "none"], "error: --preprocess: 'none' is unknown; give one of auto, yolo, "),
            (["--weight-bits", "9"], "error: --weight-bits: 9 bits: weights of onnxruntime on CPUs have 2 to 8 bits"),
            (["--act-bits", "1"], "error: --act-bits: 1 bits: activations of onnxruntime on CPUs have 2 to 8 bits"),
            (["--act-bits", "x"], "argument --act-bits: invalid int value: 'x'"),
            (["--count", "0"], "error: --count: 0 is less than 1"),
            (["--count", "-3"], "error: --count: -3 is less than 1"),
            (["--count", "many"], "argument --count: invalid int value: 'many'"),
            (["--image-size", "0"], "argument --image-size: expected 640, or height x width as 384x640, got '0'"),
            (["--image-size", "640x"], "got '640x'"),
            (["--image-size", "640,640"], "got '640,640'"),
            (["--image-size", "-64"], "argument --image-size"),
            (["--frobnicate"], "unrecognized arguments: --frobnicate"),
            (["--quiet", "second.onnx"], "unrecognized arguments: second.onnx"),
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
