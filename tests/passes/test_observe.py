import math
import re
from functools import partial

import numpy as np
import pytest
from graphs import (
    Net,
    attention,
    csp,
    feed,
    leaky_net,
    pan,
    planned,
    run,
    samples,
    silu_chain,
    sppf,
    v8,
    yolox,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq import Config, quantize
from onnxq.calibration.feeds import Sample
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.facts import InputSummary, Plan, Probe, Statistics, Verification
from onnxq.numerics.histogram import BINS
from onnxq.numerics.silu import SILU_FLAT_BELOW
from onnxq.passes.observe import Observe
from onnxq.pipeline import Facts, Pipeline
from onnxq.targets import GENERIC, OPENVINO, ORT, TARGETS


def observe(model, data, target=ORT, progress=None):
    """The plan of a model and the statistics of the data, feeds or Samples."""
    working, plan = planned(model, target)
    data = data if isinstance(data, Samples) or data is None else samples(data)
    step = Observe(data) if progress is None else Observe(data, progress)
    return plan, Pipeline([step], pinned=[plan]).run(working)[Statistics]


def summary(statistics):
    """All that was observed, to compare bit for bit."""
    histograms = {
        name: (h.counts.tobytes(), h.exponent, h.start, h.low, h.high, h.floor)
        for name, h in statistics.histograms.items()
    }
    channels = {
        name: [array.tobytes() for array in vars(found).values()] for name, found in statistics.channels.items()
    }
    inputs = {layer: (c.channels.tobytes(), c.taps.tobytes()) for layer, c in statistics.inputs.items()}
    return histograms, channels, inputs


def values_of(model, plan, feeds, target):
    """Return the values of the observed tensors over all feeds."""
    prepared = planned(model, target)[0].to_proto()
    runs = [run(prepared, values, outputs=list(plan.observed()), optimized=True) for values in feeds]
    return {name: np.concatenate([each[name].ravel() for each in runs]) for name in plan.observed()}


def test_means_are_those_of_a_picture_that_is_cut_up_into_a_batch_too():
    net = Net()
    x = net.block("images", 8, act="Relu")
    pieces = net.add("Reshape", x, net.ints(4, 8, 16, 16))
    net.channels[pieces] = 8
    model = net.model(net.conv(net.block(pieces, 8, act="Relu"), 4))
    feeds = [feed(model, seed) for seed in range(3)]
    _, statistics = observe(model, feeds, OPENVINO)
    assert {"images", pieces} < statistics.channels.keys()
    for name in statistics.channels.keys() - {"images"}:
        values = np.concatenate([run(model, each, outputs=[name])[name] for each in feeds])
        np.testing.assert_allclose(statistics.channels[name].means, values.mean(axis=(0, 2, 3)), atol=1e-5)


# --- channels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [ORT, OPENVINO], ids=lambda t: t.name)
@pytest.mark.parametrize("build", [csp, pan, leaky_net, partial(csp, batch=2), partial(pan, batch=3)])
def test_statistics_of_channels_are_those_of_all_values(build, target):
    model = build()
    feeds = [feed(model, seed) for seed in range(3)]
    plan, statistics = observe(model, feeds, target)
    prepared = planned(model, target)[0].to_proto()
    assert statistics.channels
    assert statistics.channels.keys() >= {n for n, p in plan.observed().items() if not p.silu_input}
    for name, found in statistics.channels.items():
        runs = [each[name] if name in each else run(prepared, each, [name], optimized=True)[name] for each in feeds]
        values = np.concatenate(runs)
        by_channel = values.swapaxes(0, 1).reshape(values.shape[1], -1)
        assert np.array_equal(found.peaks, by_channel.max(axis=1)), name
        even = len(by_channel) // 2 * 2
        assert np.array_equal(found.pair_peaks, (by_channel[0:even:2] + by_channel[1:even:2]).max(axis=1)), name
        np.testing.assert_allclose(found.means, by_channel.mean(axis=1, dtype=np.float64), atol=1e-6)
        size = values[0, 0].size
        sampled = values.reshape(*values.shape[:2], -1)[:, :, :: {1024: 5}.get(size, 1)].swapaxes(0, 1)
        variances = sampled.reshape(values.shape[1], -1).var(axis=1, dtype=np.float64)
        np.testing.assert_allclose(found.variances, variances, rtol=1e-6, atol=1e-9)


def test_of_large_tensors_statistics_of_channels_are_those_of_all_values_too():
    # In several blocks, with an odd number of channels.
    net = Net(size=256)
    x = net.add("Relu", net.conv("images", 13, 3, name="wide"))
    net.channels[x] = 13
    model = net.model(net.conv(x, 4))
    feeds = [feed(model, seed) for seed in range(2)]
    _, statistics = observe(model, feeds, OPENVINO)
    values = np.concatenate([run(model, each, outputs=[x], optimized=True)[x] for each in feeds])
    found = statistics.channels[x]
    assert np.array_equal(found.peaks, values.max(axis=(0, 2, 3)))
    assert np.array_equal(found.pair_peaks, (values[:, 0:12:2] + values[:, 1:12:2]).max(axis=(0, 2, 3)))
    np.testing.assert_allclose(found.means, values.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(found.variances, values.var(axis=(0, 2, 3), dtype=np.float64), rtol=0.3)
    assert (statistics.histograms[x].low, statistics.histograms[x].high) == (values.min(), values.max())


def test_the_input_of_a_layer_behind_another_operator_is_observed_too():
    net = Net()
    x = net.block("images", 6)
    x = net.add("Concat", x, x, axis=2)
    net.channels[x] = 6
    model = net.model(net.conv(x, 4, name="reader"))
    plan, statistics = observe(model, [feed(model)])
    assert x in {planned(model)[0].nodes[name].inputs[0].name for name in plan.layers}
    assert statistics.channels[x].peaks.shape == (6,)


# --- what is counted --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("build", [csp, sppf, pan, leaky_net, attention, v8, yolox])
def test_histograms_are_those_of_the_tensors_values(build, target):
    model = build()
    feeds = [feed(model, seed) for seed in range(3)]
    plan, statistics = observe(model, feeds, target)
    assert statistics.histograms.keys() == plan.observed().keys()
    assert statistics.samples == 3
    for name, values in values_of(model, plan, feeds, target).items():
        histogram = statistics.histograms[name]
        floored = np.maximum(values, SILU_FLAT_BELOW) if plan.observed()[name].silu_input else values
        assert (histogram.low, histogram.high) == (float(floored.min()), float(floored.max())), name
        counts, _ = np.histogram(floored.astype(np.float64), histogram.edges)
        assert np.array_equal(histogram.counts, counts), name
        assert histogram.total == values.size


def test_inputs_of_silu_are_counted_from_where_silu_is_flat():
    _, statistics = observe(csp(), [feed(csp())])
    floors = {name: h.floor for name, h in statistics.histograms.items()}
    floored = {name for name, floor in floors.items() if floor == SILU_FLAT_BELOW}
    assert floored == {"conv1_out", "conv2_out", "conv3_out"}
    assert {floor for name, floor in floors.items() if not name.startswith("conv")} == {-math.inf}

    net = Net(size=512)
    model = net.model(net.conv(net.block("images", 4, stride=16), 4))
    values = feed(model)
    image = values["images"].reshape(-1)
    image[1], image[2] = -3, 5
    _, statistics = observe(model, [values, values], OPENVINO)
    histogram = statistics.histograms["images"]
    assert (histogram.low, histogram.high) == (-3, 5)
    spacing = round(2 * image.size / histogram.total)
    assert spacing > 4  # so that the extremes are not among the values counted
    counted = image[::spacing]
    assert np.array_equal(histogram.counts, 2 * np.histogram(counted.astype(np.float64), histogram.edges)[0])


def test_a_small_tensor_is_counted_whole():
    _, statistics = observe(silu_chain(), [feed(silu_chain())], OPENVINO)
    assert statistics.histograms["images"].total == 3 * 32 * 32
    assert statistics.histograms["images"].counts.size == BINS


def test_with_channels_last_all_channels_are_counted():
    net = Net(size=64)
    x = net.block("images", 48, stride=2, act="Relu")
    last = net.add("Transpose", x, perm=[0, 2, 3, 1])
    rows = net.add("Relu", net.add("MatMul", net.reshape(last, 1, 1024, 48), net.const(net.normal(48, 48))))
    image = net.add("Transpose", net.reshape(rows, 1, 32, 32, 48), perm=[0, 3, 1, 2])
    net.channels[image] = 48
    model = net.model(net.conv(image, 4))
    values = feed(model)
    _, statistics = observe(model, [values], GENERIC)
    channels = run(model, values, outputs=[rows])[rows].reshape(-1, 48)
    histogram = statistics.histograms[rows]
    assert histogram.total < channels.size
    centers = (histogram.edges[1:] + histogram.edges[:-1]) / 2
    mean = np.average(centers, weights=histogram.counts)
    assert mean == pytest.approx(channels.mean(), rel=0.02)
    assert abs(channels[:, ::3].mean() / channels.mean() - 1) > 0.1  # so that a third of the channels does not pass


# --- order and batches ------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_samples_makes_no_difference(order):
    model = csp()
    feeds = [feed(model, seed) for seed in range(6)]
    assert summary(observe(model, [feeds[k] for k in order])[1]) == summary(observe(model, feeds)[1])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_how_samples_are_batched_makes_no_difference(batches):
    model = csp(dynamic=True)
    images = np.random.default_rng(0).random((sum(batches), 3, 32, 32), np.float32)
    together = [{"images": part} for part in np.split(images, np.cumsum(batches)[:-1])]
    one_by_one = [{"images": image[None]} for image in images]
    assert summary(observe(model, together)[1]) == summary(observe(model, one_by_one)[1])


def test_of_large_tensors_a_batch_is_counted_as_its_samples():
    net = Net(dynamic=True)
    model = net.model(net.conv(net.block("images", 4, stride=4), 4))
    images = np.random.default_rng(0).random((3, 3, 256, 256), np.float32)
    together = observe(model, [{"images": images}], OPENVINO)[1]
    one_by_one = observe(model, [{"images": image[None]} for image in images], OPENVINO)[1]
    assert summary(together) == summary(one_by_one)
    assert together.histograms["images"].total < images.size


def test_two_runs_are_equal_bit_for_bit():
    feeds = [feed(v8(), seed) for seed in range(8)]
    assert summary(observe(v8(), feeds)[1]) == summary(observe(v8(), feeds)[1])


def test_samples_that_only_fill_a_batch_do_not_count():
    model = csp(batch=2)
    values = feed(model)
    padded = {"images": values["images"].copy()}
    padded["images"][1] = 100
    whole = Samples((partial(Sample, values, 2), partial(Sample, padded, 1)), 3, "made up")
    _, statistics = observe(model, whole)
    assert statistics.samples == 3
    single = csp(dynamic=True)
    images = [values["images"][:1], values["images"][1:], padded["images"][:1]]
    assert summary(statistics) == summary(observe(single, [{"images": image} for image in images])[1])


# --- inputs -----------------------------------------------------------------------------------------------------------


def inputs(model, data):
    """The probe and the summary of the inputs."""
    working, plan = planned(model)
    facts = Pipeline([Observe(samples(data))], pinned=[plan]).run(working)
    return facts[Probe], facts[InputSummary]


def test_the_first_samples_that_can_be_read_are_kept_in_order():
    model = csp()
    feeds = [feed(model, seed) for seed in range(6)]
    for _ in range(5):  # whichever worker is done first
        probe, summary = inputs(model, [None, feeds[0], None, *feeds[1:]])
        assert [values["images"].tobytes() for values in probe.feeds] == [f["images"].tobytes() for f in feeds[:2]]
        assert summary.samples == 6


def test_of_fewer_samples_all_are_kept():
    assert len(inputs(csp(), [feed(csp())])[0].feeds) == 1


def test_the_summary_is_that_of_all_inputs():
    feeds = [feed(csp(), seed) for seed in (0, 1, 0, 2)]
    _, summary = inputs(csp(), feeds)
    images = np.concatenate([values["images"] for values in feeds])
    assert summary == InputSummary(float(images.min()), float(images.max()), 4, 3, most_equal=2)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def assert_names_a_bad_tensor(model, feeds, bad, target=ORT):
    """Assert that the data is refused, and that the message names a tensor which really holds such values."""
    with pytest.raises(
        DataError, match=r"holds NaN or infinite values for a calibration sample; check the mo"
    ) as caught:
        observe(model, feeds, target)
    named = re.match(r"tensor '(\w+)' holds", str(caught.value)).group(1)
    working, plan = planned(model, target)
    assert named in plan.observed()
    assert not np.isfinite(run(working.to_proto(), bad, outputs=[named])[named]).all()


@pytest.mark.parametrize("target", [ORT, OPENVINO], ids=lambda t: t.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_holds_no_number_is_refused_with_a_tensor_it_reaches(value, target):
    model = silu_chain()
    bad = feed(model)
    bad["images"][0, 0, 0, 0] = value
    assert_names_a_bad_tensor(model, [feed(model), bad, feed(model)], bad, target)


def test_the_input_is_named_where_nothing_else_is_observed():
    net = Net()
    model = net.model(net.conv("images", 4))
    bad = feed(model)
    bad["images"][0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="tensor 'images' holds NaN or infinite values for a calibration sample"):
        observe(model, [bad], OPENVINO)


def test_a_model_that_makes_nan_of_good_data_is_refused_with_a_tensor_that_holds_it():
    net = Net()
    x = net.add("Sqrt", net.add("Sub", net.block("images", 8), net.const(1)))
    net.channels[x] = 8
    model = net.model(net.conv(net.block(x, 8), 4))
    assert_names_a_bad_tensor(model, [feed(model)], feed(model))


def test_infinite_values_that_are_meant_name_their_node_and_a_remedy_that_works():
    net = Net()
    x = net.block("images", 8)
    x = net.add("Pad", x, net.ints(0, 0, 1, 0, 0, 0, 0, 0), net.const(np.float32(-np.inf)))
    x = net.concat(net.pool(x, 3), net.slice(x, 2, 1), axis=2)
    net.channels[x] = 8
    model = net.model(net.conv(net.block(x, 8), 4))
    told = r"infinite values .*; check the model and its preprocessing\. If Pad 'pad0' is meant .*: --exclude (.+)"
    with pytest.raises(DataError, match=told) as caught:
        quantize(model, [feed(model)], Config(target="generic"))
    named = re.search(told, str(caught.value)).group(1).split()
    quantized = quantize(model, [feed(model)], Config(target="generic", exclude=named))
    assert min(quantized.facts[Verification].simulated.values()) > 25


def test_data_of_which_nothing_can_be_read_is_refused():
    with pytest.raises(DataError, match=re.escape("none of the 2 images could be read; first: 0.jpg is cut short")):
        observe(csp(), [None, None])


def test_a_sample_that_cannot_be_read_is_left_out():
    good = feed(csp())
    _, statistics = observe(csp(), [None, good, None])
    assert statistics.samples == 1
    assert summary(statistics) == summary(observe(csp(), [good])[1])


def test_no_data_at_all_is_refused():
    with pytest.raises(DataError, match="there is no calibration data; give some, or statistics that were saved"):
        observe(csp(), None)


def test_an_empty_generator_is_refused():
    with pytest.raises(DataError, match="the calibration data is empty; a generator or reader can be read only once"):
        observe(csp(), [])


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_a_plan_that_needs_no_data_gets_none():
    working, plan = planned(csp())
    nothing = Plan((), (), frozenset(), (), {})
    statistics, probe, inputs = Observe(None).run(working, Facts([nothing]))
    assert (statistics.histograms, statistics.samples) == ({}, 0)
    assert statistics.digest == working.digest()
    assert (probe.feeds, inputs.samples) == ((), 0)
    assert plan.observed()


def test_statistics_carry_the_digest_of_the_prepared_graph():
    first = observe(csp(), [feed(csp())])[1].digest
    assert first == planned(csp())[0].digest()
    assert first != observe(csp(seed=1), [feed(csp())])[1].digest
    assert first != observe(pan(), [feed(csp())])[1].digest


def test_progress_is_told_after_each_run():
    told = []
    observe(csp(), [feed(csp(), seed) for seed in range(5)], progress=lambda *what: told.append(what))
    assert {(what, steps) for what, _, steps in told} == {("calibrating", 5)}
    done = [count for _, count, _ in told]
    assert done == sorted(done)
    assert done[-1] == 5


def test_the_graph_is_not_touched():
    working, plan = planned(csp())
    before = working.to_proto().SerializeToString(deterministic=True)
    Observe(samples([feed(csp())])).run(working, Facts([plan]))
    assert working.to_proto().SerializeToString(deterministic=True) == before
