"""reconstruct, on layers that share their weights."""

from functools import partial

import numpy as np
import pytest
from backbones import recurrent, shared_towers
from graphs import Net, feed, initializers, run, shared_head, sqnr
from inference import readers

from onnxq import quantize
from onnxq.config import Config
from onnxq.facts import Plan, Reconstruction
from onnxq.passes import reconstruct
from onnxq.reconstruction.walk import products_of

COUNT = 8


def rebuilt(model, target="openvino", widths=(4, 4), **options):
    """The result of a quantization of all Convs, with reconstruction."""
    weight_bits, act_bits = widths
    options = {"include": ("op:Conv",), **options}
    data = [feed(model, seed) for seed in range(COUNT)]
    return quantize(
        model, data, Config(target=target, weight_bits=weight_bits, act_bits=act_bits, reconstruct=True, **options)
    )


def rounded(model, monkeypatch, **options):
    """The same, but shared weights are rounded to nearest."""

    def alone(weight, nodes):
        return products_of(weight, nodes) if len(weight.users) == 1 else {}

    with monkeypatch.context() as patch:
        patch.setattr(reconstruct, "products_of", alone)
        return rebuilt(model, **options)


def noise(model, result):
    """Return the mean SQNR of the outputs, dB, over images that were not used in the fit."""
    unseen = [feed(model, seed) for seed in range(100, 108)]
    expected, found = ([run(each, values) for values in unseen] for each in (model, result.model))
    return np.mean([
        sqnr(*(np.stack([values[name] for values in each]) for each in (expected, found))) for name in expected[0]
    ])  # fmt: skip


def many(build, count, make):
    return np.array([make(build(seed=seed)) for seed in range(count)])


def test_three_levels_lose_less_than_rounded_ones_and_hardly_more_than_with_weights_of_their_own(monkeypatch):
    options = {"target": "generic", "include": ()}
    fitted = many(shared_towers, 2, lambda model: noise(model, rebuilt(model, **options)))
    nearest = many(shared_towers, 2, lambda model: noise(model, rounded(model, monkeypatch, **options)))
    own = partial(shared_towers, is_shared=False)
    separate = many(own, 2, lambda model: noise(model, rebuilt(model, **options)))
    assert fitted.mean() > nearest.mean() + 1
    assert fitted.mean() > separate.mean() - 0.7


@pytest.mark.slow
@pytest.mark.parametrize("build", [shared_towers, recurrent, shared_head])
@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt"])
def test_shared_weights_gain_for_each_target(build, target, monkeypatch):
    shared = "re:tower.*|step.*|fine|coarse"
    options = {"target": target, "widths": (4, 8), "include": (shared,), "bits": (f"{shared}=3/8",)}
    fitted = many(build, 3, lambda model: noise(model, rebuilt(model, **options)))
    nearest = many(build, 3, lambda model: noise(model, rounded(model, monkeypatch, **options)))
    assert fitted.mean() > nearest.mean() + 0.5


@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt"])
def test_the_file_holds_a_shared_weight_once(target):
    model = shared_towers()
    result = rebuilt(model, target, (4, 8))
    shared = [weight for weight in result.facts[Plan].weights if len(weight.users) > 1]
    found, stored = result.facts[Reconstruction], initializers(result.model)
    assert [len(weight.users) for weight in shared] == [3, 3]
    by_name = {node.name: node for node in result.model.graph.node}
    for weight in shared:
        inputs = [by_name[name].input for name in weight.users]
        assert len({x[1] for x in inputs}) == 1
        [dequantize] = readers(result.model, f"{weight.tensor}_quantized")
        assert dequantize.output[0] == inputs[0][1]
        qparams, integers = found.weights[weight.tensor]
        assert np.array_equal(stored[f"{weight.tensor}_quantized"], integers)
        assert np.array_equal(stored[f"{weight.tensor}_scale"], qparams.scale)
    assert (
        sum(f"{weight.tensor}" in name and values.ndim == 4 for weight in shared for name, values in stored.items())
        == 2
    )


