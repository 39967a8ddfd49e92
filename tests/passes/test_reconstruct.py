from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from graphs import (
    Net,
    attention,
    copy,
    csp,
    depthwise_net,
    feed,
    initializers,
    pan,
    prepared,
    products,
    quantizing,
    run,
    samples,
    silu_chain,
    sqnr,
    v8,
    with_metadata,
)
from unbalanced import uneven

from onnxq import quantize
from onnxq.config import Config
from onnxq.errors import DataError
from onnxq.facts import Migration, Plan, QuantizationParameters, Reconstruction, Statistics
from onnxq.ir import Model
from onnxq.passes.compute_qparams import ComputeQparams
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.reconstruct import Reconstruct
from onnxq.pipeline import Pipeline
from onnxq.qdq.migration import divided_name
from onnxq.qdq.pair_limit import PairLimits
from onnxq.targets import GENERIC, OPENVINO, ORT
from onnxq.yolo.detector import detect

COUNT = 8


def data_of(model, count=COUNT):
    return samples([feed(model, seed) for seed in range(count)])


def rebuilt(model, target=OPENVINO, bits=4, data=None, **options):
    """The models quantized without and with reconstruction, and the facts of the latter."""
    made = []
    for reconstruct in (False, True):
        working = Model(copy(model))
        steps = quantizing(model, target, weight_bits=bits, act_bits=bits, **options)
        at = next(k for k, step in enumerate(steps) if isinstance(step, InsertQdq))
        extra = [Reconstruct(data or data_of(model))] if reconstruct else []
        facts = Pipeline([*steps[:at], *extra, *steps[at:]]).run(working)
        made.append(working.to_proto())
    return *made, facts


def noise(model, quantized):
    """Return the SQNR of the first output, dB, over images that were not used in the fit."""
    unseen = [feed(model, seed) for seed in range(100, 106)]
    name = model.graph.output[0].name
    expected, found = (np.stack([run(m, values)[name] for values in unseen]) for m in (model, quantized))
    return sqnr(expected, found)


def of_rows(op, lead, seed):
    """A Gemm or MatMul, `layer`, on the 64 pixels of an image in rows of these leading dimensions."""
    net = Net(seed=seed, size=16)
    pixels = net.reshape(net.block("images", 16, stride=2), 1, 16, 64)
    rows = net.reshape(net.add("Transpose", pixels, perm=[0, 2, 1]), *lead, 16)
    y = net.silu(net.add(op, rows, net.const(net.normal(16, 16, scale=0.3)), name="layer"))
    image = net.reshape(net.add("Transpose", net.reshape(y, 1, 64, 16), perm=[0, 2, 1]), 1, 16, 8, 8)
    net.channels[image] = 16
    return net.model(net.conv(image, 4, name="last"))


@pytest.mark.parametrize(
    ("op", "lead"), [("Gemm", (64,)), ("MatMul", (1, 64)), ("MatMul", (64, 1)), ("MatMul", (4, 16))]
)
def test_all_rows_of_a_product_are_fitted_whatever_their_first_dimension(op, lead):
    gains = []
    for seed in range(4):
        model = of_rows(op, lead, seed)
        data = [feed(model, each) for each in range(COUNT)]
        options = {"target": "generic", "weight_bits": 4, "act_bits": 8, "include": ("layer",), "bits": ("layer=3/8",)}
        nearest, fitted = (
            noise(model, quantize(model, data, Config(reconstruct=each, **options)).model) for each in (False, True)
        )
        gains.append(fitted - nearest)
    assert np.mean(gains) > 3.5


@pytest.mark.slow
@pytest.mark.parametrize("build", [silu_chain, csp, pan, depthwise_net, attention], ids=lambda b: b.__name__)
@pytest.mark.parametrize("bits", [3, 4])
def test_narrow_networks_gain_on_images_that_were_not_seen(build, bits):
    model = build()
    before, after, _ = rebuilt(model, bits=bits)
    assert noise(model, after) > noise(model, before) + 0.7


@pytest.mark.slow
@pytest.mark.parametrize("target", [ORT, OPENVINO, GENERIC], ids=lambda t: t.name)
def test_in_every_placement(target):
    model = csp()
    before, after, facts = rebuilt(model, target)
    assert noise(model, after) > noise(model, before) + 0.7
    assert set(facts[Reconstruction].biases) == set(facts[Plan].layers)


