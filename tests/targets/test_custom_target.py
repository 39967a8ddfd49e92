"""A target is data: one record, with integer types and rules of its own, is all that the rest needs."""

import json
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import Net, copy, csp, feed, run, sqnr, v8
from onnx import TensorProto, numpy_helper

from onnxq import cli
from onnxq.api import quantize
from onnxq.config import Config
from onnxq.errors import ConfigError, PipelineError
from onnxq.facts import Plan, QuantizationParameters
from onnxq.ir import Model
from onnxq.numerics.scheme import INT8, INT16, UINT8, UINT16
from onnxq.qdq.insertion import insert_qdq
from onnxq.targets import GENERIC, TARGETS, Role, Rule, Target

NPU = Target(
    name="npu",
    title="NPU",
    rules={
        **GENERIC.rules,
        **{op: Rule(Role.ELEMENTWISE) for op in ("Softmax", "Sub", "Div")},
    },
    activations=(UINT16, UINT8),
    weights=(INT8,),
    quantizes_decode=True,
    fused_activations=frozenset({"Relu", "Clip"}),
)


@pytest.fixture(autouse=True)
def npu(monkeypatch):
    """Register a target, as a file `onnxq/targets/npu.py` and its name in `onnxq/targets/__init__.py` do."""
    monkeypatch.setitem(TARGETS, "npu", NPU)


def quantized(model, **options):
    """The model quantized for NPU on four feeds, and what was found."""
    return quantize(model, [feed(model, seed) for seed in range(4)], Config(target="npu", **options))


def zero_point_types(model):
    """Type of the integers of every Q, and of every DQ of an activation."""
    types = {w.name: w.data_type for w in model.graph.initializer}
    return {
        types[node.input[2]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] not in types)
    }


def is_between_pairs(model, node):
    """Return whether a node reads only dequantized tensors and constants, and its outputs are only quantized."""
    makers = {name: other.op_type for other in model.graph.node for name in other.output}
    read = [makers[name] for name in node.input if name in makers]
    behind = [other.op_type for other in model.graph.node if set(node.output) & set(other.input)]
    return set(read) == {"DequantizeLinear"} and set(behind) == {"QuantizeLinear"}


@pytest.mark.slow
@pytest.mark.parametrize("build", [csp, v8])
def test_every_operator_has_uint16_in_front_and_behind(build):
    result = quantized(build())
    after = result.model
    onnx.checker.check_model(after, full_check=True)
    assert [entry.version for entry in after.opset_import if entry.domain == ""] == [21]
    assert zero_point_types(after) == {TensorProto.UINT16}
    assert not result.facts[Plan].skipped
    computing = [node for node in after.graph.node if node.op_type in ("Conv", "Softmax", "Sub", "Div", "Mul", "Add")]
    assert {node.op_type for node in computing} >= ({"Conv", "Mul"} if build is csp else {"Softmax", "Sub", "Div"})
    assert [node.name for node in computing if not is_between_pairs(after, node)] == []


@pytest.mark.slow
@pytest.mark.parametrize("build", [csp, v8])
def test_weights_are_int8_and_outputs_keep_their_names(build):
    model = build()
    after = quantized(model).model
    stored = {w.name: w for w in after.graph.initializer}
    weights = [
        node.input[0] for node in after.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored
    ]
    assert {stored[name].data_type for name in weights} == {TensorProto.INT8}
    assert list(after.graph.output) == list(model.graph.output)
    [output] = [node for node in after.graph.node if model.graph.output[0].name in node.output]
    assert output.op_type == "DequantizeLinear"


def with_rounded_weights(model, result):
    """The float model with the weights that the quantized one has."""
    rounded = copy(model)
    grids = result.facts[QuantizationParameters].weights
    for tensor in rounded.graph.initializer:
        if tensor.name in grids:
            values = numpy_helper.to_array(tensor)
            grid = grids[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(grid.dequantize(grid.quantize(values)), tensor.name))
    return rounded


@pytest.mark.slow
@pytest.mark.parametrize(("build", "least"), [(csp, 75), (v8, 85)])
def test_16_bits_lose_almost_nothing(build, least):
    """The loss comes from 8-bit weights: if the float model has them too, only uint16 differs."""
    model = build()
    result = quantized(model, equalize=False, keep_bias=True, method="minmax")
    [expected] = run(with_rounded_weights(model, result), feed(model)).values()
    [found] = run(result.model, feed(model)).values()
    assert sqnr(expected, found) > least


def test_weights_of_8_bits_are_what_costs():
    model = csp()
    [expected], [found] = run(model, feed(model)).values(), run(quantized(model).model, feed(model)).values()
    assert 38 < sqnr(expected, found) < 46


def test_narrower_activations_take_the_narrower_type():
    after = quantized(csp(), act_bits=8).model
    assert zero_point_types(after) == {TensorProto.UINT8}
    assert [entry.version for entry in after.opset_import if entry.domain == ""] == [13]


