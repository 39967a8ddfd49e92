"""The rules of TensorRT for Q/DQ files agree with its parser and builder: a small model for each.

Without TensorRT-RTX only the half that needs no compiler runs: the rules, on the same models.
"""

import sys
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from installed import interpreter, needs_compiler
from onnx import TensorProto, helper, numpy_helper

from onnxq.compilers.base import Job
from onnxq.compilers.layers import file_layers
from onnxq.compilers.tensorrt import TensorRtRtx
from onnxq.errors import ModelError
from onnxq.targets.tensorrt_parser import violations

C = 16  # channels of data and weights
INTEGERS, FLOAT, REFUSED = "integers", "float", "refused"
SHAPES = {"Conv": (C, C, 3, 3), "ConvTranspose": (C, C, 2, 2), "Gemm": (C, C), "MatMul": (C, C)}
ATTRIBUTES = {
    "Conv": {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]},
    "ConvTranspose": {"strides": [2, 2], "kernel_shape": [2, 2]},
}


def scalar(value=0.05, kind=np.float32):
    return np.asarray(value, kind)


def many(count=C, value=0.01, kind=np.float32):
    return np.full(count, value, kind)


@dataclass(frozen=True)
class Small:
    """A model of one layer: its data and its weight have a Q and a DQ each, and a Relu follows.

    Attributes:
        op: the layer.
        scale, zero, axis: of the data; None: left out.
        weight_scale, weight_zero, weight_axis, weight_kind: of the weight.
        transposed: transB of a Gemm.
        data, weight: whether each is quantized.
        bias: None, or a type.
        between: operator on the integers of the data, with its number of inputs.
        source: "float", or "integers" for an input that is quantized already, or "int32" for Q of whole numbers.
        behind: type of the zero point of the DQ of the data, if it differs.
        domain, opset: of Q and DQ.
    """

    op: str = "Conv"
    scale: np.ndarray = field(default_factory=scalar)
    zero: np.ndarray | None = field(default_factory=lambda: np.int8(0))
    axis: int | None = None
    weight_scale: np.ndarray = field(default_factory=many)
    weight_zero: np.ndarray | None = field(default_factory=lambda: np.zeros(C, np.int8))
    weight_axis: int | None = 0
    weight_kind: type = np.int8
    transposed: bool = False
    data: bool = True
    weight: bool = True
    bias: type | None = np.float32
    between: tuple[str, int] | None = None
    source: str = "float"
    behind: type | None = None
    domain: str = ""
    opset: int = 17

    def model(self):
        """Return the model."""
        stored, nodes = {}, []

        def put(name, values):
            stored[name] = np.asarray(values)
            return name

        def add(op, inputs, output, **attributes):
            nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
            return output

        def parameters(name, scale, zero):
            return [put(f"{name}_scale", scale)] + ([] if zero is None else [put(f"{name}_zero", zero)])

        def axis(value):
            return {} if value is None else {"axis": value}

        rng = np.random.default_rng(0)
        x = "x"
        if self.data:
            given = parameters("x", self.scale, self.zero)
            if self.source != "integers":
                x = add("QuantizeLinear", [x, *given], "x_q", domain=self.domain, **axis(self.axis))
            if self.between is not None:
                op, count = self.between
                limits = [put("low", np.int8(-64)), put("high", np.int8(63))] if op == "Clip" else []
                x = add(op, [x] * count + limits, "x_between", **({"kernel_shape": [1, 1]} if op == "MaxPool" else {}))
            if self.behind is not None:
                given = [given[0], put("x_behind", self.behind(0))]
            x = add("DequantizeLinear", [x, *given], "x_dq", domain=self.domain, **axis(self.axis))
        w = put("w", rng.integers(1, 100, SHAPES[self.op]).astype(self.weight_kind if self.weight else np.float32))
        if self.weight:
            given = parameters("w", self.weight_scale, self.weight_zero)
            w = add("DequantizeLinear", [w, *given], "w_dq", domain=self.domain, **axis(self.weight_axis))
        inputs = [x, w]
        if self.bias is np.float32:
            inputs.append(put("b", rng.normal(size=C).astype(np.float32)))
        elif self.bias is not None:
            put("b", rng.integers(-100, 100, C).astype(self.bias))
            inputs.append(add("DequantizeLinear", ["b", *parameters("b", scalar(0.001), self.bias(0))], "b_dq"))
        attributes = {"transB": 1} if self.transposed else ATTRIBUTES.get(self.op, {})
        add(self.op, inputs[:2] if self.op == "MatMul" else inputs, "layer", **attributes)
        add("Relu", ["layer"], "y")
        kind = {"float": TensorProto.FLOAT, "integers": TensorProto.INT8, "int32": TensorProto.INT32}[self.source]
        shape = [1, C, 16, 16] if self.op.startswith("Conv") else [64, C]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("x", kind, shape)],
            [
                helper.make_tensor_value_info(
                    "y", TensorProto.FLOAT, [1, C, 32, 32] if self.op == "ConvTranspose" else shape
                )
            ],
            [numpy_helper.from_array(values, name) for name, values in stored.items()],
        )
        domains = [helper.make_opsetid("", self.opset)] + ([helper.make_opsetid(self.domain, 1)] if self.domain else [])
        return helper.make_model(graph, opset_imports=domains, ir_version=helper.find_min_ir_version_for(domains, True))


