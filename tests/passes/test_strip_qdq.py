import re

import numpy as np
import onnx
import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    NARROW_TENSORRT,
    copy,
    csp,
    feed,
    nodes,
    ops,
    pan,
    rewrite,
    run,
    sqnr,
    v8,
)
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config, quantize
from onnxq.errors import ModelError
from onnxq.facts import Plan
from onnxq.ir import INTEGER_OPS
from onnxq.passes.strip_qdq import StripQdq
from onnxq.targets import TARGETS


def stripped(model):
    """Return a quantized model after the pass: valid, without Q and DQ; a second run makes no edit."""
    after, edits = rewrite(StripQdq(), model)
    assert edits > 0
    onnx.checker.check_model(after, full_check=True)
    assert not {"QuantizeLinear", "DequantizeLinear", "Clip"} & set(ops(after))
    assert rewrite(StripQdq(), after)[1] == 0
    assert list(after.graph.output) == list(model.graph.output)
    return after


def small(*body, outputs, inputs=(("x", TensorProto.FLOAT, [1, 4]),), constants=None, opset=21):
    """A graph of these nodes; constants by name."""
    graph = helper.make_graph(
        list(body),
        "small",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    for output, known in zip(made.graph.output, onnx.shape_inference.infer_shapes(made).graph.output, strict=True):
        output.CopyFrom(known)
    onnx.checker.check_model(made, full_check=True)
    return made


def of_constant(values, scale, zero_point=None, **attributes):
    """x + DequantizeLinear(values)."""
    given = {"values": values, "scale": np.asarray(scale, np.float32)}
    if zero_point is not None:
        given["zero_point"] = np.asarray(zero_point, np.asarray(values).dtype)
    shape = list(np.shape(values))
    return small(
        helper.make_node("DequantizeLinear", list(given), ["floats"], "dq", **attributes),
        helper.make_node("Add", ["x", "floats"], ["y"], "add"),
        inputs=[("x", TensorProto.FLOAT, shape)],
        outputs=[("y", TensorProto.FLOAT, shape)],
        constants=given,
    )


@pytest.mark.parametrize("name", [*BACKBONES, *DETECTORS])
def test_a_float_model_is_not_touched(name):
    model = (BACKBONES | DETECTORS)[name]()
    assert rewrite(StripQdq(), model)[1] == 0


def test_a_float_model_is_told(caplog):
    rewrite(StripQdq(), v8())
    assert caplog.messages == ["the model has no Q/DQ, so --requantize has no effect"]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("build", [csp, v8, pan])
def test_what_onnxq_made_gives_the_numbers_of_the_float_model(build, target, monkeypatch):
    plain = build()
    feeds = [feed(plain, seed) for seed in range(3)]
    monkeypatch.setitem(TARGETS, "tensorrt", NARROW_TENSORRT)
    made = quantize(plain, feeds, Config(target=target)).model
    values = feed(plain, 9)
    expected, noisy, found = (run(model, values) for model in (plain, made, stripped(made)))
    # With 16-bit activations the noise is that of the weights, which stay as they are.
    gain = 3 if TARGETS[target].activations[0].bits <= 8 else -1
    assert all(sqnr(expected[name], found[name]) > sqnr(expected[name], noisy[name]) + gain for name in expected)


@pytest.mark.parametrize("bits", [{"act_bits": 6}, {"weight_bits": 4, "pack": "int4"}], ids=["clipped", "int4"])
def test_narrow_activations_and_weights(bits):
    made = quantize(csp(), [feed(csp())], Config(target="generic", reconstruct=False, **bits)).model
    assert ("Clip" if "act_bits" in bits else "Cast") in ops(made)
    after = stripped(made)
    assert "Cast" not in ops(after)
    assert sqnr(run(csp())["output"], run(after)["output"]) > 12


@pytest.mark.parametrize(
    "model",
    [
        of_constant(np.int8([[-3, 4], [5, 100]]), 0.5),
        of_constant(np.uint8([[3, 4], [5, 250]]), 0.5, 128),
        of_constant(np.int8([[-3, 4], [5, 100]]), [0.5, 2.0], [1, -1], axis=0),
        of_constant(np.int8([[-3, 4], [5, 100]]), [0.5, 2.0], [1, -1]),
        of_constant(np.int8([[-3, 4], [5, 100]]), [0.5, 2.0], axis=-2),
        of_constant(np.int32([1000, -2000]), [1e-3, 2e-3], axis=0),
        of_constant(np.int8([[1, 2, 3, 4, 5]] * 2), [[0.5, 2.0, 1.0]] * 2, [[1, 2, 3]] * 2, axis=1, block_size=2),
    ],
    ids=["per tensor", "with zero point", "axis 0", "axis 1", "axis -2", "bias", "blocks"],
)
def test_constants_become_the_floats_that_they_stand_for(model):
    expected, found = run(model)["y"], run(stripped(model))["y"]
    assert np.allclose(expected, found, rtol=1e-6)
    assert np.ptp(found) > 0.5


def test_the_names_of_floats_are_new():
    model = small(
        helper.make_node("DequantizeLinear", ["values", "scale"], ["w"], "dq"),
        helper.make_node("Mul", ["x", "w"], ["w_float"], "mul"),
        helper.make_node("Add", ["w_float", "w"], ["y"], "add"),
        outputs=[("y", TensorProto.FLOAT, [1, 4])],
        constants={"values": np.int8([1, 2, 3, 4]), "scale": np.float32(0.25)},
    )
    assert np.allclose(run(model)["y"], run(stripped(model))["y"])


def test_a_pair_behind_a_float_weight_gives_the_weight():
    model = small(
        helper.make_node("QuantizeLinear", ["weight", "scale"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["dq"], "dq"),
        helper.make_node("Mul", ["x", "dq"], ["y"], "mul"),
        outputs=[("y", TensorProto.FLOAT, [1, 4])],
        constants={"weight": np.float32([0.1, 0.2, 0.3, 0.4]), "scale": np.float32(0.25)},
    )
    assert nodes(stripped(model))["mul"].input[1] == "weight"


def test_a_pair_that_makes_an_output_becomes_an_identity():
    model = small(
        helper.make_node("Neg", ["x"], ["n"], "neg"),
        helper.make_node("QuantizeLinear", ["n", "scale"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"], "dq"),
        outputs=[("y", TensorProto.FLOAT, [1, 4])],
        constants={"scale": np.float32(0.25)},
    )
    after = stripped(model)
    assert ops(after) == ["Neg", "Identity"]
    assert np.array_equal(run(after)["y"], -feed(after)["x"])


def test_integers_with_several_readers_go_with_the_last_of_them():
    model = small(
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["a"], "dq1"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["b"], "dq2"),
        helper.make_node("Add", ["a", "b"], ["y"], "add"),
        outputs=[("y", TensorProto.FLOAT, [1, 4])],
        constants={"scale": np.float32(0.25)},
    )
    assert list(stripped(model).graph.node[0].input) == ["x", "x"]


@pytest.mark.parametrize("op", sorted(INTEGER_OPS))
def test_arithmetic_on_integers_is_refused_by_name(op):
    model = copy(csp())
    nodes(model)["sigmoid1"].op_type = op
    with pytest.raises(ModelError, match=re.escape(f"node 'sigmoid1' is a {op} whose float form is unknown")):
        rewrite(StripQdq(), model)


@pytest.mark.parametrize("half", ["QuantizeLinear", "DequantizeLinear"])
def test_half_a_pair_is_refused_by_name(half):
    kind = TensorProto.UINT8 if half == "DequantizeLinear" else TensorProto.FLOAT
    other = TensorProto.FLOAT if half == "DequantizeLinear" else TensorProto.UINT8
    model = small(
        helper.make_node("Flatten", ["x"], ["f"], "flatten"),
        helper.make_node(half, ["f", "scale"], ["y"], "alone"),
        inputs=[("x", kind, [1, 4])],
        outputs=[("y", other, [1, 4])],
        constants={"scale": np.float32(0.25)},
    )
    with pytest.raises(ModelError, match=f"node 'alone' is a {half} whose float form is unknown; give the float"):
        rewrite(StripQdq(), model)


def _pair(*between, scale=0.25, end_scale=0.25, read="q", start=("scale",), end=("end_scale",)):
    """x, quantized to `q`, what comes between, and y, dequantized of what `read` names."""
    return small(
        helper.make_node("ReduceMax", ["x"], ["greatest"], "greatest", keepdims=0),
        helper.make_node("ReduceMin", ["x"], ["least"], "least", keepdims=0),
        helper.make_node("QuantizeLinear", ["x", *start], ["q"], "start"),
        *between,
        helper.make_node("DequantizeLinear", [read, *end], ["z"], "end"),
        helper.make_node("Neg", ["z"], ["y"], "neg"),
        outputs=[("y", TensorProto.FLOAT, None)],
        constants={
            "scale": np.float32(scale), "end_scale": np.float32(end_scale), "shape": np.int64([2, 2]),
            "few": np.uint8([[1]]), "zero": np.uint8(0), "middle": np.uint8(128),
        },
    )  # fmt: skip


def test_what_moves_integers_moves_floats():
    model = _pair(
        helper.make_node("Concat", ["q", "q"], ["both"], "concat", axis=0),
        helper.make_node("Transpose", ["both"], ["turned"], "turn"),
        read="turned",
    )
    after = stripped(model)
    assert ops(after)[2:] == ["Concat", "Transpose", "Neg"]
    x = feed(after)["x"]
    assert np.array_equal(run(after)["y"], -np.concatenate([x, x]).T)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (("scale", "zero"), ("end_scale",)),
        (("scale",), ("end_scale", "zero")),
        (("scale", "middle"), ("scale", "middle")),
        (("greatest",), ("greatest",)),
    ],
    ids=str,
)
def test_one_grid_said_in_two_ways(start, end):
    assert ops(stripped(_pair(start=start, end=end)))[2:] == ["Neg"]


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        (_pair(end_scale=0.5), "end"),
        (_pair(start=("scale", "middle")), "end"),
        (_pair(end=("end_scale", "middle")), "end"),
        (_pair(start=("greatest",), end=("least",)), "end"),
        (_pair(helper.make_node("BitShift", ["q", "few"], ["s"], "shift", direction="LEFT"), read="s"), "end"),
        (_pair(helper.make_node("Concat", ["q", "few"], ["c"], "concat", axis=1), read="c"), "end"),
        (_pair(helper.make_node("BitShift", ["q", "few"], ["s"], "shift", direction="LEFT")), "start"),
    ],
    ids=[
        "another grid", "a zero point before", "a zero point behind", "computed scales", "arithmetic between",
        "constants among", "other readers",
    ],
)  # fmt: skip
def test_integers_that_are_no_floats_are_refused(model, refused):
    with pytest.raises(ModelError, match=f"node '{refused}' is a .+ whose float form is unknown"):
        rewrite(StripQdq(), model)


