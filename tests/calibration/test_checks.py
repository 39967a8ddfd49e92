import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import DATA, Net, copy, feed, silu_chain, v8, with_float16, yolox
from onnx import TensorProto, helper
from PIL import Image

from onnxq import Config, quantize
from onnxq.api import open_data
from onnxq.calibration.checks import check_first_layer, check_inputs, check_number, check_prepared
from onnxq.calibration.feeds import Sample
from onnxq.calibration.input_monitor import InputMonitor
from onnxq.errors import DataError
from onnxq.facts import InputSummary, PreparedImages
from onnxq.yolo.detector import detect


def images(*arrays):
    """Return arrays (3, 8, 8) as batches of one, float32 (1, 3, 8, 8)."""
    return [np.float32(array)[None] for array in arrays]


def varied(count, high=1.0, low=0.0):
    return images(*(low + (high - low) * np.random.default_rng(k).random((3, 8, 8)) for k in range(count)))


def warnings_for(model, feeds, preprocess="auto", valid=None):
    """Return the warnings about batches, of which `valid` images count each, or all."""
    monitor = InputMonitor()
    loaders = [lambda batch=batch: Sample({"images": batch}, valid or len(batch)) for batch in feeds]
    for load in monitor.watch(loaders):
        load()
    return list(check_inputs(monitor.summary(), detect(model, preprocess=preprocess)))


