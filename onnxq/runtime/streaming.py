"""Streams chosen tensors of many samples through onnxruntime in bounded memory."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxq.ir.storage import size
from onnxq.runtime.session import Feed, cores, iter_outputs, open_session

_LARGE = 100_000_000
"""Bytes of a model of which each session's copies, and the tensors of a sample, are better in memory only once."""


def open_worker_session(model: onnx.ModelProto, at_once: int) -> ort.InferenceSession:
    """Load a model to run `at_once` samples at a time, in one session or in several: each gets its share of the cores.

    Runs are exact, as `open_session` has it.

    Raises:
        ModelError: as from `open_session`.
    """
    return open_session(model, threads=max(1, cores() // at_once), exact=True, frugal=True)


Sink = Callable[[str, NDArray[np.generic]], None]

Job = Callable[[], tuple[Feed, int] | None]


def workers(model: onnx.ModelProto) -> int:
    """How many samples are in work at once; no more, whatever the machine, as each holds its tensors in memory."""
    return 1 if size(model) > _LARGE else min(2, cores())


def stream(model: onnx.ModelProto, jobs: Iterable[Job], sink: Sink, finished: Callable[[int], None]) -> int:
    """Run many samples and hand each output of the model to `sink`; nothing is kept.

    Each worker takes one sample from the first to the last step, so that one is decoded while another runs and a third
    is counted, and onnxruntime needs no threads of its own. The order in which `sink` is called is not certain.

    Args:
        model: its outputs are what is streamed.
        jobs: each gives a feed and the number of samples in its batch that count, or None if it could not be read.
            They are drawn in the calling thread, and only when a worker is free; they are called in a worker.
        sink: called with a tensor's name and values, from workers.
        finished: called with the number of jobs done.

    Returns:
        How many samples were run.

    Raises:
        ModelError: onnxruntime cannot load or run the model.
    """
    names = [output.name for output in model.graph.output]
    own = threading.local()
    at_once = workers(model)

    def work(job: Job) -> int:
        loaded = job()
        if loaded is None:
            return 0
        if not hasattr(own, "session"):
            # Runs that share a session share its memory, which grows with the ways in which they happen to overlap.
            own.session = open_worker_session(model, at_once)
        feed, valid = loaded
        padded = valid < next((array.shape[0] for array in feed.values() if array.ndim), valid)
        for name, array in iter_outputs(own.session, feed, names):
            sink(name, array[:valid] if padded else array)
        return valid

    samples = done = 0
    with ThreadPoolExecutor(at_once) as pool:
        pending: set[Future[int]] = set()
        for job in jobs:
            pending.add(pool.submit(work, job))
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