ONE = {"weight_scale": scalar(0.01), "weight_zero": np.int8(0), "weight_axis": None}
GEMM, MATMUL = {"op": "Gemm", "weight_axis": 1}, {"op": "MatMul", "weight_axis": 1}
WIDE = {"opset": 21}

CASES = {
    "scales per channel": (Small(), INTEGERS),
    "one scale": (Small(**ONE), INTEGERS),
    "without zero points": (Small(zero=None, weight_zero=None), INTEGERS),
    "no bias": (Small(bias=None), INTEGERS),
    # opsets and domains
    "opset 10": (Small(**ONE, opset=10), INTEGERS),
    "opset 12": (Small(**ONE, opset=12), INTEGERS),
    "opset 24": (Small(opset=24), INTEGERS),
    "opset 25": (Small(opset=25), INTEGERS),
    "com.microsoft": (Small(domain="com.microsoft"), INTEGERS),
    # types of integers
    "data of int16": (Small(zero=np.int16(0), **WIDE), REFUSED),
    "weight of int16": (Small(weight_zero=np.zeros(C, np.int16), weight_kind=np.int16, **WIDE), REFUSED),
    "weight of uint8": (Small(weight_zero=np.zeros(C, np.uint8), weight_kind=np.uint8), REFUSED),
    "bias of int32": (Small(bias=np.int32), REFUSED),
    "bias of int8": (Small(bias=np.int8), INTEGERS),
    "Q of int32": (Small(source="int32"), REFUSED),
    "integers from outside": (Small(source="integers"), INTEGERS),
    "Clip of integers": (Small(between=("Clip", 1)), INTEGERS),
    "MaxPool of integers": (Small(between=("MaxPool", 1)), INTEGERS),
    "Add of integers": (Small(between=("Add", 2)), INTEGERS),
    # zero points
    "zero point 3": (Small(zero=np.int8(3)), REFUSED),
    "uint8 with zero point 128": (Small(zero=np.uint8(128)), REFUSED),
    "one zero point for many scales": (Small(weight_zero=np.int8(0)), REFUSED),
    "zero point with an axis": (Small(zero=np.zeros(1, np.int8)), INTEGERS),
    # scales
    "negative scale": (Small(scale=scalar(-0.05)), REFUSED),
    "negative scale of a weight": (Small(weight_scale=many(value=-0.01)), REFUSED),
    "scale 0": (Small(scale=scalar(0)), REFUSED),
    "scale nan": (Small(scale=scalar(np.nan)), REFUSED),
    "scales of float64": (Small(scale=scalar(kind=np.float64), weight_scale=many(kind=np.float64)), INTEGERS),
    "scale of float16 beside float32": (Small(scale=scalar(kind=np.float16), opset=19), REFUSED),
    "scale of shape (1,)": (Small(scale=many(1), zero=np.zeros(1, np.int8)), FLOAT),
    "scale of shape (1,), opset 21": (Small(scale=many(1), zero=np.zeros(1, np.int8), **WIDE), FLOAT),
    "scale of shape (1, 1)": (Small(scale=many((1, 1)), zero=np.zeros((1, 1), np.int8)), REFUSED),
    "scale of shape (1,) of a Gemm": (Small(scale=many(1), zero=np.zeros(1, np.int8), **GEMM), INTEGERS),
    "weight's scale of shape (1,)": (Small(weight_scale=many(1), weight_zero=np.zeros(1, np.int8)), INTEGERS),
    "weight's scale of shape (1, 1)": (
        Small(weight_scale=many((1, 1)), weight_zero=np.zeros((1, 1), np.int8)),
        REFUSED,
    ),
    "data with scales per channel": (Small(scale=many(), zero=np.zeros(C, np.int8), axis=1), FLOAT),
    "too few scales": (Small(weight_scale=many(8), weight_zero=np.zeros(8, np.int8)), REFUSED),
    # axes
    "Conv, axis 1": (Small(weight_axis=1), FLOAT),
    "Conv, axis -4": (Small(weight_axis=-4), INTEGERS),
    "ConvTranspose, axis 0": (Small(op="ConvTranspose"), FLOAT),
    "ConvTranspose, axis 1": (Small(op="ConvTranspose", weight_axis=1), FLOAT),
    "ConvTranspose, one scale": (Small(op="ConvTranspose", **ONE), FLOAT),
    "Gemm, axis 1": (Small(**GEMM), INTEGERS),
    "Gemm, axis -1": (Small(op="Gemm", weight_axis=-1), INTEGERS),
    "Gemm, axis 0": (Small(op="Gemm"), FLOAT),
    "Gemm transposed, axis 0": (Small(op="Gemm", transposed=True), INTEGERS),
    "Gemm transposed, axis 1": (Small(**GEMM, transposed=True), FLOAT),
    "MatMul, axis 1": (Small(**MATMUL), INTEGERS),
    "MatMul, axis 0": (Small(op="MatMul"), FLOAT),
    # halves
    "only data": (Small(weight=False), FLOAT),
    "only weight": (Small(data=False), FLOAT),
    "Gemm, only data": (Small(weight=False, **GEMM), FLOAT),
}
"""Models, and what TensorRT-RTX does with their layer."""