@pytest.mark.parametrize("seed", range(4))
def test_transposed_convs_keep_their_mean_outputs(seed):
    net = Net(seed=seed)
    x = net.block("images", 8, stride=2)
    weight = net.const(net.normal(8, 8, 2, 2, scale=0.3))
    y = net.add("ConvTranspose", x, weight, name="up", strides=[2, 2])
    net.channels[y] = 8
    model = net.model(net.conv(net.silu(y), 4, name="last"))
    rounded, fitted, facts = rebuilt(model, GENERIC, bits=4)
    assert "up" in facts[Reconstruction].biases
    shifts = [mean_shift(model, each, "up") for each in (rounded, fitted)]
    assert shifts[1] < 0.1 * shifts[0]


def mean_shift(model, quantized, layer):
    """Return the error of a layer's mean outputs over the calibration data, mean over all channels."""
    names = [next(n.output[0] for n in each.graph.node if n.name == layer) for each in (model, quantized)]
    off = [
        run(quantized, values, outputs=[names[1]])[names[1]] - run(model, values, outputs=[names[0]])[names[0]]
        for values in (feed(model, seed) for seed in range(COUNT))
    ]
    return float(np.abs(np.mean(off, axis=(0, 1, 3, 4))).mean())


def test_the_number_of_cores_makes_no_difference(monkeypatch):
    model, found = csp(), []
    for count in (1, 3):
        monkeypatch.setattr("onnxq.passes.reconstruct.cores", lambda count=count: count)
        found.append(rebuilt(model, bits=4)[1].SerializeToString(deterministic=True))
    assert found[0] == found[1]


def test_products_of_matrices_too():
    model = products()
    before, after, facts = rebuilt(model, GENERIC)
    assert {"mix", "hidden", "classes"} <= set(facts[Plan].layers)
    assert {"mix_weight", "hidden_weight", "classes_weight"} <= facts[Reconstruction].weights.keys()
    assert {"hidden", "classes"} <= facts[Reconstruction].biases.keys()
    assert "mix" not in facts[Reconstruction].biases
    assert noise(model, after) > noise(model, before) + 0.5


def test_one_layer_gives_what_least_squares_and_rounding_can():
    """A single Conv of few levels: what it gives is nearer to the float one than with the nearest weights."""
    net = Net(size=16)
    model = net.model(net.conv("images", 6, kernel=3, name="only"))
    before, after, facts = rebuilt(model, OPENVINO, bits=8, symmetric=False)
    assert facts[Plan].layers == ("only",)
    assert noise(model, after) >= noise(model, before) - 0.1


def test_weights_are_on_the_grid_they_are_stored_with():
    _, _, facts = rebuilt(csp(), bits=4)
    for weight in facts[Plan].weights:
        grid, integers = facts[Reconstruction].weights[weight.tensor]
        assert integers.dtype == np.int8
        assert np.abs(integers).max() <= weight.scheme.qmax
        assert grid.scale.shape == (integers.shape[weight.scheme.axis],)


def test_mean_outputs_are_kept():
    model = silu_chain()
    before, after, _ = rebuilt(model, bits=3)
    many = [feed(model, seed) for seed in range(COUNT)]
    shifts = [
        np.abs(np.mean([run(m, v)["output"] - run(model, v)["output"] for v in many], axis=(0, 1, 3, 4))).mean()
        for m in (before, after)
    ]
    assert shifts[1] < 0.3 * shifts[0]


