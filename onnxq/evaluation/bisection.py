"""Bisection for the least count whose loss is within a limit, and the counts that it may ask for next."""

from collections import deque
from collections.abc import Callable, Mapping


def least(loss: Callable[[int], float], limit: float, most: int) -> int:
    """Return the least count whose loss is within the limit, if the loss falls with the count; `most` if none is."""
    low, high = 0, 1
    while high < most and loss(high) > limit:
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if loss(middle) > limit:
            low = middle
        else:
            high = middle
    return high


def asked_next(known: Mapping[int, float], limit: float, most: int, number: int) -> list[int]:
    """Return the counts whose loss `least`, and then a look at what it returns, may ask for next.

    The first of them is asked for next. The others are asked for after it, depending on what is found, those after
    fewer answers first.

    Args:
        known: count -> loss.
        limit, most: as in `least`.
        number: of counts to return at most.
    """
    found: dict[int, None] = {}
    guesses = deque([dict(known)])
    while guesses and len(found) < number:
        guess = guesses.popleft()
        count = _asked(guess, limit, most)
        if count is not None:
            found[count] = None
            guesses += ({**guess, count: limit}, {**guess, count: float("inf")})
    return list(found)


class _Unknown(Exception):
    """A loss is asked for that is not known."""


def _asked(known: Mapping[int, float], limit: float, most: int) -> int | None:
    """Return the first count that is asked for and not known; None if the result is known."""

    def loss(count: int) -> float:
        if count not in known:
            raise _Unknown(count)
        return known[count]

    try:
        loss(least(loss, limit, most))
    except _Unknown as unknown:
        return int(unknown.args[0])
    return None