def test_integers_that_are_an_output_are_refused():
    model = _pair()
    model.graph.output.append(helper.make_tensor_value_info("q", TensorProto.UINT8, [1, 4]))
    with pytest.raises(ModelError, match="node 'start' is a QuantizeLinear whose float form is unknown"):
        rewrite(StripQdq(), model)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt"])
def test_a_quantized_model_is_quantized_anew(monkeypatch, target):
    monkeypatch.setitem(TARGETS, "tensorrt", NARROW_TENSORRT)
    plain, feeds = v8(), [feed(v8(), seed) for seed in range(3)]
    first = quantize(plain, feeds, Config(target="openvino")).model
    again = quantize(first, feeds, Config(target=target, requantize=True))
    wanted = quantize(plain, feeds, Config(target=target))
    assert again.facts[Plan].layers == wanted.facts[Plan].layers
    assert sqnr(run(plain)["output"], run(again.model)["output"]) > 50
    assert {entry.key: entry.value for entry in again.model.metadata_props}["onnxq.target"] == target


def left_to_integers(constants, op="Conv", computed=(), **quantized):
    """Neg behind a pair behind a layer; the pair reads those of `scale` and `zero` that are constants or computed."""
    constants = dict(constants)
    if op == "Conv":
        constants["w"] = np.ones((1, 1, 1, 1), np.float32)
    kinds = {"scale": TensorProto.FLOAT, "zero": TensorProto.UINT8}
    given = [name for name in kinds if name in constants or name in computed]
    return small(
        helper.make_node(op, ["x", *(["w"] if op == "Conv" else [])], ["y"]),
        helper.make_node("QuantizeLinear", ["y", *given], ["q"], **quantized),
        helper.make_node("DequantizeLinear", ["q", *given], ["d"]),
        helper.make_node("Neg", ["d"], ["z"]),
        inputs=[("x", TensorProto.FLOAT, [1, 1, 1, 4]), *((name, kinds[name], []) for name in computed)],
        outputs=[("z", TensorProto.FLOAT, [1, 1, 1, 4])],
        constants=constants,
    )