class TestInputs:
    @pytest.mark.parametrize(
        ("model", "feeds"),
        [
            (v8(), varied(8)),
            (v8(), varied(8, high=0.1)),
            (yolox(), varied(8, high=255)),
            (yolox(), varied(8, high=20)),
            (silu_chain(), varied(8, high=255)),
            (silu_chain(), varied(8, low=-2.1, high=2.6)),
            (v8(), [np.concatenate(varied(8))]),
            (v8(), varied(1) * 4),
            (v8(), []),
        ],
    )
    def test_good_data_raises_none(self, model, feeds):
        assert warnings_for(model, feeds) == []

    @pytest.mark.parametrize(
        ("model", "feeds", "message"),
        [
            (v8(), varied(2, high=255), r"goes up to 25\d, and this model \(v8\) takes values from 0 to 1: scale"),
            (v8(), varied(2, high=2.5), r"goes up to 2\.\d+, .* 0 to 1: scale it by 0\.4"),
            (v8(), varied(2, high=1 / 255), r"goes up to 0\.0039\d*, .* 0 to 1: scale it by 25\d"),
            (yolox(), varied(2), r"goes up to (1|0\.9\d*), .* from 0 to 255: scale it by 25\d"),
            (v8(), varied(2, low=-2.1, high=2.6), r"goes down to -2\.\d+, .* do not subtract a mean"),
            (v8(), images(*np.full((2, 3, 8, 8), 0.5)), r"all values of the calibration data are 0\.5"),
            (silu_chain(), images(*np.zeros((2, 3, 8, 8))), r"all values of the calibration data are 0:"),
        ],
    )
    def test_values_of_another_range(self, model, feeds, message):
        [warning] = warnings_for(model, feeds)
        assert re.search(message, warning)

    @pytest.mark.parametrize(
        ("low", "high", "message"),
        [
            (-2.11, 2.64, None),
            (-1.5, 1.1, None),
            (
                0.0,
                1.0,
                r"has no value below 0, .* takes values from -2\.12 to 2\.64: subtract the mean",
            ),
            (-124.0, 151.0, r"goes down to -124, .* takes values from -2\.12 to 2\.64: scale it, or give"),
            (0.0, 255.0, r"goes up to 255, .*: scale it by 0\.0104, or give"),
        ],
    )
    def test_a_mean_that_the_model_takes(self, low, high, message):
        found = list(check_inputs(InputSummary(low, high, 20, 20, 1), detect(v8(), preprocess="imagenet")))
        assert [bool(re.search(message, warning)) for warning in found] == [True] if message else found == []

    def test_the_given_preprocessing_decides(self):
        assert warnings_for(v8(), varied(4, high=255), preprocess="yolo-255") == []
        assert len(warnings_for(v8(), varied(4), preprocess="yolo-255")) == 1

    @pytest.mark.parametrize(("count", "distinct"), [(6, 3), (50, 1)])
    def test_duplicates(self, count, distinct):
        [warning] = warnings_for(v8(), varied(distinct) * (count // distinct))
        assert warning.startswith(
            f"only {distinct} of {count} calibration samples differ: give more images, not copies"
        )

    @pytest.mark.parametrize(("count", "again"), [(1, 3), (4, 2)])
    def test_a_few_duplicates_give_no_warning(self, count, again):
        several = varied(count)
        assert warnings_for(v8(), [*several, *several[:1] * again]) == []

    def test_padding_of_a_batch_does_not_count(self):
        repeated = [np.repeat(varied(1)[0], 16, axis=0)]
        assert len(warnings_for(v8(), repeated)) == 1
        assert warnings_for(v8(), repeated, valid=1) == []


class TestSummaries:
    """What is said of a summary of the samples."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({}, None),
            ({"distinct": 16, "most_equal": 4}, None),
            ({"distinct": 15, "most_equal": 6}, "6 of 20 calibration samples are one and the same: leave copies out"),
            (
                {"blank": 1},
                "1 of 20 calibration samples show next to nothing: leave out blank images, and masks",
            ),
            (
                {"blank": 2, "blank_file": "data/mask.png"},
                "2 of 20 calibration samples show next to nothing (such as data/mask.png): leave out blank images",
            ),
            ({"blank": 20}, "all calibration samples show next to nothing"),
            ({"interleaved": 10}, None),
            ({"interleaved": 11}, "11 of 20 calibration samples have the three colours of a pixel side by side"),
            ({"grey": 19}, None),
            ({"grey": 20}, "all calibration samples are grey: if the model will see colours, give coloured images"),
        ],
    )
    def test_said(self, changes, message):
        usual = InputSummary(0.0, 1.0, samples=20, distinct=20, most_equal=1)
        found = list(check_inputs(replace(usual, **changes), detect(v8())))
        assert [warning[: len(message)] for warning in found] == [message] if message else found == []

    @pytest.mark.parametrize(("samples", "few"), [(0, False), (1, True), (9, True), (10, False)])
    def test_number(self, samples, few):
        found = list(check_number(InputSummary(0.0, 1.0, samples)))
        plural = "" if samples == 1 else "s"
        assert found == ([f"only {samples} calibration sample{plural}: give about 100 images"] if few else [])


class TestFirstLayer:
    @pytest.mark.parametrize("build", [v8, silu_chain, lambda: with_float16(v8()), lambda: v8(batch_norm=True)])
    @pytest.mark.parametrize(("factor", "much"), [(1, ""), (255, "much"), (1 / 255, "little")])
    def test_the_scale_of_the_input_shows_in_its_output(self, build, factor, much):
        model = build()
        values = feed(model)["images"].astype(np.float32) * np.float32(factor)
        found = list(check_first_layer(model, detect(model), [{"images": values}]))
        assert [warning.count(f"may be scaled too {much}; see --preprocess") for warning in found] == (
            [1] if much else []
        )
        assert all("the first layer, 'conv0', gives values that deviate by" in warning for warning in found)

    def test_arithmetic_before_the_layer_counts(self):
        net = Net()
        x = net.add("Div", "images", net.const(255))
        net.channels[x] = 3
        model = net.model(net.conv(net.block(x, 8), 4))
        values = feed(model)["images"]
        assert list(check_first_layer(model, detect(model), [{"images": values * 255}])) == []
        assert len(list(check_first_layer(model, detect(model), [{"images": values}]))) == 1

    def test_other_inputs_are_ignored(self):
        model = copy(silu_chain())
        model.graph.input.append(helper.make_tensor_value_info("sizes", TensorProto.FLOAT, [1, 2]))
        model.graph.node.insert(0, helper.make_node("Neg", ["sizes"], ["minus"], "minus"))
        values = {"images": feed(silu_chain())["images"], "sizes": np.zeros((1, 2), np.float32)}
        assert list(check_first_layer(model, detect(model), [values])) == []

    def test_a_model_without_conv_or_samples_is_not_checked(self):
        net = Net()
        model = net.model(net.add("Relu", "images"))
        assert list(check_first_layer(model, detect(model), [feed(model)])) == []
        assert list(check_first_layer(v8(), detect(v8()), [])) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["yolov5n", "yolox_nano"])
    def test_only_a_wrong_scale_warns_on_trained_models(self, name):
        path, folder = DATA / "models" / f"{name}.onnx", DATA / "coco" / "train2017"
        if not (path.is_file() and folder.is_dir()):
            pytest.skip(f"{path} or {folder} is absent")
        model = onnx.load(path)
        warned = set()
        for preprocess in ("auto", "yolo", "yolo-255"):
            detector = detect(model, preprocess=preprocess)
            samples = open_data(str(folder), model, detector, Config(count=2))
            feeds = [loader().feed for loader in samples.loaders]
            if list(check_first_layer(model, detector, feeds)):
                warned.add(preprocess)
        assert warned == {"yolo-255" if name == "yolov5n" else "yolo"}


class TestQuantize:
    def test_good_data_gives_no_warning(self, caplog):
        assert quantize(v8(), [feed(v8(), seed) for seed in range(10)]).warnings == ()
        assert quantize(v8(), None, Config(count=6)).warnings == ()
        assert caplog.text == ""

    @pytest.mark.slow
    def test_warnings_are_returned_and_logged(self, caplog):
        loud = {"images": feed(v8())["images"] * 255}
        warnings = quantize(v8(), [loud] * 6, Config(method="minmax"), sensitivity=True).warnings
        beginnings = ["only 6 calibration samples", "the calibration data goes up to", "only 1 of 6", "the first layer"]
        assert [warning[: len(words)] for warning, words in zip(warnings, beginnings, strict=True)] == beginnings
        assert all(warning in caplog.text for warning in warnings)

    def test_a_wrong_preprocess_gives_a_warning(self, tmp_path):
        for k in range(10):
            noise = np.random.default_rng(k).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / f"{k}.png")
        quantized = quantize(v8(), str(tmp_path), Config(preprocess="yolo-255"))
        assert ["the first layer" in warning for warning in quantized.warnings] == [True]


class TestPrepared:
    @pytest.mark.parametrize("said", ["auto", "yolo", "rgb,0-1,centred", "rgb"])
    def test_the_same_said_in_other_words(self, said):
        check_prepared(PreparedImages("yolo", (32, 32)), detect(v8(), preprocess=said))

    @pytest.mark.parametrize(
        ("said", "now"),
        [
            ("bgr", "BGR, 0-1, letterbox centred"),
            ("0-255", "RGB, 0-255, letterbox centred"),
            ("imagenet", "RGB, 0-1 less ImageNet's mean, by its deviation, letterbox centred"),
            ("stretch", "RGB, 0-1, stretched"),
        ],
    )
    def test_another_preprocessing(self, said, now):
        cause = f"images prepared as RGB, 0-1, letterbox centred, and now they are prepared as {now}; calibrate again"
        with pytest.raises(DataError, match=f"{cause} with --calib, or give --preprocess yolo if it is of this model"):
            check_prepared(PreparedImages("yolo", (32, 32)), detect(v8(), preprocess=said))

    def test_another_size(self):
        cause = "images of 32x64 px, and now they are of 32x32 px; calibrate again"
        with pytest.raises(DataError, match=f"{cause} with --calib, or give --image-size 32x64 if it is of this model"):
            check_prepared(PreparedImages("yolo", (32, 64)), detect(v8()))

    def test_values_of_levels_are_those_of_the_model(self):
        # uint8 holds levels whatever is said of them.
        detector = detect(v8())
        levels = replace(detector, preprocess=replace(detector.preprocess, levels=True))
        check_prepared(PreparedImages("yolo-255", (32, 32)), levels)

    def test_the_order_of_planes_is_none_in_grey(self):
        detector = detect(v8())
        check_prepared(
            PreparedImages("bgr,0-1,centred", (32, 32)),
            replace(detector, preprocess=replace(detector.preprocess, planes=1)),
        )
