import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxq.errors import ConfigError, ModelError
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.preprocess import LEVELS, STRETCH, YOLO, YOLO_255, YOLO_CROP, YOLOX, Preprocess

DATA = Path(os.environ.get("ONNXQ_DATA", Path(__file__).parents[3] / "shared"))

# At 64 px strides 8, 16 and 32 make 64 + 16 + 4 = 84 cells.
RAW = """
    box = Conv (images, w)
    logits = Conv (images, w)
    scores = Sigmoid (logits)
    both = Concat <axis = 1> (box, scores)
    flat = Reshape (both, shape)
    out = Transpose <perm = [0, 2, 1]> (flat)
"""
DECODED = """
    logits = Conv (images, w)
    flat = Reshape (logits, shape)
    scores = Sigmoid (flat)
    out = Mul (scores, stride)
"""
DECODED_WITH_EXP = """
    both = Conv (images, w)
    centre, size, scores = Split (both)
    shifted = Add (centre, grid)
    sides = Exp (size)
    out = Concat <axis = 1> (shifted, sides, scores)
"""


def model(
    nodes: str = DECODED,
    output: str = "float[1,84,8] out",
    image: str = "float[1,3,64,64] images",
    weights: str = "float[8,3,8,8] w",
    **metadata: str,
) -> onnx.ModelProto:
    """A graph as text; its weights are inputs by ONNX's old habit, and have no data."""
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]> g ({image}, {weights}) => ({output}) {{ {nodes} }}'
    )
    for value in list(made.graph.input)[image.count("]") or 1 :]:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        made.graph.initializer.add(name=value.name, data_type=value.type.tensor_type.elem_type, dims=dims)
    for key, text in metadata.items():
        made.metadata_props.add(key=key, value=text)
    return made


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


