import logging
import os
import pickle

import pytest
from distant_work import refuse, warn

from onnxq import memory
from onnxq.cluster.sent import Outcome, Place, Record, Sent, join, perform
from onnxq.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _same_limit():
    """Restore the limit of memory, which `perform` sets for good."""
    before = memory.given()
    yield
    memory.use(before)


def sent(work, place=None):
    return Sent(pickle.dumps(work), place or Place.here(), None, os.getcwd())


class Made:
    """Work that counts its tasks."""

    unpickled = 0

    def __init__(self):
        self.tasks = 0

    def __setstate__(self, state):
        vars(self).update(state)
        Made.unpickled += 1

    def __call__(self, task, finished):
        self.tasks += 1
        return self.tasks


def test_work_is_unpickled_once_and_keeps_what_it_made():
    before, each = Made.unpickled, sent(Made())
    assert [each.perform(None).result for _ in range(3)] == [1, 2, 3]
    assert Made.unpickled == before + 1


def test_what_is_passed_on_is_as_it_was_sent():
    each = sent(Made())
    each.perform(None)
    assert pickle.loads(pickle.dumps(each)).perform(None).result == 1


def test_an_outcome_has_the_steps_and_each_warning_once():
    outcome = perform(pickle.dumps(4), sent(warn))
    assert (outcome.result, outcome.steps) == (None, 1)
    assert outcome.records == (Record("onnxq.distant", logging.WARNING, "picture 0 is odd"),)


def test_what_a_task_refuses_leaves_no_handler_behind():
    before = list(logging.getLogger("onnxq").handlers)
    with pytest.raises(DataError, match="task 1: refused"):
        sent(refuse).perform(1)
    assert logging.getLogger("onnxq").handlers == before


def test_a_record_is_logged_as_it_was(caplog):
    Record("onnxq.there", logging.WARNING, "100% odd").log()
    assert caplog.record_tuples == [("onnxq.there", logging.WARNING, "100% odd")]


@pytest.mark.parametrize("package", ["onnxq", "onnxruntime", "numpy", "Python"])
def test_other_versions_are_refused(package):
    here = Place.here()
    place = Place({**here.versions, package: "0.0.1"}, here.cpu)
    with pytest.raises(
        ConfigError, match=rf"a worker has {package} .* and not 0.0.1, so its numbers may differ; install"
    ):
        sent(Made(), place).perform(None)


def test_of_another_kind_of_cpu_is_warned():
    place = Place(Place.here().versions, "a VAX")
    outcome = sent(Made(), place).perform(None)
    assert outcome.result == 1
    [record] = outcome.records
    assert "this machine and the workers have CPUs of the kinds" in record.message
    assert "a VAX" in record.message
    assert sent(Made()).perform(None).records == ()


def test_the_limit_of_memory_is_that_of_the_sender():
    Sent(pickle.dumps(Made()), Place.here(), 5_000, os.getcwd()).perform(None)
    assert memory.limit() == 5_000
    sent(Made()).perform(None)
    assert memory.given() is None


def test_relative_paths_are_those_of_the_sender(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    each = Sent.of(pickle.dumps(Made()))
    monkeypatch.chdir("/")
    each.perform(None)
    assert os.getcwd() == str(tmp_path)


def test_a_folder_that_is_not_here_is_no_error(tmp_path):
    assert Sent(pickle.dumps(Made()), Place.here(), None, str(tmp_path / "none")).perform(None).result == 1


def test_joined_outcomes_are_one_and_stay_as_they_are():
    record, other = (Record("onnxq", logging.WARNING, text) for text in ("odd", "odder"))
    outcomes = [Outcome([1], 2, (record,)), Outcome([2, 3], 3, (record, other)), Outcome([], 0, ())]
    assert join(outcomes, list.extend) == Outcome([1, 2, 3], 5, (record, other))
    assert [outcome.result for outcome in outcomes] == [[1], [2, 3], []]
