import pickle
import threading
import time
import weakref

import numpy as np
import onnx
import pytest
from onnx import parser
from texts import DOUBLE, HEAD, THREE_OUTPUTS, rows

from onnxq.errors import DataError, ModelError
from onnxq.runtime.streaming import Sessions, open_worker_session, stream, workers


def job(*values, valid=None):
    return lambda: (rows(*values), len(values) if valid is None else valid)


class Seen:
    """A sink that keeps what it was given."""

    def __init__(self):
        self.by_name = {}
        self._lock = threading.Lock()

    def __call__(self, number, name, array):
        with self._lock:
            self.by_name.setdefault(name, []).append(array.copy())

    def numbers(self, name):
        return sorted(float(row[0]) for array in self.by_name.get(name, []) for row in array)


def ignored(*_):
    pass


@pytest.fixture(params=[1, 2, 3, 8])
def cores(request, monkeypatch):
    """Machines with few and many cores."""
    monkeypatch.setattr("onnxq.runtime.streaming.cores", lambda: request.param)
    return request.param


@pytest.mark.slow
def test_of_a_large_model_one_sample_is_in_work_at_once(monkeypatch):
    monkeypatch.setattr("onnxq.runtime.streaming.cores", lambda: 8)
    large = onnx.ModelProto()
    large.graph.initializer.add(name="weight", raw_data=bytes(100_000_001))
    assert workers(large) == 1
    assert workers(DOUBLE) > 1


def test_workers_are_at_most_one_per_core_and_never_many(monkeypatch):
    for cores in (1, 2, 3, 4, 64):
        monkeypatch.setattr("onnxq.runtime.streaming.cores", lambda cores=cores: cores)
        assert min(2, cores) <= workers(DOUBLE) <= min(4, cores)


def test_each_shape_is_checked_once_however_many_workers_there_are(monkeypatch):
    checked = []
    monkeypatch.setattr("onnxq.runtime.streaming.cores", lambda: 2)
    monkeypatch.setattr(
        "onnxq.runtime.streaming.check_activations",
        lambda model, inputs, overhead: checked.append(*inputs.values()),
    )
    jobs = [job(*range(rows)) for rows in (1, 2, 1, 2, 1, 2)]
    assert stream(DOUBLE, jobs, ignored, ignored) == 9
    assert sorted(shape[0] for shape in checked) == [1, 2]


