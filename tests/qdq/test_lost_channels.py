import numpy as np
import onnx
import pytest
from graphs import copy, feed, initializers
from unbalanced import amplified

from onnxq import Config, quantize
from onnxq.facts import Plan, Statistics
from onnxq.ir import Model, ending_at
from onnxq.numerics.range_methods import method_for
from onnxq.passes.float_lost_channels import FloatLostChannels
from onnxq.qdq.lost_channels import lost_layers
from onnxq.runtime.session import open_session, run
from onnxq.targets import TARGETS

FIT = method_for("uh", silu_output=False)


def planned(model, target, monkeypatch):
    """The facts of a model of which no layer is kept float for its values."""
    with monkeypatch.context() as patch:
        patch.setattr(FloatLostChannels, "run", lambda self, model, facts: facts[Plan])
        return quantize(model, [feed(model, 0)], Config(target=target, equalize=False, migrate=False)).facts


def found(model, target, monkeypatch):
    facts = planned(model, target, monkeypatch)
    return dict(lost_layers(facts[Plan], Model(model), TARGETS[target], facts[Statistics], FIT))


def outputs_of_reader(model, x):
    """The outputs of the Conv "reader" of a model for an input."""
    reader = next(node for node in model.graph.node if node.name == "reader")
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in (reader.input[0], reader.output[0])]
    weights = [w for w in model.graph.initializer if w.name in reader.input]
    graph = onnx.helper.make_graph([reader], "reader", values[:1], values[1:], weights)
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return run(open_session(alone), {reader.input[0]: x.astype(np.float32)})[0].astype(np.float64)


@pytest.mark.parametrize("kind", ["full", "depthwise"])
def test_the_estimate_is_what_rounding_the_input_leaves_of_the_outputs(kind, monkeypatch):
    model = amplified(100, kind)
    [(tensor, layers)] = found(model, "generic", monkeypatch).items()
    estimated = float(layers["reader"].split("leaves ")[1].split(" dB")[0])
    [x] = run(open_session(ending_at(model, [tensor])), feed(model, 0), [tensor])
    facts = planned(model, "generic", monkeypatch)
    point = next(point for point in facts[Plan].points if point.tensor == tensor)
    scale = float(point.scheme.qparams(FIT(facts[Statistics].of_points([point]), point.scheme)).scale)
    exact, rounded = (outputs_of_reader(model, values) for values in (x, np.rint(x / scale) * scale))
    signal = exact - exact.mean(axis=(0, 2, 3), keepdims=True)
    left = 10 * np.log10(np.sum(signal**2) / np.sum((rounded - exact) ** 2))
    assert initializers(model)["reader_weight"].shape[1] == (1 if kind == "depthwise" else 64)
    assert estimated == pytest.approx(left, abs=4)


def test_the_estimate_is_what_rounding_the_weights_leaves_of_the_outputs(monkeypatch):
    model = amplified(1000)
    [(tensor, layers)] = found(model, "qnn", monkeypatch).items()
    assert set(layers) == {"reader"}
    estimated = float(layers["reader"].split("leaves ")[1].split(" dB")[0])
    [x] = run(open_session(ending_at(model, [tensor])), feed(model, 0), [tensor])
    weight = initializers(model)["reader_weight"]
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    rounded = copy(model)
    next(w for w in rounded.graph.initializer if w.name == "reader_weight").CopyFrom(
        onnx.numpy_helper.from_array((np.rint(weight / scale) * scale).astype(np.float32), "reader_weight")
    )
    exact, found_ones = outputs_of_reader(model, x), outputs_of_reader(rounded, x)
    centered, error = (values - values.mean(axis=(0, 2, 3), keepdims=True) for values in (exact, found_ones - exact))
    assert estimated == pytest.approx(10 * np.log10(np.sum(centered**2) / np.sum(error**2)), abs=4)


@pytest.mark.parametrize(("target", "layers"), [("generic", {"maker", "reader"}), ("openvino", {"reader"})])
def test_the_layer_before_is_named_if_its_output_is_quantized(target, layers, monkeypatch):
    assert [set(each) for each in found(amplified(1000), target, monkeypatch).values()] == [layers]


def test_nothing_is_lost_of_like_channels(monkeypatch):
    assert found(amplified(1), "generic", monkeypatch) == {}


def test_nothing_is_lost_of_unlike_channels_that_are_read_alike(monkeypatch):
    model = amplified(100)
    weight = next(w for w in model.graph.initializer if w.name == "reader_weight")
    alike = np.random.default_rng(0).normal(size=weight.dims).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(alike, weight.name))
    assert found(model, "generic", monkeypatch) == {}
