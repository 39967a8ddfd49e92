"""Whatever an exporter wrote is quantized well, or refused with a word that says why: small graphs, all the way."""

import numpy as np
import onnx
import pytest
from graphs import NARROW_TENSORRT, csp, feed, run, sqnr, with_float16

from onnxq import Config, quantize
from onnxq.facts import Checked, Plan
from onnxq.targets import TARGETS

RUN = ("ort", "openvino", "tensorrt")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    """Graphs have few channels here."""
    monkeypatch.setattr("onnxq.passes.TARGETS", {**TARGETS, "tensorrt": NARROW_TENSORRT})


def quantized(model, target, feeds=None, **options):
    """The result, valid and with the float model's inputs and outputs; all integer layers run as such."""
    feeds = feeds or [feed(model, seed, {"batch": 1, "height": 32, "width": 32}) for seed in range(2)]
    found = quantize(model, feeds, Config(target=target, **options))
    onnx.checker.check_model(found.model, full_check=True)
    stored = {w.name for w in model.graph.initializer}
    assert [t for t in model.graph.input if t.name not in stored] == list(found.model.graph.input)
    assert list(model.graph.output) == list(found.model.graph.output)
    assert found.facts[Checked].fused in (None, len(found.facts[Plan].layers))
    return found


class TestFloat16:
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
        found = quantized(with_float16(csp()), "tensorrt", rest="fp16")
        convs = [node for node in found.model.graph.node if node.op_type == "Conv"]
        inferred = onnx.shape_inference.infer_shapes(found.model).graph.value_info
        kinds = {v.name: v.type.tensor_type.elem_type for v in inferred}
        assert {kinds[conv.output[0]] for conv in convs} == {onnx.TensorProto.FLOAT16}

    def test_is_reconstructed_below_8_bits(self):
        found = quantized(with_float16(csp()), "ort", weight_bits=4)
        assert found.facts[Checked].sqnr["output"] > 15
