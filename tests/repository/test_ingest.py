"""The whole pipeline quantizes small graphs in every form that exporters write, or refuses them with a reason."""

import functools

import ml_dtypes
import numpy as np
import onnx
import pytest
from cases import paired
from graphs import (
    Net,
    copy,
    csp,
    feed,
    ops,
    run,
    silu_chain,
    sqnr,
    v8,
    v10,
    with_constant_nodes,
    with_float16,
    with_initializers_as_inputs,
    with_levels,
    with_metadata,
    with_node_names,
    with_opaque_nms,
)
from onnx import TensorProto, helper, numpy_helper, version_converter
from PIL import Image

from onnxq import Config, plan, quantize
from onnxq.api import cut_decode
from onnxq.errors import DataError
from onnxq.facts import Plan, Verification
from onnxq.ir.repair import repair

RUN = ("ort", "openvino", "tensorrt")


pytestmark = pytest.mark.usefixtures("narrow_convs")


def quantized(model, target, feeds=None, **options):
    """Quantize; assert a valid result with the same inputs and outputs, whose planned layers run on integers."""
    feeds = feeds or [feed(model, seed, {"batch": 1, "height": 32, "width": 32}) for seed in range(2)]
    found = quantize(model, feeds, Config(target=target, **options))
    onnx.checker.check_model(found.model, full_check=True)
    stored = {w.name for w in model.graph.initializer}
    assert [t for t in model.graph.input if t.name not in stored] == list(found.model.graph.input)
    assert list(model.graph.output) == list(found.model.graph.output)
    assert found.facts[Verification].fused in (None, len(found.facts[Plan].layers))
    return found


class TestFloat16:
    @pytest.mark.slow
    @pytest.mark.parametrize("ends", [True, False], ids=["float16 ends", "float32 ends"])
    @pytest.mark.parametrize("target", RUN)
    def test_is_quantized_as_float32_is(self, target, ends):
        plain, values = csp(), feed(csp(), 9)
        wanted, found = (quantized(model, target) for model in (plain, with_float16(plain, ends)))
        assert found.facts[Plan].layers == wanted.facts[Plan].layers
        expected = run(plain, values)["output"]
        kind = np.float16 if ends else np.float32
        output = run(found.model, {"images": values["images"].astype(kind)})["output"]
        assert output.dtype == kind
        assert sqnr(expected, output.astype(np.float32)) > sqnr(expected, run(wanted.model, values)["output"]) - 2

    def test_can_be_float16_again_where_it_is_not_on_integers(self):
        found = quantized(with_float16(csp()), "tensorrt", float_type="fp16")
        convs = [node for node in found.model.graph.node if node.op_type == "Conv"]
        inferred = onnx.shape_inference.infer_shapes(found.model).graph.value_info
        kinds = {v.name: v.type.tensor_type.elem_type for v in inferred}
        assert {kinds[conv.output[0]] for conv in convs} == {onnx.TensorProto.FLOAT16}

    @pytest.mark.parametrize("target", RUN)
    def test_bfloat16_is_quantized_though_nothing_here_runs_it(self, target):
        model = with_float16(silu_chain(opset=13), ends=False)
        for weight in model.graph.initializer:
            values = numpy_helper.to_array(weight).astype(ml_dtypes.bfloat16)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                    attribute.i = TensorProto.BFLOAT16
        model.opset_import[0].version, model.ir_version = 22, 10
        values = feed(silu_chain())
        expected = run(silu_chain(), values)["output"]
        # 36.5 to 38.7 dB.
        assert sqnr(expected, run(quantized(model, target).model, values)["output"]) > 36

    def test_is_reconstructed_below_8_bits(self):
        found = quantized(with_float16(csp()), "ort", weight_bits=4)
        # 25.0 dB.
        assert found.facts[Verification].simulated["output"] > 24


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "build"), paired([11, 12, 13, 16, 18, 20, 21, 22, 23, 24], [v8, v10], each=1))
def test_every_operator_set(opset, build):
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"the installed onnx does not know opset {opset}")
    model = version_converter.convert_version(build(), opset) if opset > 13 else build(opset=opset)
    found = quantized(model, "openvino")
    assert [entry.version for entry in found.model.opset_import if not entry.domain] == [max(opset, 13)]
    assert found.facts[Plan].layers == plan(build(), Config(target="openvino"))[0].layers


def _appended(model, *nodes, outputs=(), initializers=()):
    model = copy(model)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)
    model.graph.output.extend(helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs)
    return model


def _small(opset=13):
    return silu_chain(layers=2, opset=opset)


