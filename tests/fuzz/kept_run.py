"""A command that quantizes in a pool that keeps what is finished: `main(["MODEL", "DATA", "OUT.npz", "1"])`."""

from pathlib import Path

from cut_pool import Losing

from onnxq.api import quantize
from onnxq.console.terminal import guarded


def main(arguments):
    """Quantize a model with data, and return the exit code; the last argument, if given, is when the pool is lost."""
    model, data, kept, *after = arguments
    pool = Losing(int(after[0]) if after else None, Path(kept), range(1, 100))

    def body():
        quantize(model, data, pool=pool)

    return guarded(body, max_memory=500_000_000)
