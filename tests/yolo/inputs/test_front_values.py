"""Fronts that apply, undo or change the values of the image, on the trained network of the demo.

The network takes RGB of 0 to 1. Where a front is recognized, the fronted network gives what the network gives.
"""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from cases import paired
from graphs import feed, samples, yolox
from onnx import TensorProto, helper, numpy_helper

import onnxq.compare
from onnxq import cli, evaluate
from onnxq.api import quantize
from onnxq.calibration.demo import model_path, scene
from onnxq.config import Config
from onnxq.evaluation.average_precision import measure_precision
from onnxq.evaluation.ground_truth import demo_ground_truth
from onnxq.evaluation.predictor import Settings
from onnxq.passes import default
from onnxq.runtime.session import open_session, run
from onnxq.targets import TARGETS
from onnxq.yolo.detector import detect
from onnxq.yolo.preprocess import IMAGENET, LEVELS, SIGNED, UNIT, YOLO, YOLOX

MEAN, DEVIATION = np.array(IMAGENET.mean), np.array(IMAGENET.deviation)

YUV_OF_RGB = np.array([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]])

TAKES = {"imagenet": (DEVIATION, MEAN), "signed": (np.full(3, 0.5), np.full(3, 0.5))}
"""Values of the image -> gain and offset of each plane that make 0 to 1 of them."""


class Front:
    """Nodes between the new input `frame` and the network's input."""

    def __init__(self, constant="initializer"):
        self.nodes, self.weights, self._constant, self._tensor = [], [], constant, "frame"

    def constant(self, values, kind=np.float32):
        name = f"front{len(self.nodes) + len(self.weights)}"
        tensor = numpy_helper.from_array(np.asarray(values, kind), name)
        if self._constant == "initializer":
            self.weights.append(tensor)
        elif self._constant == "node":
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.weights.append(numpy_helper.from_array(np.asarray(values, kind) - kind(1), f"{name}_less"))
            self.weights.append(numpy_helper.from_array(kind(1), f"{name}_one"))
            self.nodes.append(helper.make_node("Add", [f"{name}_less", f"{name}_one"], [name]))
        return name

    def add(self, op, *inputs, **attributes):
        output = f"front_{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self._tensor, *inputs], [output], **attributes))
        self._tensor = output
        return self

    def by(self, op, values):
        return self.add(op, self.constant(np.reshape(values, (1, -1, 1, 1)) if np.ndim(values) else values))

    def before(self, model, kind=TensorProto.FLOAT, opset=None):
        model = onnx.ModelProto.FromString(model.SerializeToString())
        for node in model.graph.node:
            node.input[:] = [self._tensor if name == "images" else name for name in node.input]
        for place, node in enumerate(self.nodes):
            model.graph.node.insert(place, node)
        model.graph.initializer.extend(self.weights)
        model.graph.input[0].name = "frame"
        model.graph.input[0].type.tensor_type.elem_type = kind
        if opset:
            model.opset_import[0].version = opset
        return model


def mul_add(front, gain, offset):
    return front.by("Mul", gain).by("Add", offset)


def div_sub(front, gain, offset):
    return front.by("Div", 1 / gain).by("Sub", -offset)


def add_mul(front, gain, offset):
    return front.by("Add", offset / gain).by("Mul", gain)


def sub_div(front, gain, offset):
    return front.by("Sub", -offset / gain).by("Div", 1 / gain)


def batch_norm(front, gain, offset):
    given = [front.constant(each) for each in (gain, offset, np.zeros(3), np.full(3, 1 - 1e-5))]
    return front.add("BatchNormalization", *given)


def depthwise(front, gain, offset):
    weight = front.constant(np.reshape(gain, (3, 1, 1, 1)))
    return front.add("Conv", weight, front.constant(offset), group=3)


def diagonal(front, gain, offset):
    weight = front.constant(np.diag(gain)[:, :, None, None])
    return front.add("Conv", weight, front.constant(offset))


def over_levels(front, gain, offset):
    return mul_add(front, gain * 255, offset * 255).by("Div", 255.0)


def rounded(front, gain, offset):
    front.add("Cast", to=TensorProto.FLOAT16)
    front.add("Mul", front.constant(np.reshape(gain, (1, 3, 1, 1)), np.float16))
    front.add("Add", front.constant(np.reshape(offset, (1, 3, 1, 1)), np.float16))
    return front.add("Cast", to=TensorProto.FLOAT)


def clipped(front, gain, offset):
    return mul_add(front, gain, offset).add("Clip", front.constant(0.0), front.constant(1.0))