def _named_like_tensors():
    model = copy(_small())
    for node, other in zip(model.graph.node, reversed(model.graph.node), strict=True):
        node.name = other.output[0]
    return model


def _without_graph_name():
    model = copy(_small())
    model.graph.name = ""
    return model


def _with_a_constant_of_each_kind():
    kinds = {"value_string": "a", "value_strings": ["a", "b"], "value_int": 1, "value_ints": [1], "value_floats": [0.5]}
    model = with_constant_nodes(_small())
    for kind, value in kinds.items():
        model.graph.node.insert(0, helper.make_node("Constant", [], [kind], f"{kind}_node", **{kind: value}))
    return model


def _of_ir_version_3(opset):
    return with_initializers_as_inputs(_small(opset=opset))


def _with_shared_bias():
    model = copy(_small())
    first = {}
    sizes = {w.name: tuple(w.dims) for w in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.input[2] = first.setdefault(sizes[node.input[2]], node.input[2])
    return model


def _with_weights_as_outputs():
    model = _small()
    chosen = [w for w in model.graph.initializer if w.name in ("conv1_weight", "conv1_bias")]
    return _appended(model, outputs=[(w.name, w.data_type, w.dims) for w in chosen])


def _with_empty_parts():
    net = Net(opset=11)
    x = net.block("images", 8, stride=2)
    y = net.concat(net.upsample(x), net.slice(net.upsample(x), 1, 0, 1, 0))
    net.channels[y] = 8
    return net.model(net.conv(y, 4))


def _with_inputs_left_out():
    net = Net()
    x = net.block("images", 8)
    weight = net.const(net.normal(8, 8, 1, 1), name="weight")
    y = net.add("Clip", net.add("Conv", x, weight, ""), "", net.const(4.0))
    net.channels[y] = 8
    return net.model(net.conv(y, 4))


def _with_other_arithmetic():
    """Build a net with integers, booleans, Casts, a Dropout with its flags and a BatchNormalization with its mode."""
    net = Net(opset=14)
    x = net.silu(net.norm(net.conv("images", 8, bias=False)))
    net.nodes[1].attribute.append(helper.make_attribute("training_mode", 0))
    steps = net.add("Add", net.add("Cast", x, to=TensorProto.INT64), net.ints(1))
    mask = net.add("Cast", net.add("Greater", steps, net.ints(-1)), to=TensorProto.FLOAT)
    y = net.add("Mul", x, mask)
    net.channels[y] = 8
    y = net.add("Dropout", net.block(y, 8), net.const(0.5), net.const(False, np.bool_))
    y = net.add("Cast", net.add("Cast", y, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)
    net.channels[y] = 8
    return net.model(net.conv(net.add("Cast", y, to=TensorProto.FLOAT), 4))


def _with_a_branch_that_reads_weights():
    """Build an If with two weights: one of the outer graph, which an outer Conv reads too, and one of a branch."""
    net = Net()
    x = net.block("images", 8)
    weight = net.const(net.normal(8, 8, 1, 1, scale=0.3), name="outside")
    branches = {}
    for name, read in (("then_branch", weight), ("else_branch", "inside")):
        node = helper.make_node("Conv", [x, read], [f"{name}_out"], f"{name}_conv")
        result = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        inside = numpy_helper.from_array(net.normal(8, 8, 1, 1, scale=0.3), "inside")
        branches[name] = helper.make_graph([node], name, [], [result], [inside] if read == "inside" else [])
    bright = net.add("Greater", net.add("ReduceMax", "images", keepdims=0), net.const(0.5))
    y = net.add("Add", net.add("If", bright, **branches), net.add("Conv", x, weight, name="reads_it_too"))
    net.channels[y] = 8
    return net.model(net.conv(y, 4))


def _with_a_loop():
    net = Net()
    x = net.block("images", 8)
    shape = ["a", "b", "c", "d"]
    values = [("number", TensorProto.INT64, []), ("on", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, shape)]
    results = [("still_on", TensorProto.BOOL, []), ("halved", TensorProto.FLOAT, shape)]
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Mul", ["x", "half"], ["halved"])],
        "body",
        *([helper.make_tensor_value_info(*value) for value in some] for some in (values, results)),
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )
    y = net.add("Loop", net.const(2, np.int64), net.const(True, np.bool_), x, body=body)
    net.channels[y] = 8
    return net.model(net.conv(y, 4), shape=[1, 4, 32, 32])


def _with_functions():
    """Make each SiLU a call of a model-local function, as PyTorch's newer exporter writes them."""
    model = copy(_small(opset=17))
    gates = {node.output[0]: node for node in model.graph.node if node.op_type == "Sigmoid"}
    for node in model.graph.node:
        if node.op_type == "Mul" and node.input[1] in gates:
            node.op_type, node.domain = "SiLU", "local"
            del node.input[1]
    for gate in gates.values():
        model.graph.node.remove(gate)
    body = [helper.make_node("Sigmoid", ["x"], ["gate"]), helper.make_node("Mul", ["x", "gate"], ["y"])]
    model.functions.append(helper.make_function("local", "SiLU", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def _with_outputs_of_all_kinds():
    """Add outputs: a copy of the input, a copy of an output, and inner tensors with consumers."""
    twice = helper.make_node("Identity", ["output"], ["again"], "twice")
    through = helper.make_node("Identity", ["images"], ["same"], "through")
    kinds = [("again", [1, 4, 32, 32]), ("same", [1, 3, 32, 32]), ("conv1_out", [1, 8, 32, 32])]
    outputs = [(name, TensorProto.FLOAT, shape) for name, shape in [*kinds, ("mul0_out", [1, 8, 32, 32])]]
    return _appended(_small(), twice, through, outputs=outputs)


def _in_opset(opset, ir_version=8):
    model = _small(opset=min(opset, 13))
    model.opset_import[0].version, model.ir_version = opset, ir_version
    return model


def _with_other_domains():
    model = _small()
    model.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)])
    return model


