"""What the operators in front of the first layer do to the planes, in the spellings of several exporters."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import Net, v8, yolox
from onnx import TensorProto, helper, numpy_helper

from onnxq.yolo.detector import detect
from onnxq.yolo.inputs.front import InputFront, find_front
from onnxq.yolo.preprocess import LEVELS, YOLO, YOLOX


def fronted(model, nodes, constants=None, kind=TensorProto.FLOAT, shape=None):
    """Return a model with nodes in front that make `images` of the new input `frame`; constants by name."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    inside = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*nodes, *inside])
    for name, values in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    model.graph.input.append(helper.make_tensor_value_info("frame", kind, shape or [1, 3, 32, 32]))
    return model


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def i64(*values):
    return np.array(values, np.int64)


def split(a, b, c):
    return [node("Split", "frame", "p q r", axis=1), node("Concat", f"{a} {b} {c}", "images", axis=1)]


def colours(order, gain=1.0):
    """A Conv of 1 x 1 that puts the planes into an order."""
    return np.float32(gain) * np.eye(3, dtype=np.float32)[list(order), :, None, None]


REVERSING = {
    "gather": ([node("Gather", "frame order", "images", axis=1)], {"order": i64(2, 1, 0)}),
    "gather from behind": ([node("Gather", "frame order", "images", axis=-3)], {"order": i64(-1, -2, -3)}),
    "gather of a constant node": (
        [
            helper.make_node("Constant", [], ["order"], value=numpy_helper.from_array(i64(2, 1, 0))),
            node("Gather", "frame order", "images", axis=1),
        ],
        {},
    ),
    "slice": (
        [node("Slice", "frame a b c d", "images")],
        {"a": i64(-1), "b": i64(-(2**31)), "c": i64(1), "d": i64(-1)},
    ),
    "slice to the start": (
        [node("Slice", "frame a b c d", "images")],
        {"a": i64(2), "b": i64(-4), "c": i64(-3), "d": i64(-1)},
    ),
    "split and concat": (split("r", "q", "p"), {}),
    "three slices": (
        [
            *[node("Slice", f"frame s{k} s{k + 1} axis", f"p{k}") for k in range(3)],
            node("Concat", "p2 p1 p0", "images", axis=1),
        ],
        {**{f"s{k}": i64(k) for k in range(4)}, "axis": i64(1)},
    ),
    "three scalars": (
        [
            *[node("Gather", f"frame k{k}", f"g{k}", axis=1) for k in range(3)],
            *[node("Unsqueeze", f"g{k} axis", f"p{k}") for k in range(3)],
            node("Concat", "p2 p1 p0", "images", axis=1),
        ],
        {**{f"k{k}": np.array(k, np.int64) for k in range(3)}, "axis": i64(1)},
    ),
    "conv": ([node("Conv", "frame turn", "images")], {"turn": colours((2, 1, 0))}),
    "conv that scales": ([node("Conv", "frame turn", "images")], {"turn": colours((2, 1, 0), 0.5)}),
}

KEEPING = {
    "nothing": ([node("Identity", "frame", "images")], {}),
    "split and concat": (split("p", "q", "r"), {}),
    "gather": ([node("Gather", "frame order", "images", axis=1)], {"order": i64(0, 1, 2)}),
    "reversed twice": (
        [node("Gather", "frame order", "x", axis=1), node("Gather", "x order", "images", axis=1)],
        {"order": i64(2, 1, 0)},
    ),
    "another order": (split("q", "p", "r"), {}),
    "grey": ([node("Conv", "frame turn", "images")], {"turn": np.full((3, 3, 1, 1), 1 / 3, np.float32)}),
    "rows, not planes": (
        [node("Slice", "frame a b c d", "images")],
        {"a": i64(-1), "b": i64(-(2**31)), "c": i64(2), "d": i64(-1)},
    ),
}


