"""Which scale of the image the first layer is made for."""

from dataclasses import replace

import numpy as np
import pytest
from cases import paired
from graphs import DATA, Net, copy, samples, v8, yolox
from onnx import TensorProto, helper, numpy_helper

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.ir import ProtoIndex
from onnxq.ir.storage import load_proto
from onnxq.passes import default
from onnxq.targets import TARGETS
from onnxq.yolo.detector import detect
from onnxq.yolo.inputs.first_layer import first_conv, is_of_trained_network, painted_image, spread
from onnxq.yolo.preprocess import LEVELS, PREPROCESSES, UNIT, YOLO, YOLOX


def scaled(model, factor):
    """Return the model with the weight of its first Conv scaled."""
    model = copy(model)
    weight = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == weight]
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    return model


def reversing(model):
    """Return the model with the planes reversed in front."""
    model = copy(model)
    for node in model.graph.node:
        node.input[:] = ["reversed" if name == "images" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Gather", ["images", "order"], ["reversed"], axis=1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    return model


class TestScale:
    def test_what_fits_stays_as_guessed(self):
        assert detect(v8()).preprocess == YOLO
        assert detect(yolox()).preprocess == YOLOX

    def test_yolox_of_inputs_of_0_to_1_takes_rgb(self):
        found = detect(scaled(yolox(), 255))
        assert found.preprocess == replace(YOLO, place="top-left")
        assert found.why.endswith(", and the first layer is scaled for 0-1")

    def test_a_family_of_inputs_of_0_to_1_that_takes_levels(self):
        found = detect(scaled(v8(), 1 / 255))
        assert found.preprocess == replace(YOLO, values=LEVELS)
        assert found.why.endswith(", and the first layer is scaled for 0-255")

    @pytest.mark.parametrize("factor", [1e-6, 1e6])
    def test_what_fits_neither_stays_as_guessed(self, factor):
        assert detect(scaled(yolox(), factor)).preprocess == YOLOX

    @pytest.mark.parametrize("said", [*PREPROCESSES, "0-255", "imagenet"])
    def test_values_that_are_said_stay(self, said):
        values = PREPROCESSES[said].values if said in PREPROCESSES else None
        found = detect(scaled(yolox(), 255), preprocess=said).preprocess.values
        assert found == values if values else found.name == said

    @pytest.mark.parametrize("said", ["top-left", "stretch", "rgb"])
    def test_what_is_said_of_something_else_leaves_it_open(self, said):
        assert detect(scaled(yolox(), 255), preprocess=said).preprocess.values == UNIT

    def test_without_weights_nothing_is_known(self):
        model = copy(scaled(yolox(), 255))
        for tensor in model.graph.initializer:
            tensor.data_location = TensorProto.EXTERNAL
        assert detect(model).preprocess == YOLOX

    @pytest.mark.parametrize("name", ["yolov5n", "yolox_nano"])
    def test_trained_networks_take_what_their_family_does(self, name):
        path = DATA / "models" / f"{name}.onnx"
        if not path.is_file():
            pytest.skip(f"{path} is absent")
        model = load_proto(path)
        assert detect(model).preprocess == (YOLO if name == "yolov5n" else YOLOX)
        factor, values = (1 / 255, LEVELS) if name == "yolov5n" else (255, UNIT)
        assert detect(scaled(model, factor)).preprocess.values == values


class TestSpread:
    def test_batch_normalization_counts_as_part_of_the_layer(self):
        model = v8(batch_norm=True)
        layer = first_conv(ProtoIndex(model.graph), "images")
        assert (layer.name, layer.output) == ("conv0", "norm0_out")
        norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
        [variance] = [tensor for tensor in model.graph.initializer if tensor.name == norm.input[4]]
        values = numpy_helper.to_array(variance)
        wide = copy(model)
        for tensor in wide.graph.initializer:
            if tensor.name == variance.name:
                tensor.CopyFrom(numpy_helper.from_array(values * np.float32(255**2), tensor.name))
        images = [{"images": YOLO(painted_image((32, 32)), (32, 32))[0]}]
        assert spread(model, layer, images) == pytest.approx(255 * spread(wide, layer, images), rel=0.01)
        # Its Conv alone gives what fits 0-1.
        assert detect(wide).preprocess.values == LEVELS

    def test_only_the_part_before_the_layer_is_run(self):
        model = copy(v8())
        model.graph.node.append(helper.make_node("Secret", ["images"], ["nothing"]))
        layer = first_conv(ProtoIndex(model.graph), "images")
        noise = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
        assert is_of_trained_network(spread(model, layer, [{"images": noise}]))

    def test_no_conv(self):
        net = Net()
        assert first_conv(ProtoIndex(net.model(net.add("Relu", "images")).graph), "images") is None


class TestPaintedImage:
    @pytest.mark.parametrize("size", [(1, 1), (32, 48), (640, 640)])
    def test_is_the_same_each_time(self, size):
        image = painted_image(size)
        assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
        np.testing.assert_array_equal(image, painted_image(size))

    def test_is_as_rich_as_photos(self):
        image = painted_image((640, 640)).astype(float)
        assert 90 < image.mean() < 140
        assert 45 < image.std() < 80
        assert np.corrcoef(image[..., 0].ravel(), image[..., 2].ravel())[0, 1] > 0.7


TAKEN = {
    "v8": (v8, YOLO),
    "yolox": (yolox, YOLOX),
    "yolox of 0 to 1": (lambda: scaled(yolox(), 255), replace(YOLO, place="top-left")),
    "v8 of 0 to 255": (lambda: scaled(v8(), 1 / 255), replace(YOLO, values=LEVELS)),
    "v8 that reverses planes": (lambda: reversing(v8()), replace(YOLO, bgr=True)),
    "yolox of 0 to 1 that reverses planes": (
        lambda: reversing(scaled(yolox(), 255)),
        replace(YOLO, place="top-left", bgr=True),
    ),
}


class TestQuantizedModel:
    """Its scales clip what is beyond the range of calibration, which hides no evidence."""

    @pytest.mark.slow
    @pytest.mark.parametrize(("case", "kind"), paired(TAKEN, [*((name, 8) for name in TARGETS), ("openvino", 4)]))
    def test_a_quantized_model_takes_its_image_as_the_float_model(self, case, kind):
        target, bits = kind
        build, expected = TAKEN[case]
        model = build()
        found = detect(model)
        options = Config(target=target, weight_bits=bits, act_bits=bits, reconstruct=False)
        rng = np.random.default_rng(0)
        pictures = rng.integers(0, 256, (4, *found.size, 3), np.uint8)
        feeds = [found.feed(found.preprocess(image, found.size)[0]) for image in pictures]
        steps = [step for step in default(options, model, samples(feeds)) if step.name != "verify"]
        quantized = quantize(model, feeds, options, passes=steps).model
        assert {node.op_type for node in quantized.graph.node} >= {"QuantizeLinear"}
        assert found.preprocess == expected
        assert detect(quantized).preprocess == expected


def test_a_picture_of_a_strange_shape_takes_little_memory():
    # With squares as small as its shorter side says, 10 GB.
    assert painted_image((50_000, 4)).shape == (50_000, 4, 3)
