import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_texts import DECODED, DECODED_WITH_EXP, RAW, model

from onnxq.errors import ConfigError
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.preprocess import YOLO, YOLO_CROP, YOLOX

DATA = Path(os.environ.get("ONNXQ_DATA", Path(__file__).parents[3] / "shared"))


class TestFamily:
    @pytest.mark.parametrize(
        ("nodes", "shape", "family", "why"),
        [
            (DECODED, "1,252,85", "v5", "output (1, 252, 85) has three boxes per cell"),
            (DECODED, "1,255,85", "v5", "output (1, 255, 85) has three boxes per cell"),  # a fourth scale, stride 64
            (DECODED, "1,252,6", "v5", "output (1, 252, 6) has three boxes per cell"),  # of one class
            (DECODED, "1,84,8", "v5", "output (1, 84, 8) has one box per cell and objectness, decoded without Exp"),
            (DECODED, "1,8,84", "v8", "output (1, 8, 84) has one box per cell and no objectness"),
            (DECODED, "4,8,84", "v8", "output (4, 8, 84) has one box per cell and no objectness"),
            (RAW, "1,84,8", "yolox-raw", "output (1, 84, 8) has one box per cell and no decode"),
            (RAW, "1,84,6", "yolox-raw", "output (1, 84, 6) has one box per cell and no decode"),
            (DECODED_WITH_EXP, "1,84,8", "yolox", "output (1, 84, 8) has one box per cell, decoded with Exp"),
            (DECODED, "1,300,6", "end2end", "output (1, 300, 6) has finished boxes with score and class"),
            (DECODED, "1,1,6", "end2end", "output (1, 1, 6) has finished boxes with score and class"),
        ],
    )
    def test_told_by_shape_and_tail(self, nodes: str, shape: str, family: str, why: str) -> None:
        found = detect(model(nodes, f"float[{shape}] out"))
        assert (found.family, found.outputs.outputs, found.why) == (family, ("out",), why)
        assert found.preprocess == (YOLOX if family.startswith("yolox") else YOLO)

    @pytest.mark.parametrize(
        ("shape", "classes", "task", "family"),
        [
            ("1,84,8", 4, "detect", "v8"),  # transposed by whoever exported it
            ("1,84,8", 3, "detect", "v5"),
            ("1,40,84", 4, "segment", "v8"),
            ("1,252,41", 4, "segment", "v5"),
            ("1,300,38", 4, "segment", "end2end"),
            ("1,8,777", 4, "detect", "v8"),  # grids of other strides
            ("1,777,8", 4, "detect", "unknown"),  # a transformer's
            ("1,8,84", 80, "detect", "unknown"),
            ("1,252,8", 4, "detect", "unknown"),
        ],
    )
    def test_told_by_metadata(self, shape: str, classes: int, task: str, family: str) -> None:
        names = str({index: f"class {index}" for index in range(classes)})
        found = detect(model(DECODED, f"float[{shape}] out", names=names, task=task))
        assert found.family == family

    @pytest.mark.parametrize(
        ("output", "why"),
        [
            ("float[1000] out", "no output is a table of boxes"),
            ("float[1,1000] out, float[1,512] features", "no output is a table of boxes"),
            ("float[2,1000] out", "no output is a table of boxes"),
            ("float[1,32,16,16] out", "no output is a table of boxes"),
            ("float[1,100,9] out", "outputs (1, 100, 9) fit no family"),
        ],
    )
    def test_no_detector(self, output: str, why: str) -> None:
        found = detect(model(DECODED, output))
        assert (found.family, found.outputs.outputs, found.why, found.preprocess) == ("unknown", (), why, YOLO)

    def test_three_boxes_per_cell_without_decode_are_unknown(self) -> None:
        assert detect(model(RAW, "float[1,252,85] out")).family == "unknown"

    def test_the_output_with_boxes_is_chosen(self) -> None:
        nodes = "protos = Conv (images, w)  logits = Conv (images, w)  out = Sigmoid (logits)"
        found = detect(model(nodes, "float[1,8,8,8] protos, float[1,9,84] out"))
        assert (found.family, found.outputs.outputs) == ("v8", ("out",))

    def test_quantized_tail_is_still_raw(self) -> None:
        nodes = RAW.replace("box =", "wide =") + "q = QuantizeLinear (wide, s)  box = DequantizeLinear (q, s)"
        assert detect(model(nodes, "float[1,84,8] out")).family == "yolox-raw"

    def test_a_matmul_with_its_bias_is_a_layer(self) -> None:
        nodes = RAW.replace("box =", "wide =") + "product = MatMul (wide, w)  box = Add (product, s)"
        assert detect(model(nodes, "float[1,84,8] out")).family == "yolox-raw"
        other = RAW.replace("box =", "wide =") + "box = Add (wide, s)"
        assert detect(model(other, "float[1,84,8] out")).family != "yolox-raw"

    def test_dynamic_shape_is_inferred(self) -> None:
        nodes = """
            three = Conv <strides = [8, 8]> (images, w)
            dims = Constant <value_ints = [1, 9, -1]> ()
            flat = Reshape (three, dims)
            logits = Concat <axis = 2> (flat, rest)
            out = Sigmoid (logits)
        """
        dynamic = model(
            nodes, "float[n,c,boxes] out", "float[n,3,height,width] images", "float[9,3,8,8] w, float[1,9,20] rest"
        )
        assert detect(dynamic, image_size=(64, 64)).why == "output (1, 9, 84) has one box per cell and no objectness"

    def test_shape_that_cannot_be_inferred_is_unknown_until_a_run_tells(self) -> None:
        hidden = model("out = Secret (images)", "float[n,c,boxes] out")
        found = detect(hidden)
        assert (found.family, found.why) == ("unknown", "outputs (?, ?, ?) fit no family")
        assert detect(hidden, output_shapes={"out": (1, 9, 84)}).family == "v8"

    def test_shapes_are_unknown_where_inference_fails(self) -> None:
        broken = model(DECODED, "float[n,c,boxes] out")
        broken.opset_import[0].domain = "elsewhere"
        assert detect(broken).family == "unknown"

    @pytest.mark.parametrize("family", ["v5", "v8", "yolox", "yolox-raw", "end2end"])
    def test_given(self, family: str) -> None:
        found = detect(model(DECODED, "float[1,10] other, float[1,77,99] out"), family=family)
        assert (found.family, found.outputs.outputs, found.why) == (family, ("out",), "the family was given")
        assert found.preprocess == (YOLOX if family.startswith("yolox") else YOLO)

    def test_given_without_any_table(self) -> None:
        assert detect(model(DECODED, "float[1,10] out"), family="v8").outputs.outputs == ("out",)


