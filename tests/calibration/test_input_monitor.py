from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibration.feeds import Sample
from onnxq.calibration.input_monitor import PROBES, InputMonitor
from onnxq.facts import InputSummary, Probe


def sample(value, valid=1, batch=1):
    """A sample of images that are `value`, but for one pixel."""
    images = np.full((batch, 3, 8, 8), value, np.float32)
    images[:, 0, 0, 0] += 0.5
    return Sample({"images": images, "sizes": np.zeros((1, 2), np.float32)}, valid)


def test_without_samples():
    monitor = InputMonitor()
    assert list(monitor.watch([])) == []
    assert (monitor.probe(), monitor.summary()) == (Probe(), InputSummary())


def test_loaders_load_what_they_did():
    samples = [sample(0), None, sample(2)]
    loaders = InputMonitor().watch([lambda each=each: each for each in samples])
    assert [load() for load in loaders] == samples


def test_loaders_are_drawn_one_at_a_time():
    def fail():
        yield lambda: sample(0)
        raise AssertionError("drawn too early")

    next(InputMonitor().watch(fail()))()


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_the_order_in_which_loaders_are_called_makes_no_difference(order, unreadable):
    monitor = InputMonitor()
    loaders = list(monitor.watch([lambda k=k: None if k in unreadable else sample(k) for k in range(6)]))
    for k in order:
        loaders[k]()
    readable = [k for k in range(6) if k not in unreadable]
    assert [float(values["images"].min()) for values in monitor.probe().feeds] == readable[:PROBES]
    low, high = (readable[0], readable[-1] + 0.5) if readable else (np.inf, -np.inf)
    assert monitor.summary() == InputSummary(low, high, len(readable), len(readable))


def test_loaders_may_be_called_in_several_threads():
    monitor = InputMonitor()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda load: load(), monitor.watch([lambda k=k: sample(k % 50) for k in range(400)])))
    assert monitor.summary() == InputSummary(0, 49.5, 400, 50)
    assert [float(values["images"].min()) for values in monitor.probe().feeds] == [0, 1]


def test_rows_that_only_fill_the_batch_are_left_out():
    monitor = InputMonitor()
    filled = sample(1, valid=2, batch=4)
    filled.feed["images"][2:] = 100
    for load in monitor.watch([lambda: filled]):
        load()
    assert monitor.summary() == InputSummary(1, 1.5, 2, 1)
