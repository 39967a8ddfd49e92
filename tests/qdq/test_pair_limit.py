import numpy as np
import pytest
from graphs import Net, prepared

from onnxq.numerics.channel_statistics import ChannelStatistics
from onnxq.numerics.pair_sums import LARGEST_SUM
from onnxq.numerics.scheme import INT8, INT16, UINT8, UINT16, Range, Scheme
from onnxq.qdq.pair_limit import PairLimits, by_output

WEIGHT = Scheme(8, INT8, symmetric=True, axis=0)
UNSIGNED = Scheme().qparams(Range(0.0, 255.0))  # a step of 1
SIGNED = Scheme(8, INT8, symmetric=True).qparams(Range(-127.0, 127.0))


def observed(peaks, pair_peaks):
    peaks = np.asarray(peaks, float)
    return ChannelStatistics(np.zeros_like(peaks), np.zeros_like(peaks), peaks, np.asarray(pair_peaks, float))


def limit(build, statistics=None, activation=UNSIGNED, weight=WEIGHT):
    """The limit of the layers `layer`, `other` of a network that reads `x`, the output of a Conv with 4 channels."""
    net = Net()
    x = net.conv("images", 4, name="first")
    model = prepared(net.model(build(net, x)))
    layers = [model.nodes[name] for name in ("layer", "other") if name in model.nodes]
    activations = {layer.inputs[0].name: activation for layer in layers}
    if isinstance(activation, dict):
        activations = {layer.inputs[0].name: activation[layer.name] for layer in layers}
    names = {layer.inputs[0].name for layer in layers}
    known = statistics if isinstance(statistics, dict) else dict.fromkeys(names, statistics) if statistics else {}
    return PairLimits(model, known).of(layers, weight, activations)


def conv(net, x):
    return net.conv(x, 6, 3, name="layer")


PEAKS = [10.0, 20.0, 30.0, 400.0]
PAIRS = [15.0, 410.0]


def test_the_integers_are_those_of_the_calibration_data_and_two_steps_more():
    found = limit(conv, observed(PEAKS, PAIRS))
    assert found.peaks.tolist() == [[12, 22, 32, 255]]
    # Two roundings are up to a step more, and each channel may exceed what was observed by two.
    assert found.pair_peaks.tolist() == [[15 + 1 + 4, 410 + 1 + 4]]


def test_signed_activations_are_128_more_in_runtimes():
    found = limit(conv, observed(PEAKS, PAIRS), SIGNED)
    assert found.peaks.tolist() == [[12 + 128, 22 + 128, 32 + 128, 255]]
    assert found.pair_peaks.tolist() == [[15 + 5 + 256, 410 + 5 + 256]]


def test_the_padding_has_the_zero_point():
    shifted = Scheme().qparams(Range(-100.0, 155.0))
    assert shifted.zero_point == 100
    found = limit(conv, observed([-50.0, 20.0, -80.0, -90.0], [-40.0, -175.0]), shifted)
    assert found.peaks.tolist() == [[100, 122, 100, 100]]
    assert found.pair_peaks.tolist() == [[200, 200]]


@pytest.mark.parametrize(("activation", "most"), [(UNSIGNED, 255), (SIGNED, 255)], ids=["uint8", "int8"])
@pytest.mark.parametrize("statistics", [None, observed([1.0, 2.0], [3.0])], ids=["unknown", "of other channels"])
def test_unknown_inputs_reach_every_integer(activation, most, statistics):
    found = limit(conv, statistics, activation)
    assert found.peaks.tolist() == [[most] * 4]
    assert found.pair_peaks.tolist() == [[2 * most] * 2]


def test_images_reach_every_integer():
    net = Net()
    model = prepared(net.model(net.conv("images", 4, 3, name="layer")))
    dark = {"images": observed([1.0, 2.0, 3.0], [2.0])}
    found = PairLimits(model, dark).of([model.nodes["layer"]], WEIGHT, {"images": UNSIGNED})
    assert found.peaks.tolist() == [[255] * 3]


def test_narrow_activations_reach_their_own_greatest_integer():
    found = limit(conv, activation=Scheme(4).qparams(Range(0.0, 15.0)))
    assert found.peaks.tolist() == [[15] * 4]


def depthwise(net, x):
    return net.conv(x, 4, 3, group=4, name="layer")


def transposed(net, x, group=1):
    return net.add("ConvTranspose", x, net.const(net.normal(4, 6, 2, 2)), name="layer", strides=[2, 2], group=group)


@pytest.mark.parametrize(
    ("build", "activation", "weight"),
    [
        (depthwise, UNSIGNED, WEIGHT),
        (lambda net, x: transposed(net, x, 2), UNSIGNED, Scheme(8, INT8, True, 1)),
        (conv, UNSIGNED, Scheme(7, INT8, True, 0)),
        (conv, UNSIGNED, Scheme(8, UINT8, True, 0)),
        (conv, UNSIGNED, Scheme(8, INT8, False, 0)),
        (conv, UNSIGNED, Scheme(16, INT16, True, 0)),
        (conv, Scheme(16, UINT16).qparams(Range(0.0, 1.0)), WEIGHT),
    ],
    ids=[
        "depthwise",
        "grouped ConvTranspose",
        "7 bits",
        "unsigned",
        "asymmetric",
        "16-bit weight",
        "16-bit activation",
    ],
)
def test_what_cannot_saturate_has_no_limit(build, activation, weight):
    assert limit(build, None, activation, weight) is None