class TestStream:
    @pytest.mark.parametrize("count", [0, 1, 2, 7, 50])
    def test_every_sample_is_run_once(self, cores, count):
        seen, done = Seen(), []
        assert stream(DOUBLE, [job(n) for n in range(count)], seen, done.append) == count
        assert seen.numbers("y") == [2 * n for n in range(count)]
        assert done == sorted(done)
        assert (done[-1] if done else 0) == count

    def test_every_output_is_handed_over(self, cores):
        seen = Seen()
        stream(THREE_OUTPUTS, [job(n) for n in range(5)], seen, ignored)
        assert seen.numbers("a") == [-4, -3, -2, -1, 0]
        assert seen.numbers("b") == [0, 1, 2, 3, 4]
        assert seen.numbers("c") == pytest.approx(np.exp(range(5)))

    def test_samples_that_could_not_be_read_are_left_out_but_done(self, cores):
        seen, done = Seen(), []
        jobs = [job(1), lambda: None, job(2), lambda: None]
        assert stream(DOUBLE, jobs, seen, done.append) == 2
        assert seen.numbers("y") == [2, 4]
        assert done[-1] == 4

    def test_no_sample_at_all_could_be_read(self):
        assert stream(DOUBLE, [lambda: None] * 5, ignored, ignored) == 0

    def test_padding_of_a_batch_is_not_handed_over(self, cores):
        seen = Seen()
        assert stream(THREE_OUTPUTS, [job(1, 2, 3), job(4, 0, 0, valid=1), job(5, 6, 0, valid=2)], seen, ignored) == 6
        assert seen.numbers("b") == [1, 2, 3, 4, 5, 6]
        assert seen.numbers("a") == [-6, -5, -4, -3, -2, -1]

    def test_the_first_input_may_be_a_scalar(self):
        model = parser.parse_model(f"{HEAD} g (float scale, float[n,2] x) => (float[n,2] y) {{ y = Mul(x, scale) }}")
        seen, feed = Seen(), {"scale": np.array(3, np.float32), **rows(1, 2)}
        assert stream(model, [lambda: (feed, 1)], seen, ignored) == 1
        assert seen.numbers("y") == [3]

    def test_jobs_are_drawn_in_the_calling_thread_and_run_in_others(self, cores):
        here, drawn_in, run_in, finished_in = threading.get_ident(), set(), set(), set()

        def load(n):
            run_in.add(threading.get_ident())
            return rows(n), 1

        def jobs():
            for n in range(10):
                drawn_in.add(threading.get_ident())
                yield lambda n=n: load(n)

        stream(DOUBLE, jobs(), ignored, lambda done: finished_in.add(threading.get_ident()))
        assert drawn_in == finished_in == {here}
        assert here not in run_in

    def test_jobs_are_drawn_only_when_a_worker_is_free(self, cores):
        drawn, counted, ahead = [], [], []

        def jobs():
            for n in range(20):
                drawn.append(n)
                ahead.append(len(drawn) - len(counted))
                yield job(n)

        def slow(number, name, array):
            time.sleep(0.002)
            counted.append(name)

        stream(DOUBLE, jobs(), slow, ignored)
        assert len(drawn) == len(counted) == 20
        assert max(ahead) <= workers(DOUBLE)

    def test_at_most_as_many_samples_as_workers_are_in_flight(self, cores):
        lock, flying, most = threading.Lock(), 0, 0

        def load(n):
            nonlocal flying, most
            with lock:
                flying += 1
                most = max(most, flying)
            return rows(n), 1

        def sink(number, name, array):
            nonlocal flying
            time.sleep(0.002)
            with lock:
                flying -= 1

        stream(DOUBLE, (lambda n=n: load(n) for n in range(30)), sink, ignored)
        assert flying == 0
        assert most <= workers(DOUBLE)
        # And they do run side by side.
        assert most >= min(2, workers(DOUBLE))

    @pytest.mark.slow
    def test_no_feed_is_kept_once_its_sample_is_done(self, cores):
        alive, most = weakref.WeakSet(), []

        class Feed(dict):
            """A feed that can be watched."""

            __hash__ = object.__hash__

        def load(n):
            feed = Feed(rows(n))
            alive.add(feed)
            most.append(len(alive))
            return feed, 1

        stream(DOUBLE, (lambda n=n: load(n) for n in range(30)), ignored, ignored)
        assert max(most) <= workers(DOUBLE)
        assert len(alive) == 0

    def test_no_output_is_kept_once_it_is_counted(self, monkeypatch):
        monkeypatch.setattr("onnxq.runtime.streaming.cores", lambda: 1)
        before, left = [], []

        def sink(number, name, array):
            left.append(sum(1 for reference in before if reference() is not None))
            before.append(weakref.ref(array))

        stream(THREE_OUTPUTS, [job(n) for n in range(4)], sink, ignored)
        assert len(left) == 12
        # While one is counted those before it are gone.
        assert set(left) == {0}

    def test_where_cores_are_left_outputs_of_a_sample_are_handed_over_at_the_same_time(self, monkeypatch):
        monkeypatch.setattr("onnxq.runtime.streaming.cores", lambda: 6)
        seen, together = Seen(), threading.Barrier(3, timeout=30)

        def sink(number, name, array):
            together.wait()
            seen(number, name, array)

        assert stream(THREE_OUTPUTS, [job(5)], sink, ignored) == 1
        assert [seen.numbers(name) for name in "ab"] == [[-5], [5]]

    def test_one_sample_is_handed_over_at_a_time(self, cores):
        alone, found = threading.Lock(), []

        def sink(number, name, array):
            found.append(alone.acquire(blocking=False))
            time.sleep(0.002)
            alone.release()

        assert stream(DOUBLE, [job(n) for n in range(20)], sink, ignored) == 20
        assert found == 20 * [True]

    def test_what_a_job_raises_comes_out_and_ends_the_run(self, cores):
        drawn = []

        def broken():
            raise DataError("3.jpg: cut short")

        def jobs():
            for n in range(1000):
                drawn.append(n)
                yield broken if n == 3 else job(n)

        with pytest.raises(DataError, match=r"^3\.jpg: cut short$"):
            stream(DOUBLE, jobs(), ignored, ignored)
        assert len(drawn) < 100

    def test_what_the_last_job_raises_comes_out(self, cores):
        def broken():
            raise DataError("last")

        with pytest.raises(DataError, match="last"):
            stream(DOUBLE, [job(0), broken], ignored, ignored)

    def test_what_the_sink_raises_comes_out(self, cores):
        def sink(number, name, array):
            raise ZeroDivisionError(name)

        with pytest.raises(ZeroDivisionError, match="y"):
            stream(DOUBLE, [job(n) for n in range(10)], sink, ignored)

    def test_what_the_generator_raises_comes_out(self, cores):
        def jobs():
            yield job(1)
            raise DataError("no more")

        with pytest.raises(DataError, match="no more"):
            stream(DOUBLE, jobs(), ignored, ignored)

    def test_no_worker_is_left_behind_after_an_error(self, cores):
        before = threading.active_count()

        def broken():
            raise DataError("no")

        with pytest.raises(DataError):
            stream(DOUBLE, [job(1), broken, *[job(n) for n in range(20)]], ignored, ignored)
        assert threading.active_count() == before

    def test_a_feed_that_does_not_fit(self, cores):
        with pytest.raises(ModelError, match=r"^onnxruntime cannot run the model: "):
            stream(DOUBLE, [lambda: ({"x": np.zeros((1, 5), np.float32)}, 1)], ignored, ignored)

    def test_a_model_that_cannot_be_loaded_is_refused_without_all_jobs_being_drawn(self, cores):
        drawn = []
        model = parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = NoSuchOperator(x) }}")
        with pytest.raises(ModelError, match="cannot load"):
            stream(model, (drawn.append(n) or job(n) for n in range(1000)), ignored, ignored)
        assert len(drawn) < 100