class TestOrder:
    @pytest.mark.parametrize("spelling", REVERSING)
    @pytest.mark.parametrize("build", [v8, yolox])
    def test_planes_that_the_graph_reverses_are_given_in_reverse(self, build, spelling):
        found = detect(fronted(build(), *REVERSING[spelling]))
        guess = YOLO if build is v8 else YOLOX
        assert found.preprocess == replace(guess, bgr=not guess.bgr)
        assert found.why.endswith(", and the graph reverses the order of the planes")

    @pytest.mark.parametrize("spelling", KEEPING)
    def test_others_are_not(self, spelling):
        found = detect(fronted(v8(), *KEEPING[spelling]))
        assert found.preprocess == YOLO
        assert "reverses" not in found.why

    @pytest.mark.parametrize("how", ["gather", "matmul", "slice"])
    def test_channels_last(self, how):
        turn = {
            "gather": node("Gather", "frame order", "turned", axis=3),
            "matmul": node("MatMul", "frame matrix", "turned"),
            "slice": node("Slice", "frame a b c d", "turned"),
        }[how]
        constants = {
            "order": i64(2, 1, 0), "matrix": np.eye(3, dtype=np.float32)[::-1].copy(),
            "a": i64(-1), "b": i64(-9), "c": i64(3), "d": i64(-1),
        }  # fmt: skip
        used = {name: constants[name] for name in turn.input[1:]}
        model = fronted(
            v8(), [turn, node("Transpose", "turned", "images", perm=[0, 3, 1, 2])], used, shape=[1, 32, 32, 3]
        )
        assert detect(model).preprocess == replace(YOLO, bgr=True, channels_last=True)

    @pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.FLOAT16, TensorProto.FLOAT])
    @pytest.mark.parametrize("reverses", [False, True])
    def test_types(self, kind, reverses):
        nodes = [
            node("Cast", "frame", "floats", to=TensorProto.FLOAT),
            node("Div", "floats white", "unit"),
            node("Sub", "unit mean", "centred"),
            node("Gather", "centred order", "images", axis=1),
        ]
        constants = {
            "white": np.float32(255), "mean": np.float32([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1),
            "order": i64(2, 1, 0) if reverses else i64(0, 1, 2),
        }  # fmt: skip
        found = detect(fronted(v8(), nodes, constants, kind)).preprocess
        assert (found.bgr, found.values, found.levels) == (reverses, LEVELS, kind == TensorProto.UINT8)

    def test_quantize_linear_in_front_clips(self):
        nodes = [
            node("QuantizeLinear", "frame scale zero", "q"),
            node("DequantizeLinear", "q scale zero", "dq"),
            node("Gather", "dq order", "images", axis=1),
        ]
        constants = {"scale": np.float32(1 / 255), "zero": np.uint8(0), "order": i64(2, 1, 0)}
        assert detect(fronted(v8(), nodes, constants)).preprocess == replace(YOLO, bgr=True)

    def test_batch_of_the_model(self):
        model = fronted(v8(), split("r", "q", "p"), shape=[4, 3, 32, 32])
        assert detect(model).preprocess.bgr

    def test_a_first_layer_of_slices(self):
        net = Net()
        parts = [net.slice(net.slice("images", 2, row, 2), 3, column, 2) for column in (0, 1) for row in (0, 1)]
        joined = net.add("Concat", *parts, axis=1)
        net.channels[joined] = 12
        model = net.model(net.conv(net.block(joined, 8), 4))
        assert detect(model).preprocess == YOLO
        assert detect(fronted(model, split("r", "q", "p"))).preprocess == replace(YOLO, bgr=True)

    def test_what_is_said_counts(self):
        model = fronted(v8(), split("r", "q", "p"))
        assert detect(model, preprocess="yolo").preprocess == YOLO
        assert detect(model, preprocess="stretch").preprocess == replace(YOLO, bgr=True, place="stretch")


class TestScale:
    @pytest.mark.parametrize(
        ("op", "values", "levels"),
        [
            ("Mul", 1 / 255, True),
            ("Mul", np.full((1, 3, 1, 1), 0.0171, np.float32), True),
            ("Div", np.full((1, 3, 32, 32), 58.0, np.float32), True),
            ("Div", np.full((1, 3, 32, 32), 0.225, np.float32), False),
            ("Mul", 2.0, False),
        ],
    )
    def test_gain_of_levels(self, op, values, levels):
        model = fronted(v8(), [node(op, "frame by", "images")], {"by": np.asarray(values, np.float32)})
        assert find_front(model, "frame", (1, 3, 32, 32), False).scales_levels == levels
        assert detect(model).preprocess == (replace(YOLO, values=LEVELS) if levels else YOLO)


class TestUnknown:
    def test_without_operators_nothing_is_run(self, monkeypatch):
        monkeypatch.setattr("onnxq.yolo.inputs.front.open_session", None)
        assert find_front(v8(), "images", (1, 3, 32, 32), False) == InputFront()

    def test_an_operator_that_cannot_run(self):
        model = fronted(v8(), [node("Secret", "frame", "images")])
        assert find_front(model, "frame", (1, 3, 32, 32), False) == InputFront()

    def test_a_front_of_two_inputs(self):
        model = fronted(v8(), [node("Mul", "frame scale", "images")])
        model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
        assert find_front(model, "frame", (1, 3, 32, 32), False) == InputFront()

    def test_a_plane_that_is_not_read(self):
        model = fronted(v8(), split("r", "q", "q"))
        assert not find_front(model, "frame", (1, 3, 32, 32), False).reverses
