import numpy as np
import pytest
from graphs import csp, pan, run, v8, yolox
from onnx import parser
from texts import HEAD

from onnxq.ir import ending_at
from onnxq.runtime.joined import Parts, joined_outputs, with_parts
from onnxq.runtime.same_function import noise_feed

V5 = """g (float[1,3,4,4,2] xy0, float[1,3,4,4,2] wh0, float[1,3,4,4,6] s0, float[1,3,2,2,2] xy1, float[1,3,2,2,2] wh1,
    float[1,3,2,2,6] s1) => (float[1,60,10] y) <int64[3] rows = {1, -1, 10}> {
    l0 = Concat<axis = -1>(xy0, wh0, s0)
    l1 = Concat<axis = -1>(xy1, wh1, s1)
    r0 = Reshape(l0, rows)
    r1 = Reshape(l1, rows)
    y = Concat<axis = 1>(r0, r1)
}"""
YOLOX = """g (float[1,4,4,4] b0, float[1,1,4,4] o0, float[1,3,4,4] c0, float[1,4,2,2] b1, float[1,1,2,2] o1,
    float[1,3,2,2] c1) => (float[1,20,8] y) <int64[3] rows = {0, 8, -1}> {
    l0 = Concat<axis = 1>(b0, o0, c0)
    l1 = Concat<axis = 1>(b1, o1, c1)
    r0 = Reshape(l0, rows)
    r1 = Reshape(l1, rows)
    joined = Concat<axis = 2>(r0, r1)
    y = Transpose<perm = [0, 2, 1]>(joined)
}"""
SEGMENTS = """g (float[1,4,n] box, float[1,3,n] score, float[1,5,n] mask) => (float[1,12,n] z) {
    x = Concat<axis = 1>(box, score)
    y = Concat<axis = 1>(x, mask)
    z = Identity(y)
}"""
LEVELS = "g (float[1,30,7] a, float[1,20,7] b) => (float[1,50,7] y) { y = Concat<axis = 1>(a, b) }"
UNLIKE = """g (float[1,9,2] a, float[1,9,5] b, float[1,9,3] c, float[1,9,4] d) => (float[1,18,7] y) {
    ab = Concat<axis = 2>(a, b)
    cd = Concat<axis = 2>(c, d)
    y = Concat<axis = 1>(ab, cd)
}"""
SCALED = "g (float[1,9,2] a, float[1,9,5] b) => (float[1,9,7] y) { x = Concat<axis = 2>(a, b) y = Neg(x) }"
MIXED = """g (float[1,9,2] a, float[1,9,5] b) => (float[1,7,9] y) <int64[3] shape = {1, 7, 9}> {
    x = Concat<axis = 2>(a, b)
    y = Reshape(x, shape)
}"""
MANY = f"""g (float[1,90,1] a) => (float[1,90,17] y) {{ y = Concat<axis = 2>({", ".join(17 * "a")}) }}"""


def parsed(text):
    return parser.parse_model(f"{HEAD} {text}")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (V5, Parts(2, (2, 2, 6))),
        (YOLOX, Parts(2, (4, 1, 3))),
        (SEGMENTS, Parts(1, (4, 3, 5))),
    ],
    ids=["v5", "yolox", "segments, of any number"],
)
def test_an_output_is_cut_where_channels_are_joined(text, parts):
    assert list(joined_outputs(parsed(text)).values()) == [parts]


@pytest.mark.parametrize(
    "text", [LEVELS, UNLIKE, SCALED, MIXED, MANY], ids=["levels", "unlike levels", "computed", "mixed", "many"]
)
def test_others_are_not(text):
    assert joined_outputs(parsed(text)) == {}


def test_of_networks():
    assert joined_outputs(v8()) == {"output": Parts(1, (4, 3))}
    assert joined_outputs(csp()) == joined_outputs(pan()) == {}
    assert joined_outputs(ending_at(yolox(), ["output"])) == joined_outputs(yolox())


def test_parts_are_views_that_name_their_slices():
    model = parsed(YOLOX)
    joined = joined_outputs(model)
    outputs = run(model, noise_feed(model))
    found = with_parts(outputs, joined)
    assert list(found) == ["y", "y[:, :, 0:4]", "y[:, :, 4:5]", "y[:, :, 5:8]"]
    assert np.array_equal(found["y[:, :, 5:8]"], outputs["y"][:, :, 5:8])
    assert found["y[:, :, 0:4]"].base is not None


@pytest.mark.parametrize("shape", [(1, 20, 9), (20, 8)])
def test_an_output_of_another_shape_has_no_parts(shape):
    outputs = {"y": np.zeros(shape, np.float32)}
    assert with_parts(outputs, {"y": Parts(2, (4, 1, 3))}).keys() == {"y"}
