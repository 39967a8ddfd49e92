import io
import math
from dataclasses import replace

import pytest
from graphs import csp, feed, v8
from rich.console import Console

from onnxq.api import plan, quantize
from onnxq.config import Config
from onnxq.console import summary
from onnxq.console.terminal import Listing
from onnxq.facts import Plan, QuantizationParameters, Speed, Verification
from onnxq.pipeline import Facts


def shown(table):
    """The words of a table, one space between them."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return " ".join(console.file.getvalue().split())


def planned(model, verbose=False, **options):
    config = Config(**options)
    chosen, detector = plan(model, config)
    return shown(summary.planned(chosen, detector, config, verbose))


def test_float_convs_are_counted_by_the_summary_of_their_reason():
    text = planned(v8(), exclude=("conv3", "re:^conv4$"))
    assert "Convs 9 of 18 on integers" in text
    assert "2 float: excluded" in text
    assert "1 float: near the image, with few channels" in text


def test_the_target_is_shown_with_method_and_widths():
    assert "target openvino (OpenVINO), mse, W8A8" in planned(csp(), target="openvino", method="mse")
    assert "W4A8 op:Conv=8/8" in planned(csp(), weight_bits=4, bits=("op:Conv=8/8",))


def test_widths_of_many_nodes_are_counted_unless_all_is_asked_for():
    options = {"weight_bits": 4, "bits": [f"conv{number}=8/8" for number in range(5)]}
    assert "uh, W4A8, and 5 nodes with other widths (-v says which)" in planned(v8(), reconstruct=False, **options)
    assert "conv0=8/8 conv1=8/8" in planned(v8(), verbose=True, **options)


@pytest.mark.parametrize(
    ("against_exact", "said"),
    [
        ({"a": 41.26, "b": 39.5}, "onnxruntime 1.32.0, AVX512-VNNI: 39.5 dB against the exact result warning"),
        ({"a": math.inf}, "onnxruntime 1.32.0, AVX512-VNNI: equal to the exact result warning"),
        ({}, "onnxruntime 1.32.0, AVX512-VNNI warning"),
    ],
)
def test_runtime_cpu_and_nearness_of_the_check_are_one_row(against_exact, said):
    model = csp()
    made = quantize(model, [feed(model)])
    checked = Verification({"a": 30.0}, {"a": 31.0}, against_exact, "onnxruntime 1.32.0", "AVX512-VNNI")
    table = Listing()
    facts = Facts([made.facts[Plan], QuantizationParameters({}, {}), checked])
    summary.add_result(table, replace(made, facts=facts), "none", verbose=False)
    assert f"checked {said}" in shown(table)


def result(model, limited, verbose=False):
    """The words about a result in which these weights are limited."""
    feeds = [feed(model)]
    found = quantize(model, feeds, Config(target="openvino"))
    parameters = replace(found.facts[QuantizationParameters], limited=limited)
    found = replace(found, facts=Facts([found.facts[Plan], found.facts[Verification], parameters]))
    table = summary.planned(found.facts[Plan], found.detector, Config(), verbose=True)
    summary.add_result(table, found, "", verbose)
    return found, shown(table)


@pytest.mark.parametrize(
    ("limited", "words"),
    [
        ({"conv1_weight": 1}, "wider scales of 1 output channel in 1 layer"),
        ({"conv1_weight": 3, "conv0_weight": 4}, "wider scales of 7 output channels in 2 layers"),
    ],
    ids=["one", "some"],
)
def test_what_is_held_back_is_counted_and_listed(limited, words, capsys):
    found, text = result(csp(), limited)
    assert f"any CPU {words}: CPUs without VNNI do not saturate (-v says which)" in text
    summary.list_limited(found)
    lines = capsys.readouterr().out.splitlines()
    of_layer = {f"conv{k}": f"held back: conv{k}: " for k in range(2)}
    counts = {"conv0": "4 output channels", "conv1": "3 output channels" if len(limited) > 1 else "1 output channel"}
    assert lines == [of_layer[name] + counts[name] for name in of_layer if f"{name}_weight" in limited]


def test_verbose_leaves_out_the_hint_at_what_is_held_back():
    text = result(csp(), {"conv1_weight": 1}, verbose=True)[1]
    assert "do not saturate" in text
    assert "-v" not in text


def test_nothing_is_said_where_nothing_is_held_back(capsys):
    found, text = result(csp(), {})
    assert "any CPU" not in text
    summary.list_limited(found)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_leaves_out_the_hint_at_itself(verbose):
    assert ("(-v says which and why)" in planned(v8(), verbose)) != verbose


def test_each_float_node_is_listed_with_code_and_numbers(capsys):
    summary.list_float(plan(csp(), Config())[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "float: conv0 (Conv): stem: 8 channels at 16 x 16, integer kernels save no time"
    assert lines[1] == "float: sigmoid0 (Sigmoid): float-producer: its Conv 'conv0' has a float output"


SLOW = Speed("onnxruntime", ratio=0.73, median=0.8, rounds=30)


def test_a_slow_result_is_told_with_the_ratio_and_what_helps():
    told = summary.speed_warning(SLOW)
    assert told.startswith("on this CPU onnxruntime runs the result at 0.73 times the speed of the float model")
    assert told.endswith("use the float model here")


def test_a_fast_result_is_no_warning():
    assert summary.speed_warning(replace(SLOW, ratio=1.2)) is None
    assert summary.speed_warning(Speed()) is None
