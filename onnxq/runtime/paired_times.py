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
"""Rounds before those that count, the later ones only within their share of the time."""

_WARM_UP_SHARE = 0.2
"""Share of the time in which rounds that do not count may start."""

_LEAST_ROUNDS = 3
"""Rounds that count if no time is left."""


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
        seconds: no round starts later than this after the first one, and no round before those that count later than a
            fifth of it; but one before and three that count are run in any case.
        progress: called after each round.

    Raises:
        ModelError: a model cannot be run.
    """
    begin = time.perf_counter()

    def one_round() -> list[float]:
        found = []
        for model, feed in zip(models, feeds, strict=True):
            start = time.perf_counter()
            model.run(feed)
            found.append(time.perf_counter() - start)
        return found

    for turn in range(WARM_UP):
        if turn and time.perf_counter() > begin + _WARM_UP_SHARE * seconds:
            break
        one_round()
        progress("measuring", 0, rounds)
    times: list[list[float]] = []
    while len(times) < rounds and (len(times) < _LEAST_ROUNDS or time.perf_counter() <= begin + seconds):
        times.append(one_round())
        progress("measuring", len(times), rounds)
    return np.array(times).T
