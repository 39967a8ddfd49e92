import numpy as np
import pytest
from graphs import feed
from unbalanced import amplified

from onnxq import Config, quantize
from onnxq.facts import Plan, Statistics
from onnxq.ir import Model
from onnxq.numerics.range_methods import method_for
from onnxq.passes.float_lost_channels import FloatLostChannels
from onnxq.qdq.lost_channels import lost_layers
from onnxq.runtime.session import open_session, run
from onnxq.targets import TARGETS


def found(model, target, monkeypatch):
    """What is lost of a model, tensor by tensor, and the plan and the statistics."""
    monkeypatch.setattr(FloatLostChannels, "run", lambda self, model, facts: facts[Plan])
    monkeypatch.setattr("onnxq.passes.separate_scales.SeparateScales.run", lambda self, model, facts: facts[Plan])
    facts = quantize(model, [feed(model, 0)], Config(target=target, equalize=False, migrate=False)).facts
    plan, statistics = facts[Plan], facts[Statistics]
    fit = method_for("uh", silu_output=False)
    return dict(lost_layers(plan, Model(model), TARGETS[target], statistics, fit)), plan


@pytest.mark.parametrize("kind", ["full", "depthwise"])
def test_the_estimate_is_what_rounding_the_input_leaves_of_the_outputs(kind, monkeypatch):
    model = amplified(100, kind)
    [(tensor, layers)] = found(model, "generic", monkeypatch)[0].items()
    estimated = float(layers["reader"].split("leaves ")[1].split(" dB")[0])
    model.graph.output.extend([vi for vi in model.graph.value_info if vi.name == tensor])
    values = run(open_session(model), feed(model, 0), [tensor])[0].astype(np.float64)
    facts = quantize(amplified(100, kind), [feed(model, 0)], Config(target="generic", equalize=False)).facts
    assert "reader" not in facts[Plan].layers
    assert -20 < estimated < 20
    assert values.shape[1] == 64


def test_the_layer_that_makes_the_tensor_is_named_if_its_output_is_quantized(monkeypatch):
    assert set(*map(tuple, found(amplified(1000), "generic", monkeypatch)[0].values())) == {"maker", "reader"}
    assert set(*map(tuple, found(amplified(1000), "openvino", monkeypatch)[0].values())) == {"reader"}


def test_nothing_is_lost_of_like_channels(monkeypatch):
    assert found(amplified(1), "generic", monkeypatch)[0] == {}
