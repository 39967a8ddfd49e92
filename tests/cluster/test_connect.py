import signal
import sys
import tempfile
import threading
import time

import pytest
from distant_work import Doubling

import onnxq
from onnxq.calibration import demo
from onnxq.cluster.connect import _interrupted_later, open_pool, parse_workers
from onnxq.errors import ConfigError
from onnxq.runtime.pool import IN_PROCESS

distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")
dask = pytest.importorskip("dask")


@pytest.fixture
def scheduler():
    """Return a function that starts a scheduler with workers in this process, and returns its cluster."""
    started = []

    def start(workers):
        started.append(
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
            )
        )
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()


def test_words_of_the_option():
    assert [parse_workers(text) for text in ("1", "16", "tcp://host:8786", "tls://a.b")] == [
        1, 16, "tcp://host:8786", "tls://a.b",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "host:8786", "tcp://", "://host", "", "many", "1000", "9" * 5000])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match=r"^expected a number of processes below 1000, or the address of a sched"):
        parse_workers(text)


def test_without_the_option_work_stays_here():
    with open_pool(None) as pool:
        assert pool is IN_PROCESS


@pytest.mark.skipif(sys.platform == "win32", reason="cannot hold back signals")
@pytest.mark.parametrize("receiver", ["this thread", "another thread"])
def test_an_interrupt_waits_until_the_processes_have_started(receiver):
    passed, ended = [], threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    thread = threading.main_thread() if receiver == "this thread" else other

    def start():
        with _interrupted_later():
            signal.pthread_kill(thread.ident, signal.SIGINT)
            time.sleep(0.01)
            passed.append("the block")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        ended.set()
        other.join()
    assert passed == ["the block"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_processes_do_not_profile_themselves():
    with open_pool(1) as pool:
        assert [*pool._client.run(dask.config.get, "distributed.worker.profile.enabled").values()] == [False]


def test_processes_leave_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_pool(1):
        assert [path.name[:6] for path in tmp_path.iterdir()] == ["onnxq-"]
    assert not list(tmp_path.iterdir())


def test_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ConfigError, match=r"--workers: Dask is not installed; pip install 'onnxq\[cluster\]'"),
        open_pool(2),
    ):
        pass


def test_a_scheduler_that_runs_already_is_used_and_left_running(scheduler, tmp_path):
    cluster = scheduler(1)
    for _ in range(2):
        with open_pool(cluster.scheduler_address) as pool:
            found = dict(pool.run(Doubling(tmp_path / "notes"), [1, 2, 3], lambda _: None))
        assert [found[k][0] for k in range(3)] == [2, 4, 6]
    assert cluster.scheduler.status.name == "running"
    assert not cluster.scheduler.tasks


def test_no_scheduler(monkeypatch):
    monkeypatch.setattr("onnxq.cluster.connect._PATIENCE", 0.3)
    with (
        pytest.raises(
            ConfigError, match=r"--workers tcp://127.0.0.1:9: no scheduler answers \(.+\); start one with: da"
        ),
        open_pool("tcp://127.0.0.1:9"),
    ):
        pass


def test_a_scheduler_without_workers(scheduler, monkeypatch):
    address = scheduler(0).scheduler_address
    monkeypatch.setattr("onnxq.cluster.connect._PATIENCE", 1)
    with (
        pytest.raises(
            ConfigError, match=f"--workers {address}: the scheduler has no workers; start some with: dask wo"
        ),
        open_pool(address),
    ):
        pass


def test_a_connection_that_is_lost(scheduler, tmp_path):
    cluster = scheduler(1)
    with open_pool(cluster.scheduler_address) as pool:
        results = pool.run(Doubling(tmp_path / "notes"), range(200), lambda _: None)
        next(results)
        for connection in list(cluster.scheduler.client_comms.values()):
            cluster.loop.add_callback(connection.abort)
        with pytest.raises(
            ConfigError, match=r"the connection to the scheduler of tcp.* was lost; start it and this ag"
        ):
            list(results)


@pytest.mark.slow
def test_what_is_finished_is_kept_when_the_connection_is_lost(scheduler, tmp_path):
    cluster, kept = scheduler(1), tmp_path / "kept.npz"

    def quantized(progress):
        with open_pool(cluster.scheduler_address, kept) as pool:
            config = onnxq.Config(count=64)
            return onnxq.quantize(demo.model_path(), demo.CALIBRATION, config, pool=pool, progress=progress)

    def abort(task, done, total):
        if task == "calibrating" and done:
            for connection in list(cluster.scheduler.client_comms.values()):
                cluster.loop.add_callback(connection.abort)

    with pytest.raises(ConfigError, match=r"of 64 samples are finished, and kept in .*kept.npz: run the same again"):
        quantized(abort)
    assert kept.exists()
    told = []
    found = quantized(lambda task, done, total: told.append(done) if task == "calibrating" and done else None)
    assert min(told) > 8
    assert not kept.exists()
    whole = onnxq.quantize(demo.model_path(), demo.CALIBRATION, onnxq.Config(count=64))
    assert found.model.SerializeToString() == whole.model.SerializeToString()