class TestSessions:
    def test_they_are_kept_for_the_next_stream(self, monkeypatch):
        opened = []
        monkeypatch.setattr(
            "onnxq.runtime.streaming.open_worker_session",
            lambda *given: opened.append(given) or open_worker_session(*given),
        )
        sessions = Sessions(DOUBLE, 1)
        seen = Seen()
        for value in (1, 2, 3):
            stream(sessions, [job(value), job(value)], seen, ignored)
        assert seen.numbers("y") == [2, 2, 4, 4, 6, 6]
        assert opened == [(DOUBLE, 1, 1)]

    def test_those_that_run_at_once_are_of_their_own(self):
        sessions = Sessions(DOUBLE, 2)
        with sessions.one(rows(1)) as first, sessions.one(rows(1)) as second:
            assert first is not second
        with sessions.one(rows(1)) as third:
            assert third in (first, second)

    def test_a_pickled_copy_opens_its_own(self):
        sessions = Sessions(DOUBLE, 2)
        stream(sessions, [job(1)], ignored, ignored)
        copy, seen = pickle.loads(pickle.dumps(sessions)), Seen()
        assert stream(copy, [job(4)], seen, ignored) == 1
        assert seen.numbers("y") == [8]
        assert copy.at_once == sessions.at_once == 2

    def test_a_share_of_the_cores_is_taken(self, cores):
        assert (workers(DOUBLE, 1), workers(DOUBLE, 2), workers(DOUBLE, 5)) == (1, 2, 2)