def test_it_is_the_same_every_time():
    first, second = (rebuilt(csp())[1].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_only_the_real_samples_of_a_batch_count():
    model = silu_chain(batch=2)
    whole = [feed(model, seed) for seed in range(2)]
    spoilt = [{"images": np.concatenate([v["images"][:1], 1e3 + v["images"][1:]])} for v in whole]
    found = []
    for feeds in (whole, spoilt):
        data = samples(feeds)
        data = replace(data, loaders=[partial(_one_of_two, load) for load in data.loaders])
        found.append(Reconstruct(data).run(prepared(model), facts_of(model)))
    for name, bias in found[0].biases.items():
        assert np.array_equal(bias, found[1].biases[name])


def _one_of_two(load):
    return load()._replace(valid=1)


@pytest.mark.parametrize("data", [None, "synthetic"])
def test_real_images_are_needed(data):
    model = silu_chain()
    given = None if data is None else replace(data_of(model), synthetic=True)
    with pytest.raises(DataError, match=r"needs real images.+give --calib, or --no-reconstruct"):
        Reconstruct(given)


def test_a_generator_can_be_read_only_once():
    model = silu_chain()
    data = replace(data_of(model), loaders=iter(()))
    with pytest.raises(DataError, match=r"read only once.+give a list or a folder"):
        Reconstruct(data).run(prepared(model), facts_of(model))


def facts_of(model):
    working = Model(copy(model))
    steps = [s for s in quantizing(model, OPENVINO) if not isinstance(s, InsertQdq)]
    facts = Pipeline(steps).run(working)
    assert all(kind in facts for kind in (Plan, QuantizationParameters, Statistics))
    return facts


def test_progress_is_told():
    model = v8()
    told = []
    Reconstruct(data_of(model, 2), progress=lambda *step: told.append(step)).run(prepared(model), facts_of(model))
    layers = len(facts_of(model)[Plan].layers)
    assert told == [("reconstructing", k, layers) for k in range(layers + 1)]


def test_ranges_by_the_outputs_err_less():
    model = csp()
    data = data_of(model)
    made = []
    for ranges in (False, True):
        working = Model(copy(model))
        steps = quantizing(model, OPENVINO, method="minmax", weight_bits=8, act_bits=3)
        at = next(k for k, step in enumerate(steps) if isinstance(step, InsertQdq))
        facts = Pipeline([*steps[:at], Reconstruct(data, ranges=ranges), *steps[at:]]).run(working)
        made.append((working.to_proto(), facts))
    (plain, _), (adjusted, facts) = made
    assert noise(model, adjusted) > noise(model, plain) + 0.5
    found = facts[Reconstruction].activations
    assert found
    points = {p.tensor: p for p in facts[Plan].points}
    assert all(points[name].scheme.bits == 3 for name in found)
    assert not made[0][1][Reconstruction].activations
    stored = initializers(adjusted)
    for name, grid in found.items():
        assert stored[f"{points[name].group}_scale"] == grid.scale


def test_a_range_on_which_an_earlier_layer_depends_is_not_adjusted():
    net = Net()
    x, other = net.block("images", 8, stride=2), net.block("images", 8, stride=2)
    both = net.add("Add", x, other)
    net.channels[both] = 8
    first = net.silu(net.conv(both, 8, name="first"))
    second = net.silu(net.conv(x, 8, name="second"))
    model = net.model(net.conv(first, 4, name="last"), net.conv(second, 4, name="end"))
    steps = quantizing(model, OPENVINO, weight_bits=8, act_bits=3)
    at = next(k for k, step in enumerate(steps) if isinstance(step, InsertQdq))
    facts = Pipeline([*steps[:at], Reconstruct(data_of(model), ranges=True), *steps[at:]]).run(Model(copy(model)))
    inputs = {node.name: node.input[0] for node in model.graph.node}
    assert inputs["second"] in {point.tensor for point in facts[Plan].points if len(point.users) > 1}
    assert inputs["second"] not in facts[Reconstruction].activations
    assert inputs["first"] in facts[Reconstruction].activations


def test_ranges_of_8_bits_are_not_adjusted():
    model = silu_chain()
    facts = facts_of(model)
    assert not Reconstruct(data_of(model), ranges=True).run(prepared(model), facts).activations


@pytest.mark.parametrize("target", [OPENVINO, GENERIC], ids=lambda t: t.name)
@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (4, 8)], ids=lambda bits: "W{}A{}".format(*bits))
def test_no_output_channel_exceeds_the_limit_of_cpus_without_vnni(bits, target):
    model = csp()
    greatest = {}
    for limited in (True, False):
        working = Model(copy(model))
        steps = quantizing(model, target, weight_bits=bits[0], act_bits=bits[1])
        at = next(k for k, step in enumerate(steps) if isinstance(step, InsertQdq))
        steps = [ComputeQparams(limited=limited) if isinstance(s, ComputeQparams) else s for s in steps[:at]]
        facts = Pipeline([*steps, Reconstruct(data_of(model), limited=limited)]).run(working)
        parameters = facts[Reconstruction].over(facts[QuantizationParameters])
        limits, nodes = PairLimits(working, facts[Statistics].channels), working.nodes
        shares = [0.0]
        for weight in facts[Plan].weights:
            limit = limits.of([nodes[name] for name in weight.users], weight.scheme, parameters.activations)
            if limit is not None:
                assert weight.tensor in facts[Reconstruction].weights
                shares.append(limit.shares_of(parameters.integers[weight.tensor], 0).max())
        greatest[limited] = max(shares)
    assert 0.8 < greatest[True] <= 1 < greatest[False]


