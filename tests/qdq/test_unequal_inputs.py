import re
import shlex

import numpy as np
import pytest
from cases import fast_first
from graphs import feed
from net import Net
from onnx import numpy_helper
from unbalanced import joining

from onnxq import Config, quantize
from onnxq.facts import FittedRanges, Verification
from onnxq.targets import TARGETS

every_target = pytest.mark.parametrize("target", fast_first(TARGETS, 2))


def run(model, target, **options):
    return quantize(model, [feed(model, seed) for seed in range(2)], Config(target=target, **options))


def told(quantized):
    """The warnings of unequal inputs."""
    assert set(quantized.facts[FittedRanges].unequal) <= set(quantized.warnings)
    return quantized.facts[FittedRanges].unequal


def sqnr(quantized):
    return min(quantized.facts[Verification].simulated.values())


@every_target
def test_an_input_that_is_lost_is_told_and_the_remedy_restores_the_outputs(target):
    model = joining(100_000 if target == "qnn" else 1000)  # 16 bits hold two more digits
    quantized = run(model, target, equalize=False, include=("reader",))
    [text] = told(quantized)
    assert "Concat 'concat0' joins values of very different size" in text
    assert re.search(r"leaves \d\.\d dB of 'mul1_out' \(up to [\d.]+\) beside 'mul\d_out' \(up to [\d.e+]+\)", text)
    remedy = shlex.split(text.partition("--exclude")[2])
    assert remedy == ["reader"]
    mended = run(model, target, equalize=False, exclude=tuple(remedy))
    assert not told(mended)
    assert sqnr(mended) > sqnr(quantized) + 12


@every_target
def test_inputs_of_like_size_are_not_told(target):
    assert not told(run(joining(2), target, equalize=False))


def test_narrow_integers_alone_are_not_told():
    assert not told(run(joining(1), "openvino", act_bits=4, equalize=False))


def test_inputs_without_channels_are_told_by_their_histograms():
    net = Net(size=64)
    x = net.block("images", 64, 3, stride=8)
    rows = net.ints(1, 64, 64)
    small, great = (net.add("Reshape", net.block(x, 64, 1), rows) for _ in range(2))
    great = net.add("Mul", great, net.const(np.float32(1000)))
    joined = net.add("Concat", small, great, axis=2)
    y = net.add("MatMul", joined, net.const(net.normal(128, 32, scale=0.1), name="matrix"), name="reader")
    shaped = net.add("Reshape", y, net.ints(1, 32, 8, 8))
    net.channels[shaped] = 32
    [text] = told(run(net.model(net.conv(shaped, 8)), "generic", equalize=False))
    assert "dB of 'reshape0_out'" in text
    assert text.endswith("--exclude reader")


def test_the_worst_are_told_and_the_others_counted():
    net = Net(size=64)
    x = net.block("images", 16, 3, stride=2)
    for ratio in (100, 200, 400, 800, 1600):
        great = net.add("Mul", net.conv(x, 16), net.const(np.float32(ratio)))
        net.channels[great] = 16
        x = net.add("Mul", net.conv(net.concat(x, great), 16), net.const(np.float32(1 / ratio)))
        net.channels[x] = 16
    texts = told(run(net.model(net.conv(net.block(x, 16), 8)), "openvino", equalize=False))
    assert len(texts) == 4
    assert texts[-1] == "2 more Concats with such inputs"
    least = [min(map(float, re.findall(r"(-?[\d.]+) dB", text))) for text in texts[:-1]]
    assert least == sorted(least)


@every_target
def test_an_input_without_channels_is_passed_over(target):
    model = joining(100_000)
    concat = next(node for node in model.graph.node if node.op_type == "Concat")
    concat.input.insert(1, "empty")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 0, 32, 32), np.float32), "empty"))
    [text] = told(run(model, target, equalize=False, include=("reader",)))
    assert "'empty'" not in text
