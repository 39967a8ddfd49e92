"""Which input is the image, and what is known of it."""

import onnx
import pytest
from graph_texts import DECODED, model

from onnxq.errors import ConfigError, ModelError
from onnxq.yolo.detector import detect


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

    def test_no_input(self) -> None:
        with pytest.raises(ModelError, match=r"has 0 inputs \(none\): expected exactly one image"):
            detect(onnx.ModelProto())