@pytest.mark.slow
def test_what_the_detector_sees_changes_what_is_fitted():
    model = with_metadata(v8())
    steps = quantizing(model, OPENVINO, weight_bits=4)
    at = next(k for k, step in enumerate(steps) if isinstance(step, InsertQdq))
    biases = []
    for detector in (None, detect(model), detect(model)):
        facts = Pipeline([*steps[:at], Reconstruct(data_of(model), detector=detector)]).run(Model(copy(model)))
        biases.append(np.concatenate(list(facts[Reconstruction].biases.values())))
    assert not np.array_equal(biases[0], biases[1])
    assert np.array_equal(biases[1], biases[2])


def divided(model, **options):
    """The file after reconstruction of a model whose scales migrated before, and the facts."""
    data = [feed(model, seed) for seed in range(COUNT)]
    result = quantize(model, data, Config(target="openvino", migrate=True, reconstruct=True, **options))
    return result.model, result.facts


def test_the_file_has_the_scales_with_which_the_weights_were_fitted():
    model = uneven()
    quantized, facts = divided(model, weight_bits=6, act_bits=8)
    found, chosen = facts[Reconstruction], facts[Migration].scales
    [(tensor, scales)] = found.scales.items()
    assert not np.array_equal(scales, chosen[tensor])
    stored, quotient = initializers(quantized), divided_name(tensor)
    assert np.array_equal(stored[f"{tensor}_factors"].reshape(-1), np.reciprocal(scales))
    assert stored[f"{quotient}_scale"] == found.activations[quotient].scale
    [x] = [point for point in facts[Plan].points if point.tensor == quotient]
    weight = next(each.tensor for each in facts[Plan].weights if each.users == x.users)
    qparams, integers = found.weights[weight]
    assert np.array_equal(stored[f"{weight}_quantized"], integers)
    expected = initializers(model)[weight] * scales[:, None, None]
    assert np.abs(qparams.dequantize(integers) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("build", [csp, pan, silu_chain, partial(silu_chain, seed=3)])
@pytest.mark.parametrize("bits", [(2, 8), (4, 8), (4, 6)], ids=lambda bits: "W{}A{}".format(*bits))
def test_scales_lose_nothing(build, bits):
    model = build()
    widths = {"weight_bits": bits[0], "act_bits": bits[1]}
    quantized, facts = divided(model, **widths)
    plain = quantize(model, [feed(model, seed) for seed in range(COUNT)], Config(target="openvino", migrate=False,
                     reconstruct=True, **widths)).model  # fmt: skip
    assert noise(model, quantized) > noise(model, plain) - 0.7
    stored, found = initializers(quantized), facts[Reconstruction]
    assert found.scales
    for tensor, scales in found.scales.items():
        if np.all(scales == 1):
            assert f"{tensor}_factors" not in stored
        else:
            assert np.array_equal(stored[f"{tensor}_factors"].reshape(-1), np.reciprocal(scales))


def test_all_inputs_that_a_mul_divides_get_scales():
    _, facts = divided(csp(), weight_bits=4, act_bits=8)
    assert facts[Reconstruction].scales.keys() == facts[Migration].scales.keys() != set()


def test_scales_stay_unless_weights_are_narrower_than_activations():
    _, facts = divided(csp(), weight_bits=4, act_bits=4)
    assert facts[Migration].scales
    assert not facts[Reconstruction].scales


def computed_bias(net, channels):
    return net.add("Mul", net.const(net.normal(channels)), net.add("ReduceMax", "images", keepdims=0))


def test_layers_that_are_not_fitted_are_told_of_if_they_are_many(caplog):
    net = Net()
    x = net.block("images", 8)
    for name in ("one", "two"):
        x = net.silu(
            net.add("Conv", x, net.const(net.normal(8, 8, 3, 3)), computed_bias(net, 8), name=name, pads=[1] * 4)
        )
        net.channels[x] = 8
    rebuilt(net.model(net.conv(x, 4, name="last")))
    assert "2 of 4 layers cannot be reconstructed" in caplog.text
    assert "The first is one" in caplog.text
    caplog.clear()
    rebuilt(csp())
    assert "cannot be reconstructed" not in caplog.text


def test_a_network_of_which_no_layer_can_be_fitted_keeps_its_rounded_weights(caplog):
    net = Net()
    x, weight = "images", net.const(net.normal(3, 3, 3, 3, scale=0.3), name="weight")
    for name in ("one", "two"):
        x = net.silu(net.add("Conv", x, weight, computed_bias(net, 3), name=name, pads=[1] * 4))
        net.channels[x] = 3
    plain, reconstructed, facts = rebuilt(net.model(x), include=("one", "two"))
    assert "all of 2 layers cannot be reconstructed" in caplog.text
    assert facts[Reconstruction] == Reconstruction({}, {}, {})
    assert initializers(plain).keys() == initializers(reconstructed).keys()
