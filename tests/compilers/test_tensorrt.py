import json
import re
import sys

import pytest
from graphs import NARROW_TENSORRT, csp, quantized, quantized_halves, rewrite
from installed import interpreter, needs_compiler

from onnxq.compilers.base import Job, Ran
from onnxq.compilers.layers import file_layers
from onnxq.compilers.tensorrt import TensorRtRtx, kernels
from onnxq.errors import ConfigError, ModelError
from onnxq.passes.scales_to_batch_norm import ScalesToBatchNorm
from onnxq.targets import TARGETS


def tensor(kind, shape="1,16,16,16"):
    return f"{{ Name: t, Dimensions: [{shape}], Strides: [1,1], StrideOrder: [3,0,2,1], Datatype: {kind} }}"


def row(kind, inputs, constants, nodes):
    """A line of the list of kernels, as TensorRT-RTX 1.7.1 prints it."""
    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {nodes[0]}_myl0_1, LayerType: {kind}, Inputs: [ {', '.join(map(tensor, inputs))}], "
        f"Constants: [ {', '.join(map(tensor, constants))}], Outputs: [ {tensor('Float')}], "
        f"TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: {metadata}"
    )


def ran(layer, *rows):
    found = kernels("\n".join(["[VERBOSE] Engine generation completed", "Layers:", *rows, "I/O Tensors:"]))
    return [kernel.ran() for kernel in found if kernel.computes(layer)]


def test_a_conv_of_integers_whose_bias_is_in_another_kernel():
    rows = [
        row("kgen", ["Float"], ["Float"], ["x_Q"]),
        row("correlation", ["Int8"], ["Int8", "Float", "Float"], ["conv", "x_DQ", "w_DQ"]),
        row("kgen", ["Float"], ["Float", "Float"], ["conv", "relu"]),
    ]
    assert ran("conv", *rows) == [Ran("int8 x int8", True)]


def test_a_conv_whose_weight_was_dequantized_before():
    rows = [
        row("kgen", [], ["Float", "Int8"], ["w_DQ"]),
        row("correlation", ["Float", "Float"], ["Float"], ["conv", "relu"]),
    ]
    assert ran("conv", *rows) == [Ran("float32", False)]


def test_half_floats():
    assert ran("conv", row("correlation", ["Half"], ["Half", "Float"], ["conv"])) == [Ran("float16", False)]


def test_a_product_that_reads_integers_and_may_compute_in_float():
    [found] = ran("gemm", row("runtime_fusion", ["Int8"], ["Int8", "Float"], ["w_DQ", "gemm", "x_DQ"]))
    assert not found.on_integers
    assert found.reason


def test_a_name_that_begins_like_another():
    rows = [row("correlation", ["Int8"], ["Int8"], ["conv1"]), row("correlation", ["Float"], ["Float"], ["conv"])]
    assert ran("conv", *rows) == [Ran("float32", False)]


def test_the_bytes_that_a_kernel_moves_are_those_of_its_inputs_and_outputs():
    rows = [row("correlation", ["Int8"], ["Int8", "Float"], ["conv"]), row("kgen", ["Half", "Int8"], [], ["relu"])]
    found = kernels("\n".join(rows))
    values = 16 * 16 * 16
    assert [kernel.moved for kernel in found] == [(1 + 4) * values, (2 + 1 + 4) * values]
    assert [kernel.outputs for kernel in found] == [("Float",), ("Float",)]


def test_where_it_is_not_installed_a_line_tells_how_to_get_it(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(ConfigError) as raised:
        TensorRtRtx().require(str(python))
    assert str(raised.value) == "TensorRT-RTX is not installed; pip install 'onnxq[tensorrt]'"


@pytest.fixture
def build(tmp_path):
    """Build a model with TensorRT-RTX."""

    def run(model, device=""):
        python = interpreter("tensorrt-rtx") or sys.executable
        return TensorRtRtx().build(Job(model, file_layers(model), (), tmp_path, device, python, 120.0))

    return run


@pytest.mark.slow
@needs_compiler("tensorrt-rtx")
@pytest.mark.parametrize("device", ["", "SM120"])
def test_every_wanted_layer_runs_on_integers(build, device):
    model, _ = quantized(csp(), NARROW_TENSORRT)
    built = build(model, device)
    assert {layer.name: layer.is_wanted for layer in file_layers(model)} == {
        name: ran.on_integers for name, ran in built.layers.items()
    }
    assert built.outputs == ()
    assert json.dumps(built.version)


@pytest.mark.slow
@needs_compiler("tensorrt-rtx")
def test_a_float16_network_moves_less_with_one_scale_for_each_weight(build):
    several = quantized_halves(csp())
    one, edits = rewrite(ScalesToBatchNorm(), several)
    wanted = [layer.name for layer in file_layers(several) if layer.is_wanted]
    assert edits == len(wanted) > 0
    before, after = build(several), build(one)
    assert all(built.layers[name].on_integers for built in (before, after) for name in wanted)
    assert moved(after) < 0.9 * moved(before)


def moved(built):
    """Return the MB that the kernels of an engine read and write."""
    return float(re.search(r"read and write ([\d.]+) MB", built.notes[1])[1])


@pytest.mark.slow
@needs_compiler("tensorrt-rtx")
def test_no_layer_runs_on_integers_on_turing(build):
    built = build(quantized(csp(), NARROW_TENSORRT)[0], "SM75")
    assert not any(ran.on_integers for ran in built.layers.values())
    assert "no kernels for SM75" in {ran.reason[13:] for ran in built.layers.values()}


@pytest.mark.slow
@needs_compiler("tensorrt-rtx")
def test_a_device_that_it_does_not_know(build):
    with pytest.raises(ModelError, match="no compute capability SM76; it has "):
        build(quantized(csp(), NARROW_TENSORRT)[0], "SM76")


@pytest.mark.slow
@needs_compiler("tensorrt-rtx")
def test_a_file_that_it_refuses_is_told_with_the_rule(build):
    with pytest.raises(ModelError) as raised:
        build(quantized(csp(), TARGETS["generic"])[0])
    assert "shiftIsAllZeros" in str(raised.value)
    assert raised.value.args[-1].startswith("the first rule of TensorRT that it breaks: QuantizeLinear ")