def _with_other_types_of_constants():
    """Add constants of other types that no node reads."""
    kinds = {"text": np.array(["a"], object), "complex": np.complex64([1j]), "double": np.float64([1.5])}
    return _appended(_small(), initializers=[numpy_helper.from_array(v, name) for name, v in kinds.items()])


def _of_size(batch, height, width):
    model = copy(silu_chain())
    for tensor in (*model.graph.input, *model.graph.output):
        for axis, size in ((0, batch), (2, height), (3, width)):
            tensor.type.tensor_type.shape.dim[axis].dim_value = size
    return model


WAYS = {
    "no node names": lambda: with_node_names(_small(), []),
    "one name for all nodes": lambda: with_node_names(_small(), ["node"] * 100),
    "nodes named like tensors": _named_like_tensors,
    "no graph name": _without_graph_name,
    "Constant nodes of each kind": _with_a_constant_of_each_kind,
    "IR version 3, opset 11": lambda: _of_ir_version_3(11),
    "IR version 3, opset 13": lambda: _of_ir_version_3(13),
    "shared bias": _with_shared_bias,
    "weights as outputs": _with_weights_as_outputs,
    "zero-size tensors": _with_empty_parts,
    "inputs left out": _with_inputs_left_out,
    "other arithmetic": _with_other_arithmetic,
    "a branch that reads weights": _with_a_branch_that_reads_weights,
    "a loop": _with_a_loop,
    "functions": _with_functions,
    "outputs of all kinds": _with_outputs_of_all_kinds,
    "opset 7": lambda: _in_opset(7, 4),
    "opset 12": lambda: _in_opset(12),
    "opset 18": lambda: _in_opset(18),
    "opset 22": lambda: _in_opset(22, 10),
    "opset 24": lambda: _in_opset(24, 11),
    "IR version of tomorrow": lambda: _in_opset(17, 99),
    "other domains": _with_other_domains,
    "constants of other types": _with_other_types_of_constants,
    "batch of 4": lambda: _of_size(4, 32, 32),
    "not square": lambda: _of_size(1, 32, 48),
    "dynamic": lambda: with_metadata(silu_chain(dynamic=True)),
}
"""Equivalent forms of a model that exporters write."""


PAIRS = [(way, target) for k, way in enumerate(WAYS) for target in (RUN[0], RUN[1 + k % 2])]
"""Each form with two targets: how a model is read does not depend on the target."""


@pytest.mark.slow
@pytest.mark.parametrize(("way", "target"), PAIRS)
def test_is_quantized(way, target):
    model = WAYS[way]()
    found = quantized(model, target, method="minmax")
    assert len(found.facts[Plan].layers) >= 1
    values = feed(model, 9, {"batch": 2, "height": 32, "width": 48})
    expected = run(repair(model), values)["output"]
    # 33.9 to 46.5 dB.
    assert sqnr(expected, run(found.model, values)["output"]) > 33


def test_a_node_that_inference_refuses_is_no_hindrance_where_nobody_reads_it():
    sizes = numpy_helper.from_array(np.array([7, -1, 5], np.int64), "sizes")
    bad = helper.make_node("Reshape", ["output", "sizes"], ["nothing"], "bad")
    found, wanted = (quantized(m, "ort") for m in (_appended(_small(), bad, initializers=[sizes]), _small()))
    assert found.model.graph.node == wanted.model.graph.node


