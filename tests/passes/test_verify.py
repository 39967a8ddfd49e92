import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cpu import sums_exactly
from graphs import (
    NARROW_TENSORRT,
    Net,
    attention,
    copy,
    csp,
    depthwise_net,
    leaky_net,
    nodes,
    ops,
    pan,
    quantized,
    quantizing,
    relu_net,
    shared_weights,
    silu_chain,
    sppf,
    v5,
    v8,
    v10,
    yolox,
)
from installed import needs_openvino
from onnx import numpy_helper
from verification import ROOM, verified, verify, widths

from onnxq.errors import ModelError
from onnxq.facts import Plan, Verification
from onnxq.ir import Model
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.passes.verify import Verify
from onnxq.pipeline import Analysis, Pipeline
from onnxq.runtime import RUNTIMES, OnnxRuntime, OpenVino
from onnxq.runtime.session import open_session
from onnxq.targets import GENERIC, OPENVINO, ORT, TENSORRT


def really_run(model):
    """The graph that onnxruntime runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, optimized_path=path)
        return onnx.load(path)


def integer_layers(model):
    """Return the number of layers that onnxruntime runs on integers."""
    return sum(op in ("QLinearConv", "QGemm", "MatMulIntegerToFloat") for op in ops(really_run(model)))


# --- what onnxruntime fuses -------------------------------------------------------------------------------------------

FUSED = {
    "silu_chain": (silu_chain, {}, 3),
    "csp": (csp, {}, 5),
    "csp with BatchNormalization": (csp, {"batch_norm": True}, 5),
    "csp at opset 11": (csp, {"opset": 11}, 5),
    "csp of dynamic size": (csp, {"dynamic": True}, 5),
    "sppf": (sppf, {}, 2),
    "pan": (pan, {}, 5),
    "relu": (relu_net, {}, 2),
    "leaky": (leaky_net, {}, 3),
    "depthwise": (depthwise_net, {}, 2),
    "attention": (attention, {}, 1),
    "shared weights": (shared_weights, {}, 3),
    "v5": (v5, {}, 5),
    "v8": (v8, {}, 11),
    "v10": (v10, {}, 11),
}


@pytest.mark.slow
@pytest.mark.parametrize("weight_bits", [8, 7])
@pytest.mark.parametrize("kind", FUSED)
def test_every_planned_layer_is_one_that_onnxruntime_runs_on_integers(kind, weight_bits):
    build, options, layers = FUSED[kind]
    after, plan, checked = verified(build(**options), **widths(weight_bits))
    assert len(plan.layers) == layers
    assert (checked.fused, checked.unfused) == (layers, ())
    assert checked.warnings == () or not sums_exactly(OnnxRuntime, weight_bits)
    assert integer_layers(after) == layers


def test_every_planned_layer_of_yolox_is_fused():
    after, plan, checked = verified(yolox())
    assert (checked.fused, checked.unfused) == (len(plan.layers), ())
    assert integer_layers(after) == len(plan.layers) > 3


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("build", [csp, sppf, pan, relu_net])
def test_narrow_grids_are_fused_as_well(build, bits):
    after, plan, checked = verified(build(), act_bits=bits, weight_bits=bits)
    assert "Clip" in ops(after)
    assert (checked.fused, checked.unfused) == (len(plan.layers), ())


def test_symmetric_activations_are_fused_as_well():
    assert verified(csp(), symmetric=True)[2].unfused == ()


EXCLUDABLE = [
    (build, name)
    for build in (csp, pan, leaky_net)
    for name, node in nodes(build()).items()
    if node.op_type == "Conv" and not name.startswith(("conv0", "last"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "name"), EXCLUDABLE, ids=lambda value: getattr(value, "__name__", value))
def test_a_layer_kept_float_is_one_that_onnxruntime_runs_in_float(build, name):
    after, plan, checked = verified(build(), exclude=[name])
    assert name not in plan.layers
    assert checked.unfused == ()
    assert integer_layers(after) == len(plan.layers)


def reading_integers(follow):
    """A layer `float` whose input others read as integers, and what `follow` makes of its output.

    It reads every second channel only. Runtimes that quantize it by themselves take 8 bits: on CPUs that add products
    in pairs in 16 bits there is room for one.
    """
    net = Net()
    x = net.block(net.block("images", 8), 8)
    float_weight = net.normal(8, 8, 3, 3, scale=0.2)
    float_weight[:, 1::2] = 0
    y = net.add("Conv", x, net.const(float_weight), name="float", pads=[1] * 4)
    y = follow(net, y)
    net.channels[y] = 8
    z = net.add("Add", net.silu(net.conv(y, 8, name="behind")), net.silu(net.conv(x, 8, name="beside")))
    net.channels[z] = 8
    return net.model(net.conv(z, 4, name="last"))


def test_a_layer_kept_float_that_reads_integers_stays_float_in_front_of_a_silu():
    after, plan, checked = verified(reading_integers(lambda net, y: net.pool(net.silu(y))), exclude=["float"], **ROOM)
    assert "float" in plan.skipped
    assert checked.warnings == ()
    assert integer_layers(after) == len(plan.layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "follow",
    [
        lambda net, y: y,
        lambda net, y: net.add("Relu", y),
        lambda net, y: net.add("Clip", y, net.const(0), net.const(6)),
        lambda net, y: net.pool(y),
        lambda net, y: net.add("Transpose", y, perm=[0, 1, 3, 2]),
        lambda net, y: net.reshape(net.reshape(y, 1, 8, 1024), 1, 8, 32, 32),
    ],
    ids=["Conv", "Relu", "Clip", "MaxPool", "Transpose", "Reshape"],
)
def test_a_layer_kept_float_that_onnxruntime_quantizes_by_itself_is_told(follow):
    after, plan, checked = verified(reading_integers(follow), exclude=["float"], **ROOM)
    assert "float" in plan.skipped
    assert checked.unfused == ()
    assert integer_layers(after) == len(plan.layers) + 1
    assert len(checked.warnings) == 1
    assert "onnxruntime quantizes 1 layer" in checked.warnings[0]


def test_the_qkv_conv_of_an_attention_block_can_be_kept_float():
    after, plan, _ = verified(attention(), exclude=["conv1"])
    assert integer_layers(after) == len(plan.layers)


class Forgetful(Analysis[Plan]):
    """The plan of another pass, without one of its points."""

    name = "forgetful"
    gives = Plan

    def __init__(self, tensor, choose):
        self._tensor, self._choose = tensor, choose
        self.needs = choose.needs

    def run(self, model, facts):
        plan = self._choose.run(model, facts)
        return replace(plan, points=tuple(p for p in plan.points if p.tensor != self._tensor))


@pytest.mark.parametrize("name", ["conv2", "conv3"])
def test_a_layer_that_is_not_fused_is_named(name):
    model = csp()
    steps = [
        Forgetful(f"{name}_out", step) if isinstance(step, PlanQuantization) else step
        for step in [*quantizing(model), Verify(model, ORT)]
    ]
    checked = Pipeline(steps).run(Model(copy(model)))[Verification]
    assert checked.unfused == (name,)
    assert checked.fused == 4
    assert checked.warnings == (f"onnxruntime runs these layers in float: {name}",)


def test_all_layers_that_are_not_fused_are_named_in_order():
    model = pan()
    after, facts = quantized(model)
    for k in (1, 3):
        made = nodes(after)[f"conv{k}_out_DequantizeLinear"].output[0]
        for reader in after.graph.node:
            reader.input[:] = [f"conv{k}_out" if tensor == made else tensor for tensor in reader.input]
    checked = verify(model, after, facts)
    assert checked.unfused == ("conv1", "conv3")
    assert "conv1, conv3" in checked.warnings[0]


@pytest.mark.parametrize("target", [TENSORRT, GENERIC], ids=lambda t: t.name)
def test_layers_are_not_counted_where_the_target_cannot_run_here(target):
    _, _, checked = verified(csp(), target, **({} if target is TENSORRT else ROOM))
    assert (checked.runtime, checked.fused, checked.unfused, checked.warnings) == ("", None, (), ())
    assert checked.checked_in == f"onnxruntime {onnxruntime.__version__}"


def test_without_openvino_onnxruntime_compares_and_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(OpenVino, "is_installed", classmethod(lambda cls: False))
    _, _, checked = verified(csp(), OPENVINO)
    assert (checked.runtime, checked.fused) == ("", None)
    assert checked.sqnr["output"] > 20


# --- what OpenVINO runs on integers -----------------------------------------------------------------------------------


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("weight_bits", [8, 7])
@pytest.mark.parametrize("build", [csp, pan, leaky_net, v5, v8, yolox], ids=lambda b: b.__name__)
def test_every_planned_layer_is_one_that_openvino_runs_on_integers(build, weight_bits):
    _, plan, checked = verified(build(), OPENVINO, **widths(weight_bits))
    assert checked.runtime == "OpenVINO"
    assert (checked.fused, checked.unfused) == (len(plan.layers), ())
    assert checked.warnings == () or not sums_exactly(OpenVino, weight_bits)


@needs_openvino
def test_a_layer_that_openvino_runs_in_float_is_named():
    model = csp()
    after, facts = quantized(model, OPENVINO, **ROOM)
    conv = nodes(after)["conv3"]
    made_by = {name: node for node in after.graph.node for name in node.output}
    conv.input[0] = made_by[made_by[conv.input[0]].input[0]].input[0]
    checked = verify(model, after, facts, OPENVINO)
    assert checked.unfused == ("conv3",)
    assert checked.warnings == ("OpenVINO runs these layers in float: conv3",)


@needs_openvino
def test_what_openvino_cannot_load_either_way_is_compared_in_onnxruntime():
    net = Net()
    rows = net.add("Transpose", net.reshape(net.conv(net.block("images", 8), 4), 1, 4, -1), perm=[0, 2, 1])
    picked = net.add("GatherElements", rows, net.const([[[0, 1], [2, 3]]], np.int64), axis=1)
    _, _, checked = verified(net.model(picked), OPENVINO)
    assert checked.fused is None
    assert checked.sqnr["output"] > 20
    assert len(checked.warnings) == 1
    assert checked.warnings[0].startswith("OpenVINO cannot load the model: Shapes [1,1024,4] and [1,2,2] are not")
    assert checked.warnings[0].endswith("; it does not load the float model either. Compared in onnxruntime")


class FloatOnly(OpenVino):
    """Refuses quantized models."""

    def __init__(self, model, *, threads=0):
        if "QuantizeLinear" in ops(model):
            raise ModelError("it cannot load this")
        super().__init__(model, threads=threads)


@needs_openvino
def test_what_openvino_cannot_load_because_of_its_integers_is_refused(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "openvino", FloatOnly)
    with pytest.raises(ModelError, match="it cannot load this"):
        verified(csp(), OPENVINO)


class Shortened(OnnxRuntime):
    """Gives boxes of another number than the file declares."""

    def run(self, feed):
        return {name: values[..., :-1] for name, values in super().run(feed).items()}


def test_outputs_of_another_shape_are_not_compared_but_warned_of(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "ort", Shortened)
    _, _, checked = verified(csp())
    assert checked.sqnr == {}
    [warning] = checked.warnings
    assert "'output' the shape (1, 4, 16, 15), not that of the file, (1, 4, 16, 16)" in warning
    assert checked.simulated["output"] > 20


@pytest.mark.parametrize(("bits", "low"), [(8, False), (2, True)])
def test_outputs_of_which_a_fifth_is_noise_are_warned_of(bits, low):
    _, _, checked = verified(csp(), weight_bits=bits, act_bits=max(bits, 3))
    warned = [text for text in checked.warnings if "much may be lost" in text]
    assert (checked.simulated["output"] < 7) == low
    assert len(warned) == low
    if warned:
        assert f"output 'output' has only {checked.simulated['output']:.1f} dB" in warned[0]


@pytest.mark.parametrize(("bits", "low"), [(8, False), (2, True)])
def test_scores_are_judged_beside_boxes_in_pixels(bits, low):
    model = v8()
    for tensor in model.graph.initializer:  # as of a detector: few scores are not near zero
        if tensor.name.startswith("cls"):
            values = numpy_helper.to_array(tensor)
            rare = values - 6 if values.ndim == 1 else 20 * values
            tensor.CopyFrom(numpy_helper.from_array(rare.astype(np.float32), tensor.name))
    _, _, checked = verified(model, include=["re:cls"], bits=[("re:cls", (bits, bits))])
    assert checked.sqnr.keys() == {"output"}
    assert checked.simulated["output"] > 25
    warned = [text for text in checked.warnings if "much may be lost" in text]
    assert len(warned) == low
    assert all("output 'output[:, 4:7]' has only" in text for text in warned)


class Rounded(OnnxRuntime):
    """Rounds its outputs differently."""

    def run(self, feed):
        return {name: values * np.float32(1 + 1e-5) for name, values in super().run(feed).items()}


def test_the_rounding_of_floats_is_no_error(monkeypatch):
    """Nothing is lost if the last layer returns its bias for every input."""
    model = csp()
    for weight in model.graph.initializer:
        if weight.name == "last_weight":
            weight.CopyFrom(numpy_helper.from_array(np.zeros(weight.dims, np.float32), weight.name))
    monkeypatch.setitem(RUNTIMES, "ort", Rounded)
    _, _, checked = verified(model)
    assert checked.simulated["output"] > 200
    assert 90 < checked.sqnr["output"] < 110
    assert checked.warnings == ()


# --- TensorRT's parser ------------------------------------------------------------------------------------------------


def test_what_tensorrt_would_not_read_is_refused_with_the_first_faults_and_their_number():
    after, facts = quantized(csp(), OPENVINO)
    with pytest.raises(ModelError) as caught:
        verify(csp(), after, facts, TENSORRT)
    lines = str(caught.value).splitlines()
    assert lines[0] == "TensorRT would not read the quantized model as it is meant:"
    assert lines[1].startswith("QuantizeLinear images_QuantizeLinear: its integers are UINT8")
    assert len(lines) == 5
    assert re.fullmatch(r"and \d+ more", lines[4])
    assert verify(csp(), after, facts, OPENVINO).sqnr["output"] > 20


def test_a_single_fault_is_told_alone():
    after, facts = quantized(csp(), NARROW_TENSORRT)
    nodes(after)["conv1"].input[0] = "mul0_out"
    with pytest.raises(ModelError) as caught:
        verify(csp(), after, facts, NARROW_TENSORRT)
    assert str(caught.value).splitlines()[1:] == [
        "Conv conv1: its weight is quantized, its data is not; quantize its data too, or exclude it"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("build", [csp, sppf, pan, attention, relu_net, leaky_net, depthwise_net, v8, yolox])
def test_what_is_made_for_tensorrt_is_read_by_it(build):
    assert min(verified(build(), NARROW_TENSORRT)[2].sqnr.values()) > 15
