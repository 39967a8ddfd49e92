"""New nodes and tensors of a quantized graph are named after their tensor or node; doc strings have the result."""

import re

import pytest
from graphs import copy, csp, feed, shared_weights, v8

from onnxq import Config, quantize
from onnxq.facts import Plan

pytestmark = pytest.mark.slow

CASES = {
    "ort": (v8, Config(target="ort")),
    "openvino": (v8, Config(target="openvino")),
    "tensorrt": (v8, Config(target="tensorrt")),
    "tensorrt-fp16": (v8, Config(target="tensorrt", float_type="fp16")),
    "generic": (v8, Config(target="generic")),
    "qnn": (v8, Config(target="qnn")),
    "4-4-int4": (csp, Config(target="openvino", weight_bits=4, act_bits=4, reconstruct=False, pack="int4")),
    "shared": (shared_weights, Config(target="ort")),
}
SOFTMAX = ("Softmax", "ReduceMax", "Max", "Sub", "Exp", "ReduceSum", "Div")
COPY = r"(_2)?"
"""The suffix of the second copy of a weight that two layers share and quantize differently."""
WORDS = rf"{COPY}(_[A-Za-z]+)+(_[0-9]+)?"
"""What follows the name of the origin; slices of a tensor are numbered."""


@pytest.fixture(scope="module", params=CASES)
def made(request):
    """Return the float model and the quantized one."""
    build, config = CASES[request.param]
    model = build()
    return model, quantize(copy(model), [feed(model, seed) for seed in range(2)], config)


def names(graph):
    """Return the names of the nodes, of the tensors they compute, and of the constants."""
    computed = {name for node in graph.node for name in node.output}
    return {node.name for node in graph.node}, computed, {tensor.name for tensor in graph.initializer}


def test_of_nodes_and_constants_are_those_of_what_they_belong_to_and_words(made):
    model, quantized = made
    old = {name for kind in names(model.graph) for name in kind} | {x.name for x in model.graph.input}
    new = {name for kind in names(quantized.model.graph) for name in kind} - old
    assert len(new) > 10
    for name in new:
        origin = max((each for each in old if name.startswith(f"{each}_")), key=len, default=None)
        assert origin is not None, f"{name} is named after nothing in the float model"
        assert re.fullmatch(WORDS, name[len(origin) :]), f"{name} says nothing beyond {origin}"


def test_of_a_pair_are_those_of_its_tensor(made):
    model, quantized = made
    old = {*names(model.graph)[1], *names(model.graph)[2], *(x.name for x in model.graph.input)}
    for node in quantized.model.graph.node:
        if node.op_type == "QuantizeLinear":
            tensor = node.name.removesuffix("_QuantizeLinear")
            assert tensor in old
            assert node.input[0] in (tensor, f"{tensor}_half")
            assert node.output[0] == f"{tensor}_quantized"


def test_each_quantized_tensor_and_each_float_node_is_told_of(made):
    _, quantized = made
    said = {node.name: node.doc_string for node in quantized.model.graph.node}
    integer = quantized.facts[Plan].integer
    for node in quantized.model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert re.search(r"^onnxq: \S+ to \S+, ", said[node.name])
        elif node.op_type in SOFTMAX and node.name not in integer:
            assert said[node.name].startswith("onnxq: float ("), f"{node.name} does not say why it is float"
