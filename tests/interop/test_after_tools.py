"""Tools that users run on a finished file keep its numbers bit for bit: simplifiers, optimizers, version converters.

onnx's version converter and onnxruntime's float16 converter are always installed. The others are tested in the versions
of requirements.txt, and skipped without them.
"""

import functools
import importlib.metadata
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import copy, feed, run, session, sqnr, v8
from onnx import TensorProto, version_converter

from onnxq import Config, quantize
from onnxq.compilers.layers import file_layers
from onnxq.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]

PINNED = dict(line.split("==") for line in (Path(__file__).parent / "requirements.txt").read_text("utf-8").splitlines())
"""Package -> version."""

OPSETS = (19, 21, 23, 25)
"""What files are converted to."""

HALF = "-fp16"
"""Suffix of targets whose files compute in float16."""

KINDS = (*TARGETS, f"tensorrt{HALF}")


def each(kinds):
    """Return the mark that runs a test on a built network and on the demo for each of these kinds."""
    demo = [pytest.param(f"demo {kind}", marks=pytest.mark.slow) for kind in kinds]
    return pytest.mark.parametrize("file", [f"v8 {kind}" for kind in kinds] + demo)


each_file = each(KINDS)


def needs(package):
    """Return the mark of tests that run a pinned package."""
    try:
        is_there = importlib.metadata.version(package) == PINNED[package]
    except importlib.metadata.PackageNotFoundError:
        is_there = False
    return pytest.mark.skipif(not is_there, reason=f"{package}=={PINNED[package]} is not installed")


@functools.cache
def _made(file):
    name, kind = file.split()
    model = v8() if name == "v8" else onnx.load(ROOT / "models" / "demo.onnx")
    target, is_half = kind.removesuffix(HALF), kind.endswith(HALF)
    config = Config(target=target, float_type="fp16" if is_half else "fp32")
    made = quantize(copy(model), [feed(model, seed) for seed in range(2)], config).model
    return made, run(made)


def finished(file):
    """Return a quantized file, a copy, and the outputs without optimizations."""
    model, outputs = _made(file)
    return copy(model), outputs


def opset(model):
    [version] = [entry.version for entry in model.opset_import if entry.domain == ""]
    return version


def later_opsets(model):
    """Return the versions that a file can be raised to with the same numbers."""
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    is_half = any(t.name in scales and t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)
    return [version for version in OPSETS if opset(model) < version and not (is_half and version > 21)]


def metadata(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def assert_kept(before, expected, after):
    """Assert that a file computes the same bits, and has the same layers on integers, metadata and types."""
    onnx.checker.check_model(after, full_check=True)
    found = run(after, feed(before))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name
    assert any(layer.is_wanted for layer in file_layers(before))
    layers, kept = ({layer.name: layer.types for layer in file_layers(model)} for model in (before, after))
    assert kept == layers
    assert metadata(before).items() <= metadata(after).items()
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


@each_file
def test_the_version_converter_of_onnx(file):
    model, expected = finished(file)
    versions = later_opsets(model)
    assert versions
    for version in versions:
        after = version_converter.convert_version(copy(model), version)
        assert opset(after) == version
        assert_kept(model, expected, after)


@needs("onnxscript")
@each_file
def test_the_version_converter_of_onnxscript(file):
    import onnx_ir
    from onnxscript import version_converter as script

    model, expected = finished(file)
    for version in later_opsets(model):
        working = onnx_ir.from_proto(model)
        script.convert_version(working, version, fallback=False)
        assert opset(onnx_ir.to_proto(working)) == version
        assert_kept(model, expected, onnx_ir.to_proto(working))


@needs("onnxscript")
@each_file
def test_the_optimizer_of_onnxscript(file):
    from onnxscript import optimizer

    model, expected = finished(file)
    assert_kept(model, expected, optimizer.optimize(copy(model)))


@needs("onnxslim")
@each_file
def test_onnxslim(file):
    import onnxslim

    model, expected = finished(file)
    assert_kept(model, expected, onnxslim.slim(copy(model)))


@needs("onnxsim")
@each_file
def test_onnxsim(file):
    import onnxsim

    model, expected = finished(file)
    after, is_valid = onnxsim.simplify(copy(model))
    assert is_valid
    assert_kept(model, expected, after)


@needs("onnxoptimizer")
@each_file
@pytest.mark.parametrize("passes", ["default", "fuse and eliminate"])
def test_onnxoptimizer(file, passes):
    import onnxoptimizer

    model, expected = finished(file)
    chosen = None if passes == "default" else onnxoptimizer.get_fuse_and_elimination_passes()
    assert_kept(model, expected, onnxoptimizer.optimize(copy(model), chosen))


@pytest.mark.parametrize("name", ["v8", pytest.param("demo", marks=pytest.mark.slow)])
def test_float16_scales_beyond_opset_21_need_a_precision(name):
    model, expected = finished(f"{name} tensorrt{HALF}")
    after = version_converter.convert_version(copy(model), 23)
    found = run(after, feed(model))
    assert any(not np.array_equal(found[key], expected[key]) for key in expected)
    for node in after.graph.node:
        if node.op_type == "QuantizeLinear":
            node.attribute.append(onnx.helper.make_attribute("precision", TensorProto.FLOAT))
    assert_kept(model, expected, after)


class TestFloat16Converters:
    """They take files from opset 19 on, in which scales may be float16."""

    @pytest.fixture(params=["onnxruntime", pytest.param("common", marks=needs("onnxconverter-common"))])
    def convert(self, request):
        if request.param == "common":
            from onnxconverter_common.float16 import convert_float_to_float16
        else:
            from onnxruntime.transformers.float16 import convert_float_to_float16
        return convert_float_to_float16

    @each(TARGETS)
    def test_a_file_of_opset_19(self, convert, file):
        model, expected = finished(file)
        raised = version_converter.convert_version(model, max(19, opset(model)))
        after = convert(raised, keep_io_types=True)
        found = run(after, feed(model))
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            assert sqnr(array, found[name]) > 40

    def test_the_lines_of_the_page(self, tmp_path, monkeypatch):
        model, expected = finished("v8 ort")
        onnx.save(model, tmp_path / "model.int8.onnx")
        monkeypatch.chdir(tmp_path)
        [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "drop-in.md").read_text("utf-8"), re.DOTALL)
        exec(code, {})
        found = run(onnx.load("model.int8.fp16.onnx"), feed(model))
        assert all(sqnr(array, found[name]) > 40 for name, array in expected.items())

    @pytest.mark.parametrize("kind", ["ort", "generic"])
    def test_a_file_of_an_earlier_opset_is_invalid_unless_its_pairs_are_left_out(self, convert, kind):
        model, expected = finished(f"v8 {kind}")
        assert opset(model) < 19
        with pytest.raises(Exception, match="INVALID_GRAPH"):
            session(convert(copy(model), keep_io_types=True))
        pairs = [node.name for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        after = convert(copy(model), keep_io_types=True, node_block_list=pairs)
        found = run(after, feed(model))
        assert all(sqnr(array, found[name]) > 40 for name, array in expected.items())