def test_it_is_the_same_every_time():
    first, second = (rebuilt(shared_towers()).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def levels(biases):
    """Two levels of one Conv: the second has other values; biases are names, or "" for none."""
    net = Net()
    x = net.block("images", 8, stride=2)
    far = net.silu(net.conv(x, 8, gain=2.0))
    weight = net.const(net.normal(8, 8, 3, 3, scale=0.2), name="weight")
    for name in dict.fromkeys(filter(None, biases)):
        net.const(net.normal(8), name=name)
    sides = []
    for name, data, bias in zip(("near", "far"), (x, far), biases, strict=True):
        y = net.add("Conv", data, weight, *([bias] if bias else []), name=name, pads=[1] * 4)
        net.channels[y] = 8
        sides.append(net.conv(net.silu(y), 4, name=f"last_{name}"))
    return net.model(*sides)


@pytest.mark.parametrize("biases", [("a", "b"), ("a", "a"), ("", ""), ("a", "")], ids=str)
def test_mean_outputs_are_kept_of_each_layer(biases):
    model = levels(biases)
    result = rebuilt(model, widths=(3, 8), bits=("op:Conv=3/8",))
    assert "weight" in result.facts[Reconstruction].weights
    shifts = []
    for name in ("near_out", "far_out"):
        seen = [feed(model, seed) for seed in range(COUNT)]
        off = [run(result.model, x, [name])[name] - run(model, x, [name])[name] for x in seen]
        shifts.append(np.concatenate(off).mean(axis=(0, 2, 3)))
    spread = np.abs(run(model, feed(model), ["near_out"])["near_out"]).mean()
    found = result.facts[Reconstruction].biases
    assert not np.array_equal(found["near"], found["far"])
    assert max(np.abs(shift).mean() for shift in shifts) < 0.01 * spread


def tokens(seed):
    """Two MatMuls of one weight, on the pixels of two images."""
    net = Net(seed=seed, size=16)
    weight = net.const(net.normal(16, 16, scale=0.3), name="weight")
    outputs = []
    for name in ("one", "two"):
        pixels = net.reshape(net.block("images", 16, stride=2), 1, 16, 64)
        y = net.add("MatMul", net.add("Transpose", pixels, perm=[0, 2, 1]), weight, name=name)
        image = net.reshape(net.add("Transpose", net.silu(y), perm=[0, 2, 1]), 1, 16, 8, 8)
        net.channels[image] = 16
        outputs.append(net.conv(image, 4, name=f"last_{name}"))
    return net.model(*outputs)


def test_products_of_matrices_share_a_weight_too(monkeypatch):
    options = {"target": "generic", "include": ("op:MatMul",)}
    results = [rebuilt(tokens(seed), **options) for seed in range(3)]
    for result in results:
        assert "weight" in result.facts[Reconstruction].weights
        assert not {"one", "two"} & result.facts[Reconstruction].biases.keys()
    nearest = many(tokens, 3, lambda model: noise(model, rounded(model, monkeypatch, **options)))
    fitted = [noise(tokens(seed), result) for seed, result in enumerate(results)]
    assert np.mean(fitted) > nearest.mean() + 0.3


def with_groups(group):
    """Two Convs that read one weight, the second in this many groups."""
    net = Net()
    x = net.block("images", 8, stride=2)
    wide = net.block(x, 8 * group)
    weight = net.const(net.normal(8, 8, 3, 3, scale=0.2), name="weight")
    outputs = []
    for name, data, count in (("one", x, 1), ("two", wide, group)):
        y = net.add("Conv", data, weight, name=name, pads=[1] * 4, group=count)
        net.channels[y] = 8
        outputs.append(net.conv(net.silu(y), 4, name=f"last_{name}"))
    return net.model(*outputs)


@pytest.mark.parametrize("group", [1, 2])
def test_the_warning_is_of_those_only_that_are_not_fitted(group, caplog):
    result = rebuilt(with_groups(group))
    assert ("weight" in result.facts[Reconstruction].weights) == (group == 1)
    assert ("2 of 6 layers cannot be reconstructed" in caplog.text) == (group == 2)
    assert ("The first is one" in caplog.text) == (group == 2)
