"""Pools that cut work at given places, pickle all that is sent, and give the results in any order."""

import pickle
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from onnxq.errors import ConfigError
from onnxq.runtime.pool import Finished, Merge, Pool, Work

try:
    from cloudpickle import dumps as _dumps  # as Dask does it: functions in functions too
except ImportError:
    _dumps = pickle.dumps


class Cut(Pool):
    """Runs pickled copies of the work, one for each of some workers, in a shuffled order.

    Args:
        cuts: steps before which a chunk begins; those beyond the last step are left out.
        seed: of the order.
        workers: number of copies.
    """

    is_remote = True
    cores = 1

    def __init__(self, cuts: Sequence[int] = (), seed: int = 0, workers: int = 2) -> None:
        self._cuts = cuts
        self._random = random.Random(seed)
        self._workers = workers
        self.tasks = 0

    def chunks(self, steps: int, runs: int = 1) -> list[slice]:
        ends = sorted({0, steps, *(cut for cut in self._cuts if 0 < cut < steps)})
        return [slice(first, last) for first, last in pairwise(ends)]

    def run(
        self, work: Work[Any, Any], tasks: Sequence[Any], finished: Finished, merge: Merge[Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        sent = _dumps(work)
        copies = [pickle.loads(sent) for _ in range(self._workers)]
        order = list(range(len(tasks)))
        self._random.shuffle(order)
        self.tasks += len(tasks)
        steps: dict[int, int] = {}
        for number in order:
            copy = copies[self._random.randrange(self._workers)]

            def count(done: int, number: int = number) -> None:
                steps[number] = done

            result = pickle.loads(pickle.dumps(copy(pickle.loads(pickle.dumps(tasks[number])), count)))
            finished(sum(steps.values()))
            yield number, result


class Threaded(Cut):
    """Runs one pickled copy of the work from a thread for each task, all at once, as a worker of many threads does."""

    def run(
        self, work: Work[Any, Any], tasks: Sequence[Any], finished: Finished, merge: Merge[Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        copy = pickle.loads(_dumps(work))
        with ThreadPoolExecutor(len(tasks)) as threads:
            yield from enumerate(threads.map(lambda task: copy(task, lambda _: None), tasks))


class Losing(Cut):
    """A pool that keeps what is finished, and is lost after so many tasks; never, if they are None.

    Args:
        after: number of tasks that end.
        kept: file of what is finished.
        cuts, seed: as of `Cut`.

    Attributes:
        done: the tasks that ended.
    """

    def __init__(self, after: int | None, kept: Path, cuts: Sequence[int], seed: int = 0) -> None:
        super().__init__(cuts, seed)
        self.kept = kept
        self.done: list[Any] = []
        self._after = after

    def run(
        self, work: Work[Any, Any], tasks: Sequence[Any], finished: Finished, merge: Merge[Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        for count, found in enumerate(super().run(work, tasks, finished, merge)):
            if count == self._after:
                raise ConfigError("the connection was lost", "a second line")
            self.done.append(tasks[found[0]])
            yield found
