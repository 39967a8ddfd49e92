import numpy as np
import pytest
from graphs import copy, csp, feed, ops, quantized, relu_net, shared_weights, silu_chain

from onnxq.facts import Plan
from onnxq.runtime import OnnxRuntime


def test_is_always_installed():
    assert OnnxRuntime.is_installed()


def test_times_are_of_the_graph_that_really_runs():
    model = relu_net()
    after, _ = quantized(model, matmul=False)
    times = OnnxRuntime.operator_times(after, feed(model), threads=1, rounds=2)
    assert times["QLinearConv"].count >= 2
    assert times["QLinearConv"].count + times["Conv"].count == ops(after).count("Conv")


def test_layers_are_known_by_their_weights_whatever_they_are_renamed_to():
    model = csp()
    after, facts = quantized(model)
    layers = facts[Plan].layers
    found = OnnxRuntime(after).integer_layers(after, layers[1:3])
    assert found.wanted == layers[1:3]
    assert found.others == len(layers) - 2


def test_layers_with_equal_weights_count_each():
    after, facts = quantized(shared_weights())
    layers = facts[Plan].layers
    found = OnnxRuntime(after).integer_layers(after, layers)
    assert (found.wanted, found.others) == (layers, 0)


def test_a_float_model_has_no_layers_on_integers():
    model = silu_chain()
    found = OnnxRuntime(model).integer_layers(model, [node.name for node in model.graph.node if node.op_type == "Conv"])
    assert (found.wanted, found.others) == ((), 0)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_result_does_not_depend_on_the_number_of_threads(threads):
    model = csp()
    expected = OnnxRuntime(copy(model), threads=1).run(feed(model))["output"]
    found = OnnxRuntime(model, threads=threads).run(feed(model))["output"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
