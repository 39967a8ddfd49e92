import pytest

from onnxq.report.findings import findings


def fit(sqnr, clipped=0.0, low=-1.0, high=1.0):
    return {"sqnr": sqnr, "clipped": clipped, "low": low, "high": high}


def tensor(name, sqnr, users=(), clipped=0.0, silu=False, bits=8, method="uh"):
    return {
        "tensor": name, "group": name, "users": list(users), "method": method, "silu_input": silu, "bits": bits,
        **fit(sqnr, clipped),
    }  # fmt: skip


def weight(kind, *layers):
    return {"kind": kind, "layers": list(layers)}


def report(*tensors, methods=None, **changes):
    """A report in which nothing stands out but what is given."""
    values = {t["tensor"]: {"methods": {"minmax": fit(1.0, low=-9.0, high=9.0), **(methods or {})}} for t in tensors}
    plain = {
        "synthetic": False, "method": "uh", "weight_bits": 8, "act_bits": 8,
        "runtime": "onnxruntime", "layers": {"unfused": []}, "sensitivity": [],
        "search": {}, "weights": [], "activations": list(tensors), "values": values,
    }  # fmt: skip
    return plain | changes


def said(made):
    return [(each["what"], each["try"]) for each in findings(made)]


def test_nothing_stands_out():
    assert said(report()) == []
    assert said(report(tensor("a", 40.0), tensor("known", None))) == []


def test_no_pictures():
    [(what, remedy)] = said(report(synthetic=True))
    assert what.startswith("The ranges are those of synthetic scenes")
    assert remedy.startswith("`--calib DIR`")


def test_what_was_not_measured():
    [(_, remedy)] = said(report(search=None))
    assert "--sensitivity" in remedy
    piece = {"nodes": ["conv0"], "sqnr": 3.0, "moved": None}
    assert said(report(search=None, sensitivity=[piece])) == []


def test_layers_that_run_in_float_all_the_same():
    made = report(layers={"unfused": ["a", "b", "c", "d", "e"]})
    assert said(made) == [("onnxruntime runs a, b, c and 2 more in float all the same.", "`--exclude a`")]


def test_layers_that_move_boxes():
    pieces = [{"nodes": [name, "behind"], "sqnr": 3.0, "moved": moved} for name, moved in zip("abcd", (4, 2, 2, 2))]
    [(what, remedy)] = said(report(sensitivity=pieces))
    assert what == "Of how far boxes move when layers are quantized one by one, 80 % comes from a, b, c."
    assert remedy.startswith("`--exclude a b c`")
    [(_, remedy)] = said(report(sensitivity=pieces, weight_bits=4))
    assert remedy.startswith("`--bits a=8/8 b=8/8 c=8/8`")
    assert said(report(sensitivity=[{**piece, "moved": 0.0} for piece in pieces])) == []


def test_a_kind_of_layers_that_loses_most():
    tensors = [
        tensor("a", 35.0, ["d0"]),
        tensor("b", 33.0, ["d1"]),
        tensor("c", 44.0, ["p0"]),
        tensor("d", 46.0, ["p1"]),
    ]
    weights = [weight("depthwise Conv", "d0"), weight("depthwise Conv", "d1"), weight("1x1 Conv", "p0", "p1")]
    [(what, remedy)] = said(report(*tensors, weights=weights))
    assert remedy.startswith("`--sensitivity`")
    measured = [{"nodes": ["d0"], "sqnr": 3.0, "moved": None}]
    assert said(report(*tensors, weights=weights, sensitivity=measured))[0][1].startswith("the sensitivities")
    assert what == ("depthwise Convs lose most: what they read has 34.0 dB on average, what other layers read 45.0 dB.")
    assert said(report(*tensors[:2], weights=weights[:2])) == []
    near = [tensor("c", 36.0, ["p0"]), tensor("d", 36.0, ["p1"])]
    assert said(report(*tensors[:2], *near, weights=weights)) == []


@pytest.mark.parametrize(("bits", "remedy"), [(8, "`--exclude conv`"), (4, "`--bits conv=8/8`")])
def test_tensors_that_rounding_harms(bits, remedy):
    made = report(tensor("good", 50.0), tensor("bad", 21.3, ["conv", "other"], bits=bits), tensor("poor", 25.0))
    assert said(made) == [("Rounding costs most at bad (21.3 dB), poor (25.0 dB).", remedy)]


def test_tensors_that_share_a_scale_are_told_once():
    twice = report(tensor("bad", 21.0, ["conv"]), tensor("also", 21.0, ["conv"]))
    twice["activations"][1]["group"] = "bad"
    assert said(twice)[0][0] == "Rounding costs most at bad (21.0 dB)."


def test_the_range_that_cuts_off_most():
    made = report(tensor("a", 40.0, clipped=0.004), tensor("b", 40.0, clipped=0.0123))
    [(what, remedy)] = said(made)
    assert what == "The range of b, -1 to 1, cuts off 1.23 % of its values, which reach from -9 to 9."
    assert remedy.startswith("`--method minmax`")
    assert said(report(tensor("a", 40.0, clipped=0.5, silu=True))) == []


def test_a_method_with_less_noise():
    methods = {"mse": fit(44.0), "entropy": fit(None)}
    [(what, remedy)] = said(report(tensor("a", 40.0), tensor("b", 42.0), methods=methods))
    assert what == "1 of 2 tensors would have at least 3 dB less noise by mse, up to 4.0 dB."
    assert remedy == "`--method mse`"
    assert said(report(tensor("a", 40.0, method="minmax"), methods=methods)) == []