class TestInput:
    def test_fixed_size(self) -> None:
        found = detect(model(image="float[1,3,64,96] picture", nodes=DECODED.replace("images", "picture")))
        assert (found.input_name, found.size) == ("picture", (64, 96))

    @pytest.mark.parametrize(("imgsz", "size"), [("[64, 96]", (64, 96)), ("(64, 96)", (64, 96)), ("64", (64, 64))])
    def test_size_from_metadata(self, imgsz: str, size: tuple[int, int]) -> None:
        assert detect(model(image="float[n,3,h,w] images", imgsz=imgsz)).size == size

    @pytest.mark.parametrize(
        ("shape", "channels_last"),
        [("1,32,64,3", True), ("n,h,w,3", True), ("1,3,32,64", False), ("n,3,h,w", False), ("1,3,32,3", False)],
    )
    def test_channels_first_or_last(self, shape: str, channels_last: bool) -> None:
        found = detect(model(image=f"float[{shape}] images", imgsz="[32, 64]"))
        assert found.preprocess.channels_last == channels_last
        assert found.size == ((32, 3) if shape == "1,3,32,3" else (32, 64))

    @pytest.mark.parametrize(
        ("shape", "planes", "channels_last"),
        [
            ("1,1,32,64", 1, False),
            ("n,1,h,w", 1, False),
            ("1,32,64,1", 1, True),
            ("1,4,32,64", 4, False),
            ("1,32,64,6", 6, True),
            ("n,c,h,w", 3, False),
            ("1,2,32,3", 3, True),
        ],
    )
    def test_number_of_planes(self, shape: str, planes: int, channels_last: bool) -> None:
        found = detect(model(image=f"float[{shape}] images", imgsz="[32, 64]")).preprocess
        assert (found.planes, found.channels_last) == (planes, channels_last)

    def test_three_planes_come_before_other_numbers(self) -> None:
        two = "float[1,1,64,64] mask, float[1,3,64,64] images, float[1,4,64,64] more"
        assert detect(model(image=two)).input_name == "images"

    def test_a_graph_that_decodes_files(self) -> None:
        inside = "pixels = DecodeImage (bytes)  floats = Cast <to = 1> (pixels)  out = Conv (floats, w)"
        with pytest.raises(ModelError, match=r"not an image: .*DecodeImage decodes image files .* behind pixels that"):
            detect(model(inside, image="uint8[n] bytes"))

    def test_fixed_axes_win_over_metadata(self) -> None:
        assert detect(model(image="float[n,3,32,w] images", imgsz="[64, 96]")).size == (32, 96)

    def test_given_size(self) -> None:
        assert detect(model(image="float[n,3,h,w] images", imgsz="[64, 96]"), image_size=(32, 32)).size == (32, 32)

    @pytest.mark.parametrize("imgsz", [None, "wide", "[640]", "[0, 640]", "-1", "[" * 500])
    def test_size_unknown(self, imgsz: str | None) -> None:
        metadata = {} if imgsz is None else {"imgsz": imgsz}
        with pytest.raises(ConfigError, match=r"height and width are dynamic.*: give --image-size 640"):
            detect(model(image="float[n,3,h,w] images", **metadata))

    @pytest.mark.parametrize(
        ("image", "size", "message"),
        [
            ("float[1,3,64,64] images", (64, 96), "image size 64x96 was given, but the model's input is 64x64"),
            ("float[1,3,64,w] images", (96, 96), r"image size 96x96 was given, but the model's input is 64x\?"),
            ("float[1,3,h,w] images", (64, 0), "image size 64x0 is not positive"),
            ("float[1,3,h,w] images", (64, 100), "image size 64x100 is not a multiple of the model's stride 32"),
        ],
    )
    def test_given_size_does_not_fit(self, image: str, size: tuple[int, int], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            detect(model(image=image, stride="32"), image_size=size)

    @pytest.mark.parametrize(
        ("image", "described"),
        [
            ("float[1,64,64,40] images", r"images float32 \(1, 64, 64, 40\)"),
            ("float[1,32,16,16] images", r"images float32 \(1, 32, 16, 16\)"),
            ("float[1,8,4,4] images", r"images float32 \(1, 8, 4, 4\)"),
            ("int8[1,3,64,64] images", r"images int8 \(1, 3, 64, 64\)"),
            ("float16[n,17,h,w] images", r"images float16 \(n, 17, h, w\)"),
            ("double[1,3,64,64] images", r"images double \(1, 3, 64, 64\)"),
            ("float[3,64,64] images", r"images float32 \(3, 64, 64\)"),
        ],
    )
    def test_no_image(self, image: str, described: str) -> None:
        wanted = r"float32, float16 or uint8, \(batch, 3, height, width\) or \(batch, height, width, 3\)"
        message = rf"input {described} is not an image: expected {wanted}"
        with pytest.raises(ModelError, match=message):
            detect(model(image=image))

    def test_input_of_unknown_rank(self) -> None:
        shapeless = model()
        shapeless.graph.input[0].type.tensor_type.ClearField("shape")
        with pytest.raises(ModelError, match="is not an image"):
            detect(shapeless)

    def test_two_inputs(self) -> None:
        with pytest.raises(
            ModelError, match=r"has 2 inputs \(images float32 .*, mask float32 .*\): expected exactly one"
        ):
            detect(model(image="float[1,3,64,64] images, float[1,3,64,64] mask"))
        with pytest.raises(
            ModelError, match=r"has 2 inputs \(x float32 \(1, 3\), y int64 \(1\)\): expected exactly one"
        ):
            detect(model(image="float[1,3] x, int64[1] y"))

    def test_an_image_among_other_inputs(self) -> None:
        found = detect(model(image="float[1] threshold, float[1,3,64,64] images, float[1,2] sizes"))
        assert found.input_name == "images"
        assert found.companions == {}

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

    def test_no_input(self) -> None:
        with pytest.raises(ModelError, match=r"has 0 inputs \(none\): expected exactly one image"):
            detect(onnx.ModelProto())

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
