import numpy as np
import onnx
import pytest
from graphs import (
    NARROW_TENSORRT,
    assert_untouched,
    csp,
    feed,
    initializers,
    nodes,
    pan,
    quantized,
    quantized_halves,
    rewrite,
    run,
    sqnr,
)
from onnx import TensorProto, helper, numpy_helper

from onnxq.config import Config
from onnxq.ir import Model, ProtoIndex
from onnxq.passes import prepare
from onnxq.passes.scales_to_batch_norm import ScalesToBatchNorm
from onnxq.pipeline import Pipeline
from onnxq.targets import TENSORRT
from onnxq.targets.tensorrt_parser import violations

HALF = np.finfo(np.float16)


def written(model):
    """Return a float16 network after the pass; it must be valid, and a second run must change nothing."""
    after, edits = rewrite(ScalesToBatchNorm(), model)
    onnx.checker.check_model(after, full_check=True)
    assert_untouched(ScalesToBatchNorm(), after)
    return after, edits


def weights(model):
    """Return for each Conv with an integer weight the integers, and their scales once they are all multiplied."""
    index, found = ProtoIndex(model.graph), {}
    for node in model.graph.node:
        dequantize = index.producers.get(node.input[1]) if node.op_type == "Conv" else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        scales = index.values(dequantize.input[1]).astype(np.float64)
        for reader in index.consumers.get(node.output[0], []):
            if reader.op_type == "BatchNormalization":
                scales = scales * index.values(reader.input[1])
        found[node.name] = index.values(dequantize.input[0]), scales
    return found


def small(scales, integers, data_scale=0.05, bias=True, zero=True, readers=("Conv",)):
    """A float16 network of one Conv, of which `scales` and `integers` (channels, inputs) are the weight.

    Args:
        scales: of the weight, for each output channel.
        integers: the weight, (output channels, input channels).
        data_scale: of the data.
        bias: the Conv has one.
        zero: the weight has zero points.
        readers: nodes that read the dequantized weight.
    """
    integers = np.asarray(integers, np.int8)[:, :, None, None]
    channels, count = integers.shape[:2]
    stored = {
        "scale": np.float16(data_scale), "zero": np.int8(0), "w": integers,
        "w_scale": np.asarray(scales, np.float16), "w_zero": np.zeros(channels, np.int8),
        "b": np.arange(channels).astype(np.float16),
    }  # fmt: skip
    made = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "Q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "DQ"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", *(["w_zero"] if zero else [])], ["wd"], "WDQ", axis=0),
    ]
    outputs = []
    for number, op in enumerate(readers):
        inputs = ["wd"] if op == "Neg" else ["d", "wd", *(["b"] if bias else [])]
        outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT16, ["n", "c", "h", "w"]))
        made.append(helper.make_node(op, inputs, [f"y{number}"], f"{op}{number}"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, count, 4, 4])
    constants = [numpy_helper.from_array(np.asarray(values), name) for name, values in stored.items()]
    graph = helper.make_graph(made, "small", [x], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("build", [csp, pan])
def test_every_conv_on_integers_has_one_scale_and_computes_the_same(build):
    before = quantized_halves(build())
    after, edits = written(before)
    several, one = weights(before), weights(after)
    assert edits == len(several) == len(one) > 0
    for name, (integers, scales) in several.items():
        assert np.array_equal(one[name][0], integers)
        assert np.array_equal(one[name][1], scales)  # powers of two divide float16 without rounding
    index = ProtoIndex(after.graph)
    for name in one:
        dequantize = index.producers[nodes(after)[name].input[1]]
        assert all(index.values(tensor).ndim == 0 for tensor in dequantize.input[1:])
    values = feed(before)
    expected, found = run(before, values), run(after, values)
    assert all(sqnr(expected[name], found[name] + 1e-12) > 30 for name in expected)
    assert not violations(after)


def test_the_output_keeps_its_name_and_its_documentation():
    before = quantized_halves(csp())
    for node in before.graph.node:
        node.doc_string = f"about {node.name}"
    after, edits = written(before)
    docs = {node.output[0]: node.doc_string for node in before.graph.node}
    norms = [node for node in after.graph.node if node.op_type == "BatchNormalization"]
    assert len(norms) == edits
    for node in norms:
        assert docs[node.output[0]] == node.doc_string != ""


def test_a_float32_network_stays():
    assert_untouched(ScalesToBatchNorm(), quantized(csp(), NARROW_TENSORRT)[0])
    assert TENSORRT.lowering == (ScalesToBatchNorm.name,)


def test_convs_that_share_a_weight_share_its_scale():
    before = small([0.1, 0.2], [[1, 2], [3, 4]], readers=("Conv", "Conv"))
    after, edits = written(before)
    assert edits == 2
    assert nodes(after)["Conv0"].input[1] == nodes(after)["Conv1"].input[1]
    for name, (_, scales) in weights(before).items():
        assert np.array_equal(weights(after)[name][1], scales)


@pytest.mark.parametrize("other", ["Neg", "ConvTranspose"])
def test_a_weight_that_another_node_reads_stays(other):
    assert_untouched(ScalesToBatchNorm(), small([0.1, 0.2], [[1, 2], [3, 4]], readers=("Conv", other)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("zero", [True, False])
def test_a_conv_with_or_without_a_bias_and_zero_points(bias, zero):
    before = small([0.1, 0.4], [[100, -50], [7, 127]], bias=bias, zero=zero)
    after, edits = written(before)
    assert edits == 1
    x = np.linspace(-5, 5, 32).reshape(1, 2, 4, 4).astype(np.float16)
    assert np.allclose(run(before, {"x": x})["y0"], run(after, {"x": x})["y0"], rtol=0.002, atol=0.01)


def test_no_sum_of_products_exceeds_float16():
    """The median of the scales is 1; with it, the first channel would sum to 128 x 127 x 64 x 2."""
    integers = np.zeros((3, 64))
    integers[0], integers[1:, 0] = 127, 1
    before = small([0.001, 1, 1], integers, data_scale=2.0, bias=False)
    after, _ = written(before)
    x = np.full((1, 64, 4, 4), -256, np.float16)
    found = run(after, {"x": x}, ["y0_unscaled", "y0"])
    assert np.isfinite(found["y0_unscaled"]).all()
    assert np.abs(found["y0_unscaled"]).max() > HALF.max / 2.1
    assert np.allclose(found["y0"], run(before, {"x": x})["y0"], rtol=0.002)


def test_a_second_quantization_finds_the_weights_again():
    before = quantized_halves(csp())
    restored = {}
    for model in (before, written(before)[0]):
        working = Model(model)
        Pipeline(prepare(Config(target="tensorrt", requantize=True))).run(working)
        proto = working.to_proto()
        assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
        stored = initializers(proto)
        restored[id(model)] = {n.name: stored[n.input[1]] for n in proto.graph.node if n.op_type == "Conv"}
    one, other = restored.values()
    assert one.keys() == other.keys()
    assert all(np.allclose(one[name], other[name], rtol=1e-3) for name in one)  # float16 rounds to 1 / 2048
