import threading
import time
from functools import partial

import numpy as np
import pytest
from distant_work import Doubling, break_down, end_process, load_or_end, refuse, warn
from graphs import csp, feed, planned, samples
from hypothesis import given
from hypothesis import strategies as st

from onnxq import memory
from onnxq.calibration.samples import Samples
from onnxq.calibration.statistics_file import save_statistics
from onnxq.errors import ConfigError, DataError
from onnxq.facts import InputSummary, Probe, Statistics
from onnxq.passes.observe import Observe
from onnxq.pipeline import Pipeline
from onnxq.runtime.pool import IN_PROCESS
from onnxq.targets import OPENVINO

pytest.importorskip("distributed", reason="the extra cluster is not installed")

from onnxq.cluster.dask_pool import chunk_size


def ignored(_):
    pass


@given(st.integers(1, 10**7), st.integers(1, 2000))
def test_chunks_are_neither_small_nor_large(steps, workers):
    size = chunk_size(steps, workers)
    least, most = max(8, workers // 4), max(64, workers // 4)
    assert least <= size <= most
    # Unless one of the bounds is met, each worker gets 8 chunks or a few less.
    assert size in (least, most) or (steps / size <= 8 * workers and steps / (size - 1) > 8 * workers)


@pytest.mark.parametrize(("workers", "size"), [(1, 4), (2, 4), (8, 1), (100, 2), (1000, 16)])
def test_chunks_of_steps_with_many_runs_are_smaller(workers, size):
    assert chunk_size(60, workers, 16) == size


def test_chunks_cover_all_steps_once(dask_pool):
    for steps in (0, 1, 8, 9, 100, 1000):
        chunks = dask_pool.chunks(steps)
        assert [k for chunk in chunks for k in range(steps)[chunk]] == list(range(steps))
        assert all(chunk.stop > chunk.start for chunk in chunks)


def test_each_task_has_its_result_from_work_that_was_sent_once(dask_pool, tmp_path):
    told = []
    found = dict(dask_pool.run(Doubling(tmp_path / "notes", 2), range(40), told.append))
    assert {number: result for number, (result, _) in found.items()} == {k: 2 * k for k in range(40)}
    processes = {pid for _, pid in found.values()}
    notes = (tmp_path / "notes").read_text().split()
    assert len(processes) == 2
    assert sorted(notes) == sorted(map(str, processes))
    assert told == list(range(1, 41))


def test_tasks_of_any_type_arrive_as_they_are(dask_pool):
    tasks = [("a", "b"), {"a": [1]}, slice(3, 5), np.arange(3), (print, "a")]
    found = dict(dask_pool.run(lambda task, finished: task, tasks, ignored))
    assert [repr(found[k]) for k in range(len(tasks))] == list(map(repr, tasks))


def test_what_a_task_refuses_is_refused_with_all_its_lines(dask_pool):
    with pytest.raises(DataError) as caught:
        list(dask_pool.run(refuse, [5], ignored))
    assert caught.value.args == ("task 5: refused", "with a second line")


def test_a_bug_keeps_its_type_and_its_traceback(dask_pool):
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        list(dask_pool.run(break_down, [5], ignored))
    assert "distant_work" in str(caught.traceback[-1].path)


def test_a_module_that_workers_lack_is_named(dask_pool):
    def work(task, finished):
        raise ModuleNotFoundError("No module named 'onnxq'", name="onnxq")

    with pytest.raises(ConfigError, match="the workers of 2 processes lack the module onnxq; install the same onnxq"):
        list(dask_pool.run(work, [1], ignored))


def test_warnings_are_logged_here(dask_pool, caplog):
    list(dask_pool.run(warn, range(8), ignored))
    assert set(caplog.messages) == {"picture 0 is odd", "picture 1 is odd"}
    assert {record.name for record in caplog.records} == {"onnxq.distant"}


def test_the_limit_of_memory_goes_along(dask_pool):
    def work(task, finished):
        return memory.given()

    with memory.limited_to(123_456):
        assert list(dask_pool.run(work, [0], ignored)) == [(0, 123_456)]
    assert list(dask_pool.run(work, [0], ignored)) == [(0, None)]


@pytest.mark.parametrize("held", [(k for k in range(3)), threading.Lock()], ids=["generator", "lock"])
def test_what_cannot_be_pickled_is_refused(dask_pool, held):
    with pytest.raises(DataError, match=r"this model or data cannot be sent to workers \(.*(generator|lock)"):
        list(dask_pool.run(lambda task, finished: held, [1], ignored))
    with pytest.raises(DataError, match=r"this model or data cannot be sent to workers \(.*(generator|lock)"):
        list(dask_pool.run(lambda task, finished: 1, [held], ignored))


def test_tasks_that_are_not_wanted_any_more_are_cancelled(dask_pool, tmp_path):
    results = dask_pool.run(Doubling(tmp_path / "notes"), range(10), ignored)
    next(results)
    results.close()
    assert dict(dask_pool.run(Doubling(tmp_path / "notes"), [1], ignored))[0][0] == 2
    end = time.monotonic() + 10
    while (left := [key for key in dask_pool._client.futures if "onnxq" in key]) and time.monotonic() < end:
        time.sleep(0.05)  # they are released in another thread
    assert left == []


def everything(data, pool, path):
    """The bytes of the calibration file, and all else that is observed."""
    working, plan = planned(csp(), OPENVINO)
    facts = Pipeline([Observe(data, every_conv=True, pool=pool)], pinned=[plan]).run(working)
    save_statistics(facts[Statistics], path)
    probe = [{name: values.tobytes() for name, values in each.items()} for each in facts[Probe].feeds]
    return path.read_bytes(), probe, facts[InputSummary]


@pytest.mark.parametrize(
    "many", [pytest.param(64, id="merged here", marks=pytest.mark.slow), pytest.param(2, id="merged by workers")]
)
def test_statistics_are_the_same_bytes_though_two_workers_are_killed(dask_pool, tmp_path, many, monkeypatch):
    monkeypatch.setattr("onnxq.cluster.dask_pool._MANY", many)
    monkeypatch.setattr("onnxq.cluster.dask_pool._TOGETHER", 4)
    made = samples([None if k == 20 else feed(csp(), k % 60) for k in range(70)])
    whole = everything(made, IN_PROCESS, tmp_path / "whole.npz")
    assert everything(made, dask_pool, tmp_path / "plain.npz") == whole
    marks = tmp_path / "marks"
    marks.mkdir()
    dying = [partial(load_or_end, marks, k, load) if k in (12, 50) else load for k, load in enumerate(made.loaders)]
    broken = Samples(tuple(dying), len(dying), "made up", unreadable={})
    assert everything(broken, dask_pool, tmp_path / "killed.npz") == whole
    assert len(list(marks.iterdir())) == 2


def test_a_task_that_kills_its_worker_each_time_is_given_up(dask_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_pool._client.cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(ConfigError, match=r"a task ended 1 workers of 2 processes, as too little memory does; give"):
        list(dask_pool.run(lambda task, finished: end_process(tmp_path, task), [0], ignored))