@pytest.mark.slow
@pytest.mark.parametrize("target", RUN)
def test_an_operator_of_tensorrt_at_the_end_stays_and_what_stands_before_it_is_quantized(target, caplog):
    plain, given = csp(), with_opaque_nms(csp())
    found, wanted = quantized(given, target), quantized(plain, target)
    assert "does not know 'nms' (TRT.EfficientNMS_TRT)" in caplog.text
    assert found.facts[Plan] == wanted.facts[Plan]
    # 32.0 to 35.1 dB.
    assert found.facts[Verification].simulated["output"] > 31
    bare = copy(wanted.model).graph
    assert list(found.model.graph.node)[: len(bare.node)] == list(bare.node)
    assert ops(found.model)[len(bare.node) :] == ["Constant", "EfficientNMS_TRT", "Add"]


@pytest.mark.parametrize("domain", ["TRT", ""])
def test_a_plan_and_a_cut_need_no_operator_of_tensorrt(domain):
    model = with_opaque_nms(csp(), domain)
    assert plan(model)[0] == plan(csp())[0]
    assert cut_decode(model).graph == cut_decode(csp()).graph


def _as_paddle_detection_exports(opset=13):
    """Build a net that reads the picture, its scale factor and its size; the output depends on all three."""
    net = Net(opset=opset)
    x = net.conv(net.block("images", 8), 4, name="convolved")
    scale = net.add("Mul", net.reshape("scale_factor", -1, 2, 1, 1), net.reshape("im_shape", -1, 2, 1, 1))
    y = net.add("Mul", x, net.concat(scale, scale))
    pairs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("im_shape", "scale_factor")]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])
    result = helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 4, 32, 32])
    graph = helper.make_graph(net.nodes, "net", [pairs[0], image, pairs[1]], [result], net.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), y


@pytest.mark.slow
@pytest.mark.parametrize("target", RUN)
@pytest.mark.parametrize("source", ["scenes", "pictures", "feeds"])
def test_what_paddle_detection_reads_beside_a_picture_is_given(tmp_path, target, source):
    model, output = _as_paddle_detection_exports()
    data = None
    if source == "pictures":
        data = str(tmp_path)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(tmp_path / "a.png")
    elif source == "feeds":
        data = [{**feed(model), "im_shape": np.float32([[32, 32]]), "scale_factor": np.float32([[1, 1]])}]
    found = quantize(model, data, Config(target=target, count=2, method="minmax"))
    # 39.3 to 44.1 dB.
    assert found.facts[Verification].simulated[output] > 38
    assert [t.name for t in found.model.graph.input] == ["im_shape", "images", "scale_factor"]


@functools.cache
def _quantized_csp(target):
    return quantize(csp(size=64), None, Config(target=target, count=4))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "targets"), [("UINT8", RUN[:2]), ("FLOAT", RUN[1:]), ("FLOAT16", RUN[::-2])])
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
def test_levels_and_channels_last_change_nothing_else(channels_last, kind, targets):
    """YOLO-NAS and TensorFlow's converters write such inputs: the same layers run on integers, with the same ranges."""
    model, target = with_levels(csp(size=64), channels_last, TensorProto.DataType.Value(kind)), targets[channels_last]
    expected, found = _quantized_csp(target), quantize(model, None, Config(target=target, count=4))
    onnx.checker.check_model(found.model, full_check=True)
    assert list(found.model.graph.input) == list(model.graph.input)
    assert found.detector.preprocess.value_range == (0, 255)
    assert found.warnings == expected.warnings
    assert found.facts[Plan].layers == expected.facts[Plan].layers
    [there, here] = [x.facts[Verification] for x in (expected, found)]
    assert here.fused == there.fused
    assert here.sqnr["output"] == pytest.approx(there.sqnr["output"], abs=0.5)


def test_other_inputs_need_feeds(tmp_path):
    model, _ = _as_paddle_detection_exports()
    for tensor in model.graph.input:
        tensor.name = tensor.name.replace("im_shape", "size")
    for node in model.graph.node:
        node.input[:] = [name.replace("im_shape", "size") for name in node.input]
    with pytest.raises(DataError, match="synthetic scenes can feed one input only, the model has images, size, scale"):
        quantize(model)
    np.savez(tmp_path / "feeds.npz", **{name: np.repeat(array, 2, axis=0) for name, array in feed(model).items()})
    assert quantize(model, str(tmp_path / "feeds.npz")).facts[Plan].layers
