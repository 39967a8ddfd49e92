"""A command that quantizes in a pool that keeps what is finished: `main(["MODEL", "DATA", "OUT.npz", "1"])`."""

from pathlib import Path

from cut_pool import Cut

from onnxq.api import quantize
from onnxq.console.terminal import guarded
from onnxq.errors import ConfigError


class Keeping(Cut):
    """A pool whose tasks are a sample each, and which may be lost.

    Args:
        kept: file of what is finished.
        most: number of tasks that end before it is lost; None: it is not lost.
    """

    def __init__(self, kept, most=None):
        super().__init__(range(1, 100))
        self.kept = kept
        self._most = most

    def run(self, work, tasks, finished, merge=None):
        for count, found in enumerate(super().run(work, tasks, finished, merge)):
            if count == self._most:
                raise ConfigError("the pool is lost")
            yield found


def main(arguments):
    """Quantize a model with data, and return the exit code; the last argument, if given, is when the pool is lost."""
    model, data, kept, *most = arguments
    pool = Keeping(Path(kept), *map(int, most))

    def body():
        quantize(model, data, pool=pool)

    return guarded(body, max_memory=500_000_000)
