"""The measurement of `--workers`, on the demo model and few workers."""

import pickle

import pytest

import onnxq
from docs.tools import scale
from onnxq.calibration import demo
from onnxq.calibration.statistics_file import save_statistics
from onnxq.facts import Statistics
from onnxq.runtime.pool import IN_PROCESS

pytest.importorskip("distributed", reason="the extra cluster is not installed")


@pytest.fixture(scope="module")
def chunk():
    return scale.chunk_of(demo.model_path(), demo.CALIBRATION, 2)


def test_a_chunk_has_statistics_of_its_images(chunk):
    assert [pickle.loads(payload).samples for payload in chunk.payloads] == [2, 2]
    without, with_covariances = map(len, chunk.payloads)
    assert with_covariances > without
    assert chunk.sent > demo.model_path().stat().st_size / 2


def test_sleeps_have_the_mean_that_is_wanted():
    times = scale.sleeps(1000, 3.0)
    assert sum(times) / 1000 == pytest.approx(3.0, rel=0.01)
    assert min(times) < 2.5
    assert max(times) > 3.5
    assert times == scale.sleeps(1000, 3.0)


@pytest.mark.parametrize(("chunks", "found"), [(8, 8), (33, 33), (320, 32), (8000, 32)])
def test_covariances_are_in_few_chunks(chunks, found):
    each = scale.with_covariances(chunks)
    assert len(each) == chunks
    assert sum(each) == found


def test_workers_that_never_wait():
    assert scale.never_waiting([3, 1, 1, 2], 2) == 4
    assert scale.never_waiting([3, 1, 1, 2], 1) == 7
    assert scale.never_waiting([3, 1], 5) == 3


@pytest.mark.slow
@pytest.mark.parametrize("many", [64, 2], ids=["merged here", "merged by workers"])
def test_simulated_workers_take_as_long_as_they_sleep(chunk, many, monkeypatch):
    monkeypatch.setattr(scale, "_MANY", many)
    monkeypatch.setattr("onnxq.cluster.dask_pool._MANY", many)
    found = scale.simulate(2, chunk, 0.01, 4)
    assert found["ideal"] == scale.never_waiting(scale.sleeps(8, 0.01), 2)
    assert found["seconds"] > found["ideal"]


def test_the_calibration_file_is_that_of_quantize(tmp_path):
    seconds = scale.calibrated(demo.model_path(), demo.CALIBRATION, 4, IN_PROCESS, tmp_path / "a.npz")
    facts = onnxq.quantize(demo.model_path(), demo.CALIBRATION, onnxq.Config(count=4)).facts
    save_statistics(facts[Statistics], tmp_path / "b.npz")
    assert seconds > 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
