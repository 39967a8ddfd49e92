import numpy as np
import pytest
from graphs import csp, feed, v8

from onnxq.runtime import RUNTIMES
from onnxq.runtime.paired_times import WARM_UP, paired_times

ORT = RUNTIMES["ort"]


@pytest.fixture
def models():
    return [ORT(csp()), ORT(v8())]


class Noted:
    """A model that notes its runs in a list."""

    def __init__(self, model, runs):
        self.run = lambda values: (runs.append(model), model.run(values))


def test_models_take_turns(models):
    feeds, order, steps = [feed(csp()), feed(v8())], [], []
    noted = [Noted(model, order) for model in models]
    times = paired_times(noted, feeds, 4, progress=lambda *step: steps.append(step))
    assert times.shape == (2, 4)
    assert times.min() > 0
    assert order == models * (WARM_UP + 4)
    assert steps[-1] == ("measuring", 4, 4)


@pytest.mark.parametrize("rounds", [3, 100_000])
def test_some_rounds_count_even_if_no_time_is_left(models, rounds):
    order = []
    noted = [Noted(model, order) for model in models]
    times = paired_times(noted, [feed(csp()), feed(v8())], rounds, seconds=0)
    assert times.shape == (2, 3)
    assert np.isfinite(times).all()
    assert order == models * (1 + 3)


@pytest.mark.parametrize(("runs_take", "before"), [(0.01, WARM_UP), (0.4, 1)])
def test_slow_models_run_once_before_the_rounds_that_count(runs_take, before, monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr("onnxq.runtime.paired_times.time.perf_counter", lambda: clock[0])

    class Slow:
        """A model whose runs take some seconds of a clock that stands still otherwise."""

        def run(self, values):
            order.append(values)
            clock[0] += runs_take

    times = paired_times([Slow(), Slow()], ["a", "b"], 3, seconds=2.5)
    assert np.allclose(times, runs_take)
    assert order == ["a", "b"] * (before + 3)
