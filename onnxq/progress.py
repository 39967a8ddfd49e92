"""Progress of the library's work: a callable, so that only the command line knows of bars and colors."""

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called with the task, the steps done and the steps in all, as `progress("calibrating", 3, 100)`.

    A total of 0 is unknown. A task without steps is reported once, at its start: `progress("checking", 0, 0)`.
    """

    def __call__(self, task: str, done: int, total: int, /) -> None:
        """Report the progress."""


def silent(task: str, done: int, total: int, /) -> None:
    """Report nothing."""