class TestOtherInputs:
    """What is given beside the image."""

    @pytest.mark.parametrize("batch", ["1", "n"])
    def test_what_paddle_detection_reads_beside_a_picture(self, batch: str) -> None:
        pairs = f"float[{batch},2] im_shape, float[{batch},2] scale_factor"
        found = detect(model(image=f"float[{batch},3,32,64] images, {pairs}"))
        assert found.companions == {"im_shape": (32.0, 64.0), "scale_factor": (1.0, 1.0)}
        feed = found.feed(np.zeros((2, 3, 32, 64), np.float32))
        assert {name: array.shape for name, array in feed.items()} == {
            "images": (2, 3, 32, 64), "im_shape": (2, 2), "scale_factor": (2, 2)
        }  # fmt: skip
        assert feed["im_shape"].tolist() == [[32, 64]] * 2

    def test_inputs_of_those_names_and_another_shape_are_others(self) -> None:
        found = detect(model(image="float[1,3,64,64] images, float[1,3] scale_factor, float[2] im_shape"))
        assert found.companions == {}

    def test_unknown_choices(self) -> None:
        with pytest.raises(ConfigError, match=r"family: 'v9' is unknown; give one of auto, .*v5, v8"):
            detect(model(), family="v9")
        with pytest.raises(ConfigError, match="preprocess: 'caffe' is unknown; give one of auto, yolo"):
            detect(model(), preprocess="caffe")


class TestNames:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("{0: 'person', 1: 'dog'}", ("person", "dog")),
            ("{1: 'dog', 0: 'person'}", ("person", "dog")),
            ("['person', 'dog']", ("person", "dog")),
            ("{3: 'person'}", ()),
            ("{0: 'person'", ()),
            ("open('/etc/passwd')", ()),
            ("", ()),
        ],
    )
    def test_read_from_metadata(self, text: str, names: tuple[str, ...]) -> None:
        assert detect(model(names=text)).names == names


REAL = {
    "yolov5n.onnx": ("v5", "detect", (640, 640), YOLO),
    "yolox_nano.onnx": ("yolox-raw", "detect", (416, 416), YOLOX),
    "skeletons/yolov5s.onnx": ("v5", "detect", (640, 640), YOLO),
    "skeletons/yolov5nu.onnx": ("v8", "detect", (640, 640), YOLO),
    "skeletons/yolov6n.onnx": ("v8", "detect", (640, 640), YOLO),
    "skeletons/yolov7-tiny.onnx": ("v5", "detect", (640, 640), YOLO),
    "skeletons/yolov8n.onnx": ("v8", "detect", (640, 640), YOLO),
    "skeletons/yolov8n-dynamic.onnx": ("v8", "detect", (640, 640), YOLO),
    "skeletons/yolov8n-nms.onnx": ("end2end", "detect", (640, 640), YOLO),
    "skeletons/yolov8n-seg.onnx": ("v8", "segment", (640, 640), YOLO),
    "skeletons/yolov8n-pose.onnx": ("v8", "pose", (640, 640), YOLO),
    "skeletons/yolov8n-cls.onnx": ("classes", "classify", (224, 224), YOLO_CROP),
    "skeletons/yolov10n.onnx": ("v8", "detect", (640, 640), YOLO),
    "skeletons/yolo11n-opset12.onnx": ("v8", "detect", (640, 640), YOLO),
    "skeletons/yolo26n.onnx": ("v8", "detect", (640, 640), YOLO),
}


@pytest.mark.parametrize("name", REAL)
def test_real_exports(name: str) -> None:
    path = DATA / "models" / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: set ONNXQ_DATA to the folder with models/ and coco/")
    found: Detector = detect(onnx.load(path))
    assert (found.family, found.outputs.task, found.size, found.preprocess) == REAL[name]
