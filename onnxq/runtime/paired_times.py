"""Times of several models that take turns, so that other load on the machine affects all alike."""

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.progress import Progress, silent
from onnxq.runtime.base import Runtime
from onnxq.runtime.session import Feed

WARM_UP = 3
"""Rounds before those that count."""

_LEAST_ROUNDS = 3


def paired_times(
    models: Sequence[Runtime],
    feeds: Sequence[Feed],
    rounds: int,
    *,
    seconds: float = math.inf,
    progress: Progress = silent,
) -> NDArray[np.float64]:
    """Run models in turn, round after round, and return the time of each run, s, float64 (models, rounds).

    Args:
        models: loaded models.
        feeds: for each model its inputs.
        rounds: greatest number of rounds that count.
        seconds: no round starts later than this after the first one, except for three that count.
        progress: called after each round.

    Raises:
        ModelError: a model cannot be run.
    """
    times = np.empty((WARM_UP + rounds, len(models)))
    end = time.perf_counter() + seconds
    for turn, row in enumerate(times):
        if turn >= WARM_UP + _LEAST_ROUNDS and time.perf_counter() > end:
            return times[WARM_UP:turn].T
        for number, (model, feed) in enumerate(zip(models, feeds, strict=True)):
            start = time.perf_counter()
            model.run(feed)
            row[number] = time.perf_counter() - start
        progress("measuring", max(0, turn + 1 - WARM_UP), rounds)
    return times[WARM_UP:].T
