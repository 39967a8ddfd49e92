"""How the library tells how far it is: a callable, so that only the command line knows of bars and colours."""

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called as `progress("calibrating", 3, 100)`: what is being done, steps done, steps in all (0: not known).

    What has no steps is told of once, when it begins: `progress("checking", 0, 0)`.
    """

    def __call__(self, task: str, done: int, total: int, /) -> None:
        """Tell."""


def silent(task: str, done: int, total: int, /) -> None:
    """Tell nobody."""
