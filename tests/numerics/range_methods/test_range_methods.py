import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from histograms import HISTOGRAMS, SCHEMES, cost, each_symmetric, histogram, label, rounded
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.before_silu import before_silu
from onnxq.numerics.quantization_error import clipped_share, squared_error
from onnxq.numerics.range_methods import METHODS, method_for
from onnxq.numerics.range_methods.unilateral_histogram import unilateral_histogram
from onnxq.numerics.scheme import INT8, UINT8, Range, Scheme
from onnxq.numerics.silu import SILU_MINIMUM, silu

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@each_symmetric
@pytest.mark.parametrize("method", ["uh", "mse"])
def test_the_bound_is_as_good_as_the_best_of_all_edges(method, scheme):
    for name, h in HISTOGRAMS.items():
        edges = np.unique(np.abs(h.occupied()[1]))
        best = min(squared_error(h, scheme, -part, part).min() for part in np.array_split(edges[edges > 0], 16))
        assert cost(h, scheme, METHODS[method].fit(h, scheme)) <= best * 1.01, name


@pytest.mark.parametrize("method", ["mse", "uh", "percentile", "entropy", "minmax"])
@pytest.mark.parametrize("signed", [False, True])
def test_bounds_reach_no_further_than_the_values(method, signed):
    for name, h in HISTOGRAMS.items():
        bounds = METHODS[method].fit(h, Scheme(8, INT8 if signed else UINT8, symmetric=True))
        reach = max(abs(h.low), abs(h.high)) + h.width
        assert max(abs(bounds.low), abs(bounds.high)) <= reach, name


NEARLY = float(np.nextafter(np.float32(1), np.float32(2)))

DEGENERATE = {
    "nothing": [],
    "one value": [3.7],
    "one value below zero": [-3.7],
    "one zero": [0.0],
    "all equal": [0.02] * 1000,
    "all equal below zero": [-25.0] * 1000,
    "all zero": [0.0] * 1000,
    "one bin": [1.0, NEARLY, 1.0],
    "one bin below zero": [-1.0, -NEARLY, -1.0],
    "two values": [-1.0, 1.0],
    "zero and one": [0.0, 1.0],
    "tiny": [1e-30, -1e-30, 2e-30],
    "huge": [1e30, -1e30, 2e30],
    "close to each other": [100.0, 100.001],
    "below zero": [-3.0, -2.0, -1.0, -5.0],
}
ALL_METHODS = {
    **{name: method.fit for name, method in METHODS.items()},
    "uh behind SiLU": lambda h, s: unilateral_histogram(h, s, lower=SILU_MINIMUM),
    "before SiLU": before_silu,
}


FEW_SCHEMES = [Scheme(8), Scheme(2, INT8), Scheme(8, INT8, True), Scheme(3, UINT8, True)]


@pytest.mark.parametrize("scheme", FEW_SCHEMES, ids=label)
@pytest.mark.parametrize("method", ALL_METHODS)
def test_degenerate_tensors_get_a_usable_range(method, scheme):
    for name, items in DEGENERATE.items():
        check_usable(ALL_METHODS[method], items, scheme, name)


def check_usable(method, items, scheme, name):
    h = histogram(items)
    bounds = method(h, scheme)
    assert isinstance(bounds.low, float), name
    assert isinstance(bounds.high, float), name
    assert 0 < float(scheme.qparams(bounds).scale) < math.inf, name
    assert 0 <= clipped_share(h, scheme, bounds) <= 1, name
    energy = float(np.sum(np.square(np.asarray(items, np.float64))))
    assert -1e-9 * energy <= cost(h, scheme, bounds) <= 1.001 * energy, name


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(2, INT8), Scheme(8, INT8, True)], ids=label)
@pytest.mark.parametrize("value", [3.7, -3.7, 0.0, 0.02, -1e-6, 1e6])
@pytest.mark.parametrize("method", ["uh", "mse", "minmax", "percentile", "before SiLU"])
def test_a_constant_keeps_its_value(method, value, scheme):
    value = float(np.float32(value))
    bounds = ALL_METHODS[method](histogram([value] * 100), scheme)
    assert rounded(value, scheme, bounds.low, bounds.high) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(0, 10**6))
def test_no_method_is_worse_than_all_zeros(method, scheme, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.uniform(-3, 3), rng.uniform(0.1, 5), 2000)
    h = histogram(x)
    bounds = METHODS[method].fit(h, scheme)
    assert bounds.low <= bounds.high
    assert cost(h, scheme, bounds) <= np.sum(x**2) * 1.01


# --- a file per method ------------------------------------------------------------------------------------------------


def test_methods_by_name():
    assert {"entropy", "minmax", "mse", "percentile", "uh"} <= METHODS.keys()
    assert all(name == method.name and method.summary for name, method in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
def test_a_known_minimum_is_used_by_uh_alone(name):
    h = histogram(silu(np.linspace(-1, 9, 5000)))
    behind_silu, elsewhere = (method_for(name, silu_output)(h, Scheme(8)) for silu_output in (True, False))
    assert elsewhere == METHODS[name].fit(h, Scheme(8))
    assert behind_silu == (Range(SILU_MINIMUM, behind_silu.high) if name == "uh" else elsewhere)


FIFTY = """
from onnxq.numerics.range_method import RangeMethod
from onnxq.numerics.scheme import Range

METHOD = RangeMethod("fifty", "covers half, 50 % of each side", lambda histogram, scheme: Range(-3.0, 5.0))
"""


@pytest.fixture
def python(tmp_path):
    """Runs the interpreter on a copy of the sources, given further range methods as file name -> text."""
    for folder in ("onnxq", "passes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("passes", "__pycache__"))

    def run(files, *arguments):
        for name, text in files.items():
            (tmp_path / "onnxq" / "numerics" / "range_methods" / name).write_text(text, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.slow
def test_a_new_file_is_a_new_method(python, tmp_path):
    done = python({"fifty.py": FIFTY}, "-m", "onnxq", "--help")
    assert done.returncode == 0, done.stderr
    assert "--method {auto,entropy,fifty,minmax,mse,percentile," in done.stdout
    assert "fifty covers half, 50 % of each side; minmax" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_new_method_can_be_chosen_and_is_compared_in_reports(python, tmp_path):
    demo, result, report = ROOT / "models" / "demo.onnx", tmp_path / "out.onnx", tmp_path / "out.html"
    options = ["--demo", "--count", 2, "--no-speed", "-o", result]
    chosen = python({"fifty.py": FIFTY}, "-m", "onnxq", demo, *options, "--method", "fifty")
    assert chosen.returncode == 0, chosen.stderr
    assert {entry.key: entry.value for entry in onnx.load(result).metadata_props}["onnxq.method"] == "fifty"
    compared = python({}, "-m", "onnxq", demo, *options, "--method", "minmax", "--report", report)
    assert compared.returncode == 0, compared.stderr
    assert "fifty" in report.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"fifty.py": "METHOD = 3\n"}, "TypeError: onnxq.numerics.range_methods.fifty: METHOD is not a RangeMethod"),
        ({"fifty.py": "import math\n"}, "TypeError: onnxq.numerics.range_methods.fifty: METHOD is not a RangeMethod"),
        (
            {"fifty.py": FIFTY, "twin.py": FIFTY},
            "ValueError: onnxq.numerics.range_methods.twin: there is a method 'fifty' already; choose another name",
        ),
    ],
)
def test_a_file_without_a_method_of_its_own_is_refused(python, files, error):
    done = python(files, "-c", "import onnxq.numerics.range_methods")
    assert done.returncode == 1
    assert error in done.stderr
