"""Pools: where work runs that is cut into tasks. The default is this process; others send the tasks elsewhere.

What is computed does not depend on the pool, if the work gives the same result for a task wherever it runs, and if who
puts the results together does not care for the order or for how the work is cut.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
R = TypeVar("R")

Finished = Callable[[int], None]
"""Called with the number of steps that are done."""


Merge = Callable[[R, R], None]
"""Adds the second of two results to the first one."""


class Work(Protocol[T_contra, R_co]):
    """What is done with each task.

    A pool that sends it elsewhere pickles it once, not for each task, and calls the copy from several threads. So what
    takes long to make, such as a session, is made by the first task and kept. The results are pickled too.
    """

    def __call__(self, task: T_contra, finished: Finished, /) -> R_co:
        """Return the result of a task.

        Args:
            task: what to do.
            finished: to be called in the calling thread with the number of steps of this task that are done.
        """


class Pool(ABC):
    """Where tasks run.

    Attributes:
        is_remote: whether work is pickled and sent away.
        cores: cores that a task may use; 0: all.
        kept: file in which what is finished may be kept if the pool is lost; None: nowhere.
    """

    is_remote: ClassVar[bool]
    cores: ClassVar[int]
    kept: Path | None = None

    @property
    def at_once(self) -> int:
        """Number of tasks that run at the same time."""
        return 1

    @property
    def is_lost(self) -> bool:
        """Whether nothing can run in it any more."""
        return False

    @abstractmethod
    def chunks(self, steps: int, runs: int = 1) -> list[slice]:
        """Cut numbered steps into chunks, each for a task.

        Args:
            steps: their number; 0 if it is unknown, which only a pool in this process can take.
            runs: how many times a step runs a model.
        """

    @abstractmethod
    def run(
        self, work: Work[T, R], tasks: Sequence[T], finished: Finished, merge: Merge[R] | None = None
    ) -> Iterator[tuple[int, R]]:
        """Yield the number and the result of each task, in the order in which they end.

        Args:
            work: called with each task.
            tasks: what it is called with.
            finished: called in the calling thread with the number of steps of all tasks that are done.
            merge: a function of a module that adds the second result to the first one. If it is given, the results of
                several tasks may come as one, with the number of the first of them.

        Raises:
            OnnxqError: a task raised it, or the work cannot be sent or was lost.
        """

    def in_order(self, work: Work[T, R], tasks: Sequence[T], finished: Finished) -> list[R]:
        """Return the results of all tasks in the order of the tasks; arguments and errors as of `run`."""
        found = dict(self.run(work, tasks, finished))
        return [found[number] for number in sorted(found)]


class InProcess(Pool):
    """Runs tasks one after the other in the calling thread; all steps are one chunk."""

    is_remote = False
    cores = 0

    def chunks(self, steps: int, runs: int = 1) -> list[slice]:
        """Return all steps as one chunk."""
        return [slice(None)]

    def run(
        self, work: Work[T, R], tasks: Sequence[T], finished: Finished, merge: Merge[R] | None = None
    ) -> Iterator[tuple[int, R]]:
        """Yield the results in the order of the tasks, each alone."""
        before = latest = 0

        def count(done: int) -> None:
            nonlocal latest
            latest = before + done
            finished(latest)

        for number, task in enumerate(tasks):
            yield number, work(task, count)
            before = latest


IN_PROCESS = InProcess()
"""The default of whatever takes a pool."""
