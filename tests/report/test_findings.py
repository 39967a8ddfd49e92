from dataclasses import replace

import pytest

from onnxq.report.findings import findings
from onnxq.report.schema import (
    FORMAT,
    ActivationEntry,
    DetectorEntry,
    FileSizes,
    LayersEntry,
    OperatorCounts,
    RangeEntry,
    Report,
    SearchEntry,
    SensitivityEntry,
    ValuesEntry,
    WeightEntry,
)


def fit(sqnr, low=-1.0, high=1.0):
    return RangeEntry(low, high, sqnr, clipped=0.0)


def tensor(name, sqnr, users=(), clipped=0.0, silu=False, bits=8, method="uh", group=None, own=None):
    return ActivationEntry(
        tensor=name, group=group or name, users=tuple(users), method=method, low=-1.0, high=1.0, sqnr=sqnr,
        clipped=clipped, bits=bits, axis=None, scale=(0.01, 0.01), zero_point=(128,), grid=(-1.0, 1.0), silu_input=silu,
        own=fit(sqnr if own is None else own),
    )  # fmt: skip


def weight(kind, *layers):
    return WeightEntry(
        tensor="w", layers=layers, kind=kind, bits=8, axis=0, scale=(0.1, 0.1), zero_point=(0,), channels=1,
        scales=(0.1,),
    )  # fmt: skip


PLAIN = Report(
    format=FORMAT, onnxq="0", versions={}, model="net.onnx", target="ort", cpu="any", method="uh",
    weight_method="minmax", weight_bits=8, act_bits=8, bits=(), symmetric=False, equalize=True, migrate=False,
    reconstruct=False, keep_bias=False, rounding="feedback", float_type="fp32", pack="none", exclude=(), include=(),
    options=(), detector=DetectorEntry("v8", "detect", (32, 32), "RGB", "it looks so"),
    calibration="images", samples=1, synthetic=False, data_warnings=(), warnings=(), bytes=FileSizes(1, 1), seconds={},
    layers=LayersEntry((), None, ()), runtime="onnxruntime", checked_in="onnxruntime 1", checked_on="AVX2",
    float_={}, operators=OperatorCounts({}, {}), sqnr={}, simulated_sqnr={}, sqnr_against_exact={},
    sensitivity=(), activations=(), values={}, weights=(),
    search=SearchEntry("-0.10 AP", 1, (), ()),
)  # fmt: skip
"""A report without findings."""


def report(*tensors, methods=None, **changes):
    """A report without findings but for what is given."""
    ranges = {"minmax": fit(1.0, low=-9.0, high=9.0), **(methods or {})}
    values = {each.group: ValuesEntry(-9.0, 9.0, (1,), ranges, fit(each.sqnr)) for each in tensors}
    return replace(PLAIN, activations=tensors, values=values, **changes)


def said(made):
    return [(finding.what, finding.try_) for finding in findings(made)]


def test_nothing_stands_out():
    assert said(report()) == []
    assert said(report(tensor("a", 40.0), tensor("known", None))) == []


def test_no_pictures():
    [(what, remedy)] = said(report(synthetic=True))
    assert what.startswith("The ranges come from synthetic images")
    assert remedy.startswith("`--calib DIR`")


def test_what_was_not_measured():
    [(_, remedy)] = said(report(search=None))
    assert "--sensitivity" in remedy
    part = SensitivityEntry(("conv0",), 3.0, None)
    assert said(report(search=None, sensitivity=(part,))) == []


def test_layers_that_run_in_float_all_the_same():
    made = report(layers=LayersEntry((), 0, ("a", "b", "c", "d", "e")))
    assert said(made) == [("onnxruntime runs a, b, c and 2 more in float all the same.", "`--exclude a`")]


def test_layers_that_move_boxes():
    parts = tuple(SensitivityEntry((name, "act"), 3.0, moved) for name, moved in zip("abcd", (4.0, 2.0, 2.0, 2.0)))
    [(what, remedy)] = said(report(sensitivity=parts))
    assert what == "80 % of the movement of boxes, summed over the layers quantized one by one, comes from a, b, c."
    assert remedy.startswith("`--exclude a b c`")
    [(_, remedy)] = said(report(sensitivity=parts, weight_bits=4))
    assert remedy.startswith("`--bits a=8/8 b=8/8 c=8/8`")
    assert said(report(sensitivity=tuple(replace(part, moved=0.0) for part in parts))) == []


def test_a_kind_of_layers_that_loses_most():
    tensors = [
        tensor("a", 35.0, ["d0"]),
        tensor("b", 33.0, ["d1"]),
        tensor("c", 44.0, ["p0"]),
        tensor("d", 46.0, ["p1"]),
    ]
    weights = (weight("depthwise Conv", "d0"), weight("depthwise Conv", "d1"), weight("1x1 Conv", "p0", "p1"))
    [(what, remedy)] = said(report(*tensors, weights=weights))
    assert remedy.startswith("`--sensitivity`")
    measured = (SensitivityEntry(("d0",), 3.0, None),)
    assert said(report(*tensors, weights=weights, sensitivity=measured))[0][1].startswith("the sensitivities")
    assert what == "Inputs of depthwise Convs have the most noise: 34.0 dB on average, those of other layers 45.0 dB."
    assert said(report(*tensors[:2], weights=weights[:2])) == []
    near = [tensor("c", 36.0, ["p0"]), tensor("d", 36.0, ["p1"])]
    assert said(report(*tensors[:2], *near, weights=weights)) == []


@pytest.mark.parametrize(("bits", "remedy"), [(8, "`--exclude conv`"), (4, "`--bits conv=8/8`")])
def test_tensors_that_rounding_harms(bits, remedy):
    made = report(tensor("good", 50.0), tensor("bad", 21.3, ["conv", "other"], bits=bits), tensor("poor", 25.0))
    assert said(made) == [("Tensors with the most rounding noise: bad (21.3 dB), poor (25.0 dB).", remedy)]


def test_tensors_that_share_a_scale_are_told_once():
    twice = report(tensor("bad", 21.0, ["conv"]), replace(tensor("also", 21.0, ["conv"]), group="bad"))
    assert said(twice)[0][0] == "Tensors with the most rounding noise: bad (21.0 dB)."


def test_of_tensors_that_share_a_scale_the_one_with_the_most_noise_of_its_own_is_told():
    great, small = tensor("great", 40.0, ["conv"], own=41.0), tensor("small", 40.0, ["other"], group="great", own=1.8)
    assert said(report(great, small)) == [
        ("Tensors with the most rounding noise: small (1.8 dB).", "`--exclude other`"),
    ]


def test_the_range_that_cuts_off_most():
    made = report(tensor("a", 40.0, clipped=0.004), tensor("b", 40.0, clipped=0.0123))
    [(what, remedy)] = said(made)
    assert what == "The range of b, -1 to 1, clips 1.23 % of its values, which reach from -9 to 9."
    assert remedy.startswith("`--method minmax`")
    assert said(report(tensor("a", 40.0, clipped=0.5, silu=True))) == []


def test_a_method_with_less_noise():
    methods = {"mse": fit(44.0), "entropy": fit(None)}
    [(what, remedy)] = said(report(tensor("a", 40.0), tensor("b", 42.0), methods=methods))
    assert what == "1 of 2 tensors would have at least 3 dB less noise with mse, up to 4.0 dB."
    assert remedy == "`--method mse`"
    assert said(report(tensor("a", 40.0, method="minmax"), methods=methods)) == []
