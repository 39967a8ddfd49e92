from dataclasses import replace

import numpy as np
import pytest
from graphs import Net, csp, feed, prepared

from onnxq import Config, quantize
from onnxq.errors import DataError
from onnxq.facts import Statistics
from onnxq.numerics.channel_statistics import ChannelStatistics
from onnxq.numerics.input_covariance import InputCovariance
from onnxq.qdq.channel_statistics import channel_statistics, is_derived

CONFIG = Config(target="openvino", reconstruct=False)


def of(values):
    """The statistics of an image, (channels, positions)."""
    even = len(values) // 2 * 2
    return ChannelStatistics(
        values.mean(axis=1), values.var(axis=1), values.max(axis=1), (values[0:even:2] + values[1:even:2]).max(axis=1)
    )


def joined(sizes, axis=1, wrap=None):
    """A tensor that is joined of ones with these numbers of channels, and the values of these."""
    net = Net()
    parts = [net.conv("images", size, name=f"part{k}") for k, size in enumerate(sizes)]
    x = net.add("Concat", *parts, axis=axis, name="joined")
    net.channels[x] = sum(sizes)
    if wrap:
        x = wrap(net, x)
    model = prepared(net.model(net.add("Relu", x, name="reader")))
    rng = np.random.default_rng(0)
    values = {part: rng.normal(size=(size, 20)) for part, size in zip(parts, sizes, strict=True)}
    return model.nodes["reader"].inputs[0], values


def test_what_is_observed_is_returned():
    tensor, _ = joined([2, 4])
    observed = of(np.arange(12.0).reshape(6, 2))
    assert channel_statistics(tensor, {tensor.name: observed}) is observed


@pytest.mark.parametrize("sizes", [[2, 4], [4, 3], [3, 5], [1, 2, 3], [3, 1, 4, 2]], ids=str)
def test_a_concat_has_the_channels_of_its_parts(sizes):
    tensor, values = joined(sizes)
    found = channel_statistics(tensor, {name: of(each) for name, each in values.items()})
    whole = of(np.concatenate(list(values.values())))
    for kind in ("means", "variances", "peaks"):
        np.testing.assert_array_equal(getattr(found, kind), getattr(whole, kind))
    assert found.pair_peaks.shape == whole.pair_peaks.shape
    assert (found.pair_peaks >= whole.pair_peaks).all()
    owner = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for pair in range(sum(sizes) // 2):
        first, second = owner[2 * pair : 2 * pair + 2]
        if first == second and starts[first] % 2 == 0:
            assert found.pair_peaks[pair] == whole.pair_peaks[pair]
        else:  # only the sum of the peaks is known
            assert found.pair_peaks[pair] == whole.peaks[2 * pair] + whole.peaks[2 * pair + 1]


def test_a_resize_that_makes_more_channels_has_its_own():
    def more(net, x):
        y = net.add("Resize", x, "", net.const([1.0, 2.0, 1.0, 1.0]), mode="nearest")
        net.channels[y] = 10
        return y

    tensor, values = joined([2, 3], wrap=more)
    observed = {name: of(each) for name, each in values.items()}
    assert not is_derived(tensor, observed)
    net = Net(size=32)
    x = more(net, net.block("images", 5, act="Relu"))
    model = net.model(net.conv(net.block(x, 8), 4))
    assert quantize(model, [feed(model)], CONFIG).facts[Statistics].channels[x].means.shape == (10,)


def test_a_resize_has_the_channels_of_its_input():
    tensor, values = joined([2, 3], wrap=lambda net, x: net.upsample(x))
    observed = {name: of(each) for name, each in values.items()}
    found = channel_statistics(tensor, observed)
    np.testing.assert_array_equal(found.peaks, np.concatenate([each.peaks for each in observed.values()]))
    assert is_derived(tensor, observed)


@pytest.mark.parametrize(
    "case",
    [
        lambda: (joined([2, 3])[0], {}),
        lambda: (joined([2, 3])[0], {"part0_out": of(np.ones((2, 4)))}),
        lambda: (joined([3, 3], axis=2)[0], {f"part{k}_out": of(np.ones((3, 4))) for k in range(2)}),
        lambda: (joined([2], wrap=lambda net, x: net.pool(x))[0], {"part0_out": of(np.ones((2, 4)))}),
    ],
    ids=["nothing observed", "a part not observed", "Concat of heights", "MaxPool"],
)
def test_of_other_tensors_nothing_is_known(case):
    tensor, observed = case()
    assert channel_statistics(tensor, observed) is None
    assert not is_derived(tensor, observed)


def given(model, **parts):
    """Statistics of a small detector, with parts that were changed."""
    return replace(quantize(model, [feed(model)], CONFIG).facts[Statistics], **parts)


def test_statistics_of_this_model_are_taken():
    model = csp()
    quantize(model, None, CONFIG, facts=[given(model)])


def test_channels_of_another_number_are_refused():
    model = csp()
    channels = dict(given(model).channels)
    name, found = next(iter(channels.items()))
    channels[name] = ChannelStatistics(*(np.append(array, 1.0) for array in vars(found).values()))
    with pytest.raises(DataError, match=rf"{len(found.means) + 1} channels of the tensor '{name}', which has"):
        quantize(model, None, CONFIG, facts=[given(model, channels=channels)])


def test_a_covariance_of_another_size_is_refused():
    model = csp()
    [(name, found), *_] = given(model).inputs.items()
    other = InputCovariance(np.ones((3, 5, 5), np.float32), np.eye(2))
    said = rf"3 blocks of 5 channels and 2 taps for the layer '{name}', which has {found.channels.shape[1]} inputs of a"
    with pytest.raises(DataError, match=said):
        quantize(model, None, CONFIG, facts=[given(model, inputs={name: other})])