def test_several_filters_per_channel_have_a_limit():
    """Kernels for one filter per channel add in 32 bits; these Convs run in those for groups."""
    found = limit(lambda net, x: net.conv(x, 8, 3, group=4, name="layer"), observed(PEAKS, PAIRS))
    assert found.peaks.tolist() == [[12], [12], [22], [22], [32], [32], [255], [255]]
    weight = np.full((8, 1, 3, 3), 100, np.int8)
    np.testing.assert_allclose(found.shares_of(weight, 0) * LARGEST_SUM, 200 * found.peaks[:, 0])


def test_a_transposed_conv_has_the_limit_of_its_input_channels():
    found = limit(transposed, observed(PEAKS, PAIRS), weight=Scheme(8, INT8, True, 1))
    assert found.peaks.tolist() == [[12, 22, 32, 255]]
    weight = np.zeros((4, 6, 2, 2), np.int8)
    weight[2:, 5, 0, 1] = 127
    assert np.flatnonzero(found.shares_of(weight, 1) > 1).tolist() == [5]


def test_groups_have_the_peaks_of_their_own_channels():
    found = limit(lambda net, x: net.conv(x, 6, 3, group=2, name="layer"), observed(PEAKS, PAIRS))
    assert found.peaks.tolist() == [[12, 22]] * 3 + [[32, 255]] * 3
    assert found.pair_peaks.tolist() == [[20]] * 3 + [[415]] * 3
    assert found.at(np.array([5, 0])).peaks.tolist() == [[32, 255], [12, 22]]


def test_a_shared_weight_takes_the_greatest_of_its_inputs():
    def build(net, x):
        weight = net.const(net.normal(6, 4, 1, 1), name="weight")
        relu = net.add("Relu", x, name="relu")
        return net.add("Add", net.add("Conv", x, weight, name="layer"), net.add("Conv", relu, weight, name="other"))

    known = {"first_out": observed(PEAKS, PAIRS), "relu_out": observed([5.0, 50.0, 5.0, 5.0], [52.0, 7.0])}
    found = limit(build, known)
    assert found.peaks.tolist() == [[12, 52, 32, 255]]
    assert found.pair_peaks.tolist() == [[57, 415]]
    known.pop("relu_out")
    assert limit(build, known).peaks.tolist() == [[255] * 4]


@pytest.mark.parametrize("grouped_first", [False, True])
def test_layers_of_one_weight_have_the_channels_of_their_own_groups(grouped_first):
    def build(net, x):
        weight = net.const(net.normal(4, 2, 1, 1), name="weight")
        wide, narrow = ("layer", "other") if grouped_first else ("other", "layer")
        halves = net.add("Slice", x, net.ints(0), net.ints(2), net.ints(1), name="half")
        return net.concat(net.add("Conv", x, weight, name=wide, group=2), net.add("Conv", halves, weight, name=narrow))

    found = limit(build, {"first_out": observed(PEAKS, PAIRS), "half_out": observed([50.0, 5.0], [52.0])})
    assert found.peaks.tolist() == [[52, 22]] * 2 + [[52, 255]] * 2
    assert found.pair_peaks.tolist() == [[57]] * 2 + [[415]] * 2


def gemm(net, x):
    rows = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.add("Gemm", rows, net.const(net.normal(4, 10)), name="layer")


def matmul(net, x):
    """A product over the last axis of a tensor whose axis 1 has the same size."""
    rows = net.reshape(x, 1, 4, -1, 4)
    return net.add("MatMul", rows, net.const(net.normal(4, 10)), name="layer")


@pytest.mark.parametrize("build", [gemm, matmul])
def test_rows_have_no_channels_of_an_image(build):
    found = limit(build, observed(PEAKS, PAIRS), weight=Scheme(8, INT8, True, 1))
    assert found.peaks.tolist() == [[255] * 4]
    weight = np.zeros((4, 10), np.int8)
    weight[:2, 7] = 127
    shares = found.shares_of(weight, 1)
    assert shares.shape == (10,)
    assert shares[7] == pytest.approx(2 * 127 * 255 / LARGEST_SUM)
    assert not np.delete(shares, 7).any()


def test_shares_are_of_the_largest_sum():
    found = limit(conv, observed([255.0] * 4, [510.0, 510.0]))
    weight = np.zeros((3, 4, 3, 3), np.int8)
    weight[1, :2, 1, 1] = 64
    weight[2, 1:3, 1, 1] = 127  # no pair
    np.testing.assert_allclose(found.shares_of(weight, 0), np.array([0, 64 * 510, 127 * 255]) / LARGEST_SUM)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 2), 0), ((4, 6), 1), ((6, 4), 0)], ids=str)
def test_by_output(shape, axis):
    weight = np.arange(np.prod(shape)).reshape(shape)
    found = by_output(weight, axis)
    assert found.shape[:2] == (6, 4)
    assert np.array_equal(found[5, 3].ravel(), np.take(np.take(weight, 5, axis), 3, 0).ravel())