STRICTER = {
    "uint8 with zero point 0": Small(zero=np.uint8(0)),
    "DQ of other integers than Q": Small(behind=np.uint8),
    "scale infinite": Small(scale=scalar(np.inf)),
}
"""Models that TensorRT-RTX builds on integers, though their numbers are not those that ONNX defines."""


def outcome(model, folder):
    """Return what TensorRT-RTX does with the layer of a model."""
    layers = [layer for layer in file_layers(model) if layer.name == "layer"]
    job = Job(model, layers, (), folder, "", interpreter("tensorrt-rtx") or sys.executable, 120.0)
    try:
        built = TensorRtRtx().build(job)
    except ModelError:
        return REFUSED
    return INTEGERS if built.layers["layer"].on_integers else FLOAT


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_run_on_integers_violates_a_rule(name):
    small, expected = CASES[name]
    assert (violations(small.model()) == []) is (expected == INTEGERS)


@pytest.mark.slow
@needs_compiler("tensorrt-rtx")
@pytest.mark.parametrize("name", CASES)
def test_the_compiler_does_what_the_rules_say(name, tmp_path):
    small, expected = CASES[name]
    assert outcome(small.model(), tmp_path) == expected


@pytest.mark.parametrize("name", STRICTER)
def test_what_would_be_misread_violates_a_rule(name):
    assert violations(STRICTER[name].model()) != []


@pytest.mark.slow
@needs_compiler("tensorrt-rtx")
@pytest.mark.parametrize("name", STRICTER)
def test_the_compiler_misreads_it(name, tmp_path):
    assert outcome(STRICTER[name].model(), tmp_path) == INTEGERS


def test_the_models_are_what_they_are_called():
    onnx.checker.check_model(Small().model(), full_check=True)
    assert [node.op_type for node in Small().model().graph.node] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Relu",
    ]  # fmt: skip
