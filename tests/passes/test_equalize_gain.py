"""The gain of equalization: quantized models lose less, and saved statistics still fit."""

import numpy as np
import pytest
from graphs import (
    Net,
    csp,
    feed,
    initializers,
    rewrite,
)
from unbalanced import FACTORS, edited, with_rows

from onnxq import Config, DataError, quantize
from onnxq.api import cut_decode
from onnxq.facts import Statistics, Verification
from onnxq.passes.equalize import Equalize
from onnxq.targets import TARGETS


def unbalanced(act="Relu"):
    """Convs with activations; the channels of the second one are of unequal size, which the third one undoes."""
    net = Net(size=64)
    x = net.block("images", 32, stride=2, act=act)
    for name in ("maker", "reader"):
        x = net.act(net.conv(x, 32, 3, name=name), act)
    factors = np.tile(FACTORS, 4).astype(np.float32)
    model = with_rows(net.model(net.conv(x, 4, name="last")), factors=factors)
    return edited(model, lambda values: values["reader_weight"].__itruediv__(factors.reshape(1, -1, 1, 1)))


def outcome(model, target, equalize, include=(), **options):
    feeds = [feed(model, seed) for seed in range(4)]
    return quantize(model, feeds, Config(target=target, equalize=equalize, include=include), **options)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("act", ["Relu", "LeakyRelu"])
def test_unbalanced_channels_lose_less(act, target):
    model = unbalanced(act)
    integers = ("maker", "reader")  # else they would stay float without it
    without, with_it = (outcome(model, target, equalize, integers) for equalize in (False, True))
    assert with_it.facts[Verification].simulated["output"] > without.facts[Verification].simulated["output"] + 3


def test_statistics_fit_the_graph_that_they_were_made_with():
    model = unbalanced()
    for equalize in (False, True):
        first = outcome(model, "generic", equalize)
        again = outcome(model, "generic", equalize, facts=[first.facts[Statistics]])
        assert initializers(again.model).keys() == initializers(first.model).keys()
        assert again.model.graph.SerializeToString() == first.model.graph.SerializeToString()
        with pytest.raises(DataError, match="another model, or with another choice of --equalize"):
            outcome(model, "generic", not equalize, facts=[first.facts[Statistics]])


def test_statistics_fit_both_where_nothing_is_edited():
    model = csp()
    first = outcome(model, "generic", True)
    again = outcome(model, "generic", False, facts=[first.facts[Statistics]])
    assert again.model.graph.SerializeToString() == first.model.graph.SerializeToString()


def test_a_graph_without_its_decode_is_equalized_alike():
    model = unbalanced()
    assert initializers(cut_decode(model, Config(equalize=False)))["maker_weight"] == pytest.approx(
        initializers(model)["maker_weight"]
    )
    after, _ = rewrite(Equalize(), model)
    assert np.array_equal(initializers(cut_decode(model))["maker_weight"], initializers(after)["maker_weight"])
