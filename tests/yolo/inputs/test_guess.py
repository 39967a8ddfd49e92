"""Which preprocessing a model is taken to have."""

from dataclasses import replace

import onnx
import pytest
from graph_texts import DECODED, model

from onnxq.yolo.detector import detect
from onnxq.yolo.preprocess import LEVELS, STRETCH, YOLO, YOLO_255, YOLO_CROP, YOLOX, Preprocess


def scaling(operation: str, constant: float) -> onnx.ModelProto:
    """A graph that first flips the channels and then does one arithmetic operation with a constant."""
    nodes = f"""
        k = Constant <value = float {{{constant}}}> ()
        flipped = Slice (images, starts, ends, axes, steps)
        scaled = {operation} (flipped, k)
        logits = Conv (scaled, w)
        out = Sigmoid (logits)
    """
    return model(nodes, "float[1,9,84] out")


class TestPreprocess:
    @pytest.mark.parametrize(
        ("operation", "constant", "levels"),
        [
            ("Div", 255.0, True),
            ("Mul", 0.003921569, True),
            ("Sub", 127.5, True),
            ("Add", -128.0, True),
            ("Sub", 0.485, False),
            ("Div", 0.229, False),
            ("Mul", 2.0, False),
        ],
    )
    def test_graph_that_scales_levels_itself(self, operation: str, constant: float, levels: bool) -> None:
        found = detect(scaling(operation, constant))
        assert found.preprocess == (YOLO_255 if levels else YOLO)
        assert found.why.endswith(", and the graph scales 0-255 itself") == levels

    def test_arithmetic_behind_the_first_layer_does_not_count(self) -> None:
        nodes = "k = Constant <value = float {255.0}> ()  x = Conv (images, w)  out = Div (x, k)"
        assert detect(model(nodes, "float[1,9,84] out")).preprocess == YOLO

    def test_constants_in_other_files_are_let_be(self) -> None:
        nodes = "x = Div (images, k)  out = Conv (x, w)"
        away = model(nodes, "float[1,9,84] out", weights="float[1] k, float[8,3,8,8] w")
        away.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
        assert detect(away).preprocess == YOLO

    def test_given(self) -> None:
        assert detect(model(DECODED, "float[1,9,84] out"), preprocess="yolox").preprocess == YOLOX

    @pytest.mark.parametrize(
        ("said", "description"),
        [
            ("stretch", "RGB, 0-1, stretched"),
            ("rgb,0-1,top-left", "RGB, 0-1, letterbox top-left"),
            ("imagenet", "RGB, 0-1 less ImageNet's mean, by its deviation, letterbox centred"),
        ],
    )
    def test_words(self, said: str, description: str) -> None:
        assert detect(model(DECODED, "float[1,9,84] out"), preprocess=said).preprocess.describe() == description

    def test_paddle_detection_trains_on_stretched_images(self) -> None:
        pairs = "float[1,2] im_shape, float[1,2] scale_factor"
        assert detect(model(image=f"float[1,3,32,64] images, {pairs}")).preprocess == STRETCH

    @pytest.mark.parametrize(
        ("description", "expected"), [("Ultralytics rtdetr-l model", STRETCH), ("Ultralytics YOLO11n model", YOLO)]
    )
    def test_rt_detr_of_ultralytics_is_trained_on_stretched_images(
        self, description: str, expected: Preprocess
    ) -> None:
        assert detect(model(DECODED, "float[1,300,84] out", description=description)).preprocess == expected

    def test_classifier_that_scales_levels_itself(self) -> None:
        nodes = "k = Constant <value = float {255.0}> ()  x = Div (images, k)  out = Conv (x, w)"
        found = detect(model(nodes, "float[1,4] out", task="classify", names=str(["a", "b", "c", "d"])))
        assert found.preprocess == replace(YOLO_CROP, values=LEVELS)

    def test_uint8_takes_levels_whatever_is_said(self) -> None:
        takes_levels = model(image="uint8[1,3,64,64] images")
        for given in ("auto", "yolo", "yolo-255"):
            found = detect(takes_levels, preprocess=given).preprocess
            assert found.describe() == "RGB, 0-255 in uint8, letterbox centred"
        assert detect(takes_levels, preprocess="yolox").preprocess == replace(YOLOX, levels=True)
