import inspect

from graphs import csp, feed

from onnxq import quantize
from onnxq.progress import Progress, silent


def test_silent_takes_what_every_progress_takes():
    assert silent("calibrating", 3, 100) is None
    own = list(inspect.signature(silent).parameters.values())
    assert own == list(inspect.signature(Progress.__call__).parameters.values())[1:]


def test_a_run_tells_each_task_in_order_and_never_counts_back():
    calls = []
    quantize(csp(), [feed(csp(), seed) for seed in range(3)], progress=lambda *call: calls.append(call))
    tasks = list(dict.fromkeys(task for task, _, _ in calls))
    assert tasks == ["preparing", "calibrating", "checking"]
    for task in tasks:
        steps = [done for name, done, _ in calls if name == task]
        assert steps == sorted(steps)
        assert all(done >= 0 for done in steps)
