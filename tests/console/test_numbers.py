import math

from onnxq.console.numbers import decibels, finite, show_numbers


def test_a_table_stands_below_its_title(capsys):
    show_numbers("noise of the outputs", "output", ["SQNR dB"], [("boxes[0]", "41.0"), ("scores", "-")])
    title, _, head, rule, *rows = capsys.readouterr().out.splitlines()
    assert title == "noise of the outputs"
    assert head.split() == ["output", "SQNR", "dB"]
    assert set(rule.strip()) == {"─"}
    assert [row.split() for row in rows if row.strip()] == [["boxes[0]", "41.0"], ["scores", "-"]]


def test_numbers_that_json_lacks_are_none():
    given = {"a": math.nan, "b": -math.inf, "c": 1.5, "d": 3, "e": "text", "f": True}
    assert finite(given) == {"a": None, "b": None, "c": 1.5, "d": 3, "e": "text", "f": True}


def test_ratios_without_noise_and_without_a_measurement():
    assert [decibels(each) for each in (41.04, -3.0, math.inf, math.nan)] == ["41.0", "-3.0", "equal", "-"]