KINDS = [mul_add, div_sub, add_mul, sub_div, batch_norm, depthwise, diagonal, over_levels, rounded, clipped]


@pytest.fixture(scope="module")
def demo():
    return onnx.load(model_path())


def outputs_of(model, detector, index):
    picture = scene("validation", index).picture
    feed = detector.feed(detector.preprocess(picture, detector.size)[0])
    return run(open_session(model, exact=True), feed)[0]


def assert_same(model, demo):
    wanted = outputs_of(demo, detect(demo), 3)
    np.testing.assert_allclose(outputs_of(model, detect(model), 3), wanted, atol=0.3)


class TestUndone:
    @pytest.mark.parametrize("takes", TAKES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_front_that_undoes_a_normalization_is_given_it(self, demo, kind, takes):
        model = kind(Front(), *TAKES[takes]).before(demo)
        found = detect(model)
        assert found.preprocess.name == f"rgb,{takes},centred"
        undone = {"imagenet": "ImageNet's mean and deviation", "signed": "the scale of -1 to 1"}[takes]
        assert found.why.endswith(f", and the graph undoes {undone}")
        assert not found.warnings
        assert_same(model, demo)

    @pytest.mark.parametrize("constant", ["node", "computed"])
    @pytest.mark.parametrize("kind", [mul_add, sub_div, batch_norm, depthwise, diagonal])
    def test_constants_that_are_not_folded(self, demo, kind, constant):
        model = kind(Front(constant), *TAKES["imagenet"]).before(demo)
        assert detect(model).preprocess == replace(YOLO, values=IMAGENET)

    @pytest.mark.parametrize("opset", range(11, 22))
    @pytest.mark.parametrize("kind", [mul_add, batch_norm, depthwise, clipped])
    def test_opsets(self, demo, kind, opset):
        model = kind(Front(), *TAKES["imagenet"]).before(demo, opset=opset)
        assert detect(model).preprocess == replace(YOLO, values=IMAGENET)

    def test_float16(self, demo):
        front = Front().add("Cast", to=TensorProto.FLOAT)
        model = mul_add(front, *TAKES["imagenet"]).before(demo, TensorProto.FLOAT16)
        assert detect(model).preprocess == replace(YOLO, values=IMAGENET)

    def test_constants_in_the_order_bgr_take_bgr(self, demo):
        front = mul_add(Front(), DEVIATION[::-1], MEAN[::-1])
        front.add("Gather", front.constant([2, 1, 0], np.int64), axis=1)
        model = front.before(demo)
        assert detect(model).preprocess == replace(YOLO, values=IMAGENET, bgr=True)
        assert_same(model, demo)

    def test_a_network_of_levels(self):
        model = mul_add(Front(), DEVIATION[::-1] * 255, MEAN[::-1] * 255).before(yolox())
        assert detect(model).preprocess == replace(YOLOX, values=IMAGENET)
        assert detect(Front().by("Mul", 255.0).before(yolox())).preprocess == replace(YOLOX, values=UNIT)

    def test_what_is_said_counts(self, demo):
        model = mul_add(Front(), *TAKES["signed"]).before(demo)
        assert detect(model, preprocess="0-1").preprocess == YOLO
        assert detect(model, preprocess="yolox").preprocess == YOLOX
        assert detect(model, preprocess="stretch").preprocess == replace(YOLO, values=SIGNED, place="stretch")

    def test_precision(self, demo):
        truth = demo_ground_truth(30)
        model = mul_add(Front(), *TAKES["imagenet"]).before(demo)
        found = measure_precision(model, truth, Settings())
        assert found.ap == pytest.approx(measure_precision(demo, truth, Settings()).ap, abs=0.1)
        assert measure_precision(model, truth, Settings(preprocess="0-1")).ap < found.ap - 10

    @pytest.mark.slow
    @pytest.mark.parametrize(("target", "kind"), paired(TARGETS, [mul_add, depthwise], each=1))
    def test_a_quantized_model_takes_its_image_as_the_float_model(self, demo, target, kind):
        model = kind(Front(), *TAKES["imagenet"]).before(demo)
        options = Config(target=target, count=2, reconstruct=False)
        feeds = [feed(model, seed) for seed in range(2)]
        steps = [step for step in default(options, model, samples(feeds)) if step.name != "verify"]
        quantized = quantize(model, feeds, options, passes=steps).model
        assert detect(quantized).preprocess == detect(model).preprocess == replace(YOLO, values=IMAGENET)


class TestApplied:
    @pytest.mark.parametrize("kind", KINDS[:7])
    @pytest.mark.parametrize(("scale", "values"), [(1.0, UNIT), (255.0, LEVELS)])
    @pytest.mark.parametrize("gives", TAKES)
    def test_a_front_that_normalizes_takes_plain_values(self, demo, kind, scale, values, gives):
        deviation, mean = TAKES[gives]
        found = detect(kind(Front(), 1 / (deviation * scale), -mean / deviation).before(demo))
        assert found.preprocess == replace(YOLO, values=values)
        assert not found.warnings

    def test_constants_of_imagenet_tell_the_order(self):
        model = mul_add(Front(), 1 / (DEVIATION * 255), -MEAN / DEVIATION).before(yolox())
        found = detect(model)
        assert found.preprocess == replace(YOLOX, bgr=False)
        assert found.why.endswith(", and its constants are in the order RGB")


class TestOtherMeans:
    @pytest.mark.parametrize("offset", [0.5, MEAN])
    def test_a_mean_that_no_word_names_is_warned_of(self, demo, offset):
        model = Front().by("Add", offset).before(demo)
        [warning] = detect(model).warnings
        assert "0-1 is assumed. Say --preprocess 0-1 if that is right" in warning
        assert detect(model).preprocess == YOLO
        assert not detect(model, preprocess="0-1").warnings
        assert detect(model, preprocess="rgb").warnings

    @pytest.mark.parametrize("gain", [0.5, 2.0, 1 / 255])
    def test_a_gain_alone_is_not(self, demo, gain):
        assert not detect(Front().by("Mul", gain).before(demo)).warnings

    def test_a_mean_that_is_taken_away_is_not(self, demo):
        assert not detect(Front().by("Sub", [104.0, 117.0, 123.0]).before(demo)).warnings


def mixed(matrix, how, scale=1.0):
    front, matrix = Front(), np.asarray(matrix, np.float32) * np.float32(scale)
    if how == "conv":
        return front.add("Conv", front.constant(matrix[:, :, None, None]))
    front.add("Transpose", perm=[0, 2, 3, 1])
    return front.add("MatMul", front.constant(matrix.T)).add("Transpose", perm=[0, 3, 1, 2])


class TestMixed:
    @pytest.mark.parametrize("scale", [1.0, 1 / 255])
    @pytest.mark.parametrize("how", ["conv", "matmul"])
    def test_other_colours_are_warned_of(self, demo, how, scale):
        model = mixed(np.linalg.inv(YUV_OF_RGB), how, scale).before(demo)
        found = detect(model)
        [warning] = found.warnings
        assert "mixes the planes" in warning
        assert "RGB is assumed. Say --preprocess rgb or bgr" in warning
        assert found.preprocess.values == (UNIT if scale == 1 else LEVELS)
        for said in ("rgb", "bgr", "yolo"):
            assert not detect(model, preprocess=said).warnings
        assert detect(model, preprocess="0-1").warnings

    @pytest.mark.parametrize("how", ["conv", "matmul"])
    @pytest.mark.parametrize("matrix", [YUV_OF_RGB, np.tile([0.299, 0.587, 0.114], (3, 1)), YUV_OF_RGB[[2, 0, 1]]])
    def test_brightness_tells_the_order(self, demo, matrix, how):
        for order in (slice(None), slice(None, None, -1)):
            found = detect(mixed(matrix[:, order], how).before(demo))
            assert found.preprocess.bgr == (order.step == -1)
            assert not found.warnings

    def test_grey_is_the_same_in_either_order(self, demo):
        assert not detect(mixed(np.full((3, 3), 1 / 3), "conv").before(demo)).warnings

    def test_all_commands_warn(self, demo, tmp_path, capsys):
        model, made = tmp_path / "yuv.onnx", tmp_path / "made.onnx"
        onnx.save(mixed(np.linalg.inv(YUV_OF_RGB), "conv").before(demo), model)
        assert cli.main([str(model), "--dry-run"]) == 0
        assert "mixes the planes" in " ".join(capsys.readouterr().out.split())
        options = ["--demo", "--count", "4", "--no-reconstruct", "--no-speed", "-o", str(made)]
        assert cli.main([str(model), *options]) == 0
        assert "mixes the planes" in " ".join(capsys.readouterr().out.split())
        for command in (evaluate, onnxq.compare):
            assert command.main([str(model), str(made), "--demo", "--max-images", "2"]) == 0
            assert "mixes the planes" in " ".join(capsys.readouterr().err.split())
