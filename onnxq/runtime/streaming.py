"""Streaming: run many samples through onnxruntime in bounded memory and hand over each output."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxq.ir.checks.activations import check_activations
from onnxq.ir.storage import size
from onnxq.runtime.session import Feed, cores, iter_outputs, open_session

_LARGE = 100_000_000
"""Bytes of a model above which one sample runs at a time: each session copies the weights and holds the tensors."""


def open_worker_session(model: onnx.ModelProto, at_once: int) -> ort.InferenceSession:
    """Load a model into one of `at_once` sessions that run side by side; each gets its share of the cores.

    Runs are exact in the sense of `open_session`.

    Raises:
        ModelError: as from `open_session`.
    """
    return open_session(model, threads=max(1, cores() // at_once), exact=True, frugal=True)


Sink = Callable[[int, str, NDArray[np.generic]], None]
"""Called with the number of a job, and the name and the values of a tensor."""

Job = Callable[[], tuple[Feed, int] | None]
"""Returns a feed and the number of valid samples in its batch, or None if it could not be read."""


def workers(model: onnx.ModelProto) -> int:
    """Return how many samples run at once: at most 2 on any machine, because each holds its tensors in memory."""
    return 1 if size(model) > _LARGE else min(2, cores())


def stream(model: onnx.ModelProto, jobs: Iterable[Job], sink: Sink, finished: Callable[[int], None]) -> int:
    """Run many samples and hand each output of the model to `sink`; nothing is stored.

    Each worker takes one sample through all steps, so one sample is decoded while another one runs. The order of the
    calls of `sink` is undefined. Matrix products of numpy take one thread: the workers use all cores.

    Args:
        model: its outputs are streamed.
        jobs: iterated in the calling thread whenever a worker is free, and called in the worker.
        sink: called from workers, for each output of each sample.
        finished: called in the calling thread with the number of jobs done.

    Returns:
        The number of samples that ran.

    Raises:
        ModelError: onnxruntime cannot load or run the model, or its tensors do not fit into memory.
    """
    names = [output.name for output in model.graph.output]
    own = threading.local()
    at_once = workers(model)
    fitting: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()
    checking = threading.Lock()

    def check_memory(feed: Feed) -> None:
        shapes = {name: array.shape for name, array in feed.items()}
        with checking:
            if (key := tuple(sorted(shapes.items()))) not in fitting:
                # Its outputs are held together, and make up most of the memory.
                check_activations(model, shapes, overhead=1)
                fitting.add(key)

    def work(number: int, job: Job) -> int:
        loaded = job()
        if loaded is None:
            return 0
        feed, valid = loaded
        check_memory(feed)
        if not hasattr(own, "session"):
            # Runs in one session share its memory, which grows with every new way in which they overlap.
            own.session = open_worker_session(model, at_once)
        padded = valid < next((array.shape[0] for array in feed.values() if array.ndim), valid)
        for name, array in iter_outputs(own.session, feed, names):
            sink(number, name, array[:valid] if padded else array)
        return valid

    samples = done = 0
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(at_once) as pool:
        pending: set[Future[int]] = set()
        for number, job in enumerate(jobs):
            pending.add(pool.submit(work, number, job))
            if len(pending) == at_once:
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                samples += sum(future.result() for future in ready)
                done += len(ready)
                finished(done)
        for future in as_completed(pending):
            samples += future.result()
            done += 1
            finished(done)
    return samples