@pytest.mark.parametrize(
    ("op", "zero_point", "scale", "activation"),
    [
        ("Conv", np.uint8(0), 0.1, "Relu"),
        ("Conv", np.int8(-128), 0.1, "Relu"),
        ("Conv", np.uint8(0), 6 / 255, "Clip"),
        ("Conv", np.uint8(1), 0.1, None),
        ("Conv", np.int8(0), 0.1, None),
        ("Sigmoid", np.uint8(0), 1 / 255, None),
    ],
)
def test_an_activation_that_was_left_to_the_integers_comes_back(op, zero_point, scale, activation):
    model = left_to_integers({"scale": np.float32(scale), "zero": zero_point}, op)
    after, _ = rewrite(StripQdq(), model)
    onnx.checker.check_model(after, full_check=True)
    assert ops(after) == [op, *([activation] if activation else []), "Neg"]
    if activation:
        x = np.array([-3, -0.5, 2, 9], np.float32).reshape(1, 1, 1, 4)
        expected = -np.clip(x, 0, 6 if activation == "Clip" else None)
        np.testing.assert_array_equal(run(after, {"x": x})["z"], expected)


@pytest.mark.parametrize(
    ("quantized", "activation"),
    [
        ({}, ["Relu"]),
        ({"output_dtype": TensorProto.INT8}, []),
        ({"output_dtype": TensorProto.UINT4}, []),
        ({"output_dtype": TensorProto.FLOAT8E4M3FN}, []),
    ],
    ids=["uint8", "int8", "uint4", "float8"],
)
def test_without_a_zero_point_it_is_zero_of_the_type(quantized, activation):
    model = left_to_integers({"scale": np.float32(0.1)}, **quantized)
    assert ops(rewrite(StripQdq(), model)[0]) == ["Conv", *activation, "Neg"]


@pytest.mark.parametrize("computed", ["scale", "zero"])
def test_what_is_computed_tells_of_no_activation(computed):
    constants = {"scale": np.float32(0.1), "zero": np.uint8(0)}
    del constants[computed]
    model = left_to_integers(constants, computed=[computed])
    assert ops(rewrite(StripQdq(), model)[0]) == ["Conv", "Neg"]