def test_single_nodes_can_have_the_wider_type():
    after = quantized(csp(), act_bits=8, bits=("conv2=8/16",)).model
    assert zero_point_types(after) == {TensorProto.UINT8, TensorProto.UINT16}
    assert [entry.version for entry in after.opset_import if entry.domain == ""] == [21]


def test_a_target_without_8_bits(monkeypatch):
    """Both ends of the network have at least 8 bits, which 16 are: no type of 8 bits is asked for."""
    target = replace(NPU, activations=(INT16,), symmetric_activations=True)
    monkeypatch.setitem(TARGETS, "npu", target)
    model = csp()
    after = quantized(model).model
    onnx.checker.check_model(after, full_check=True)
    assert zero_point_types(after) == {TensorProto.INT16}
    assert [entry.version for entry in after.opset_import if entry.domain == ""] == [21]
    [expected], [found] = run(model, feed(model)).values(), run(after, feed(model)).values()
    assert sqnr(expected, found) > 38


def test_an_unknown_lowering_pass_is_named(monkeypatch):
    monkeypatch.setitem(TARGETS, "npu", replace(NPU, lowering=("expand-softmax", "fuse-all")))
    message = "^NPU: its lowering has 'fuse-all', which is not a pass; passes are pointwise-to-matmul, "
    with pytest.raises(PipelineError, match=message):
        quantized(csp())


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (12, "act_bits: 12 bits: NPU has no Clip of uint16, which narrow activations need; use 16 or 8 bits"),
        (17, "act_bits: 17 bits: activations of NPU have 2 to 16 bits"),
    ],
)
def test_widths_that_it_lacks_are_refused(bits, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        Config(target="npu", act_bits=bits)


@pytest.mark.slow
def test_the_command_line_and_the_report_follow(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(v8(), "model.onnx")
    assert cli.main(["model.onnx", "--target", "npu", "--count", "2", "--report", "r.json"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "target npu (NPU), uh, W8A16" in out
    assert "(-v says which and why)" not in out  # no node is float
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["target"], report["act_bits"], report["float"]) == ("npu", 16, {})
    metadata = {entry.key: entry.value for entry in onnx.load("model.w8a16.onnx").metadata_props}
    assert (metadata["onnxq.target"], metadata["onnxq.bits"]) == ("npu", "W8A16")


@pytest.mark.slow
def test_it_can_be_quantized_again():
    model = v8()
    feeds = [feed(model, seed) for seed in range(4)]
    again = quantize(quantized(model).model, feeds, Config(target="ort", requantize=True)).model
    assert zero_point_types(again) == {TensorProto.UINT8}
    assert list(again.graph.output) == list(model.graph.output)


def test_asymmetric_unsigned_weights(monkeypatch):
    monkeypatch.setitem(TARGETS, "npu", replace(NPU, weights=(UINT8,), symmetric_weights=False))
    model = csp()
    after = quantized(model, weight_method="mse").model
    stored = {w.name: numpy_helper.to_array(w) for w in after.graph.initializer}
    pairs = [n for n in after.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    assert len(pairs) == 6
    assert {stored[node.input[0]].dtype for node in pairs} == {np.dtype(np.uint8)}
    assert any(len(set(stored[node.input[2]].tolist())) > 1 for node in pairs)
    [expected], [found] = run(model, feed(model)).values(), run(after, feed(model)).values()
    assert sqnr(expected, found) > 38


def test_reconstruction_needs_symmetric_signed_weights(monkeypatch):
    monkeypatch.setitem(TARGETS, "npu", replace(NPU, weights=(UINT8,), symmetric_weights=False))
    assert not Config(target="npu", weight_bits=4).reconstructs
    with pytest.raises(ConfigError, match=r"^reconstruct: weights for NPU are not symmetric signed integers; leave"):
        Config(target="npu", weight_bits=4, reconstruct=True)


def test_16_bits_can_be_the_only_width(monkeypatch):
    monkeypatch.setitem(TARGETS, "npu", replace(NPU, activations=(UINT16,)))
    after = quantized(csp()).model
    assert zero_point_types(after) == {TensorProto.UINT16}
    assert [entry.version for entry in after.opset_import if entry.domain == ""] == [21]


@pytest.mark.parametrize("build", [csp, v8])
def test_a_second_insertion_adds_nothing(build):
    """Outputs that are quantized are made by a DequantizeLinear already."""
    result = quantized(build())
    again = Model(result.model)
    assert insert_qdq(again, result.facts[Plan], result.facts[QuantizationParameters]) == 0


def test_what_a_float_node_reads_and_an_output_with_consumers():
    """An output of the model that other nodes read too is made by its DequantizeLinear, which they read as well."""
    net = Net()
    x = net.block("images", 8)
    model = net.model(x, net.conv(x, 4, name="last"))
    result = quantized(model)
    onnx.checker.check_model(result.model, full_check=True)
    docs = {n.input[0]: n.doc_string for n in result.model.graph.node if n.op_type == "QuantizeLinear"}
    assert all(text.startswith("onnxq: ") for text in docs.values())
    before, after = run(model, feed(model)), run(result.model, feed(model))
    assert min(sqnr(before[name], after[name]) for name in before) > 38
