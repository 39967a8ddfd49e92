"""The limit on the memory that a model or data may ask for: a constant, the activations of a run, a picture, an array.

What a file states is compared with the limit before anything is computed or decoded. The limit belongs to the process:
half of the machine's memory, unless `limited_to` sets another one.
"""

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from onnxq.errors import DataError, OnnxqError

OPTION = "--max-memory"

CONSTANT = 1 << 30
"""Bytes that a constant, a sparse tensor or an input may take unless the user allows another number."""

_SHARE = 0.5
"""Share of the machine's memory that one thing may ask for: it is rarely the only one."""

_UNKNOWN = 8_000_000_000
"""Memory of a machine that does not tell it, bytes."""

_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the limit of a container, in bytes; "max" or an enormous number without one."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

_given: int | None = None


def limit(default: int | None = None) -> int:
    """Return the most bytes that a model or data may ask for at once.

    Args:
        default: a lower limit for some things, as long as the user sets none.
    """
    if _given is not None:
        return _given
    share = int(of_machine() * _SHARE)
    return share if default is None else min(share, default)


def given() -> int | None:
    """Return the limit that the user set, bytes; None if it is the default."""
    return _given


def use(size: int | None) -> None:
    """Set the limit from now on, bytes; None for the default. A worker takes over that of the process it works for."""
    global _given
    _given = size


def of_machine() -> int:
    """Return the bytes of memory that this process can use: those of the machine, or of its container."""
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not every system tells
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(file.read_text()))
    return min((size for size in sizes if size > 0), default=_UNKNOWN)


def give_back() -> None:
    """Return freed memory to the system; the C library of Linux (malloc_trim of glibc) would keep much of it."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # other C libraries
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def limited_to(size: int | None) -> Iterator[None]:
    """Set the limit within the block, bytes; None leaves it as it is."""
    global _given
    before = _given
    if size is not None:
        _given = size
    try:
        yield
    finally:
        _given = before


def require(size: int, what: str, remedy: str, error: type[OnnxqError] = DataError, default: int | None = None) -> None:
    """Refuse what asks for more memory than the limit.

    Args:
        size: what it takes at least, bytes.
        what: file, node or tensor, and what it holds, for the message.
        remedy: what else helps than a higher limit.
        error: its type.
        default: as in `limit`.

    Raises:
        OnnxqError: the size is above the limit; of the type `error`.
    """
    most = limit(default)
    if size > most:
        raise error(
            f"{what} would take {size_text(size)} of memory, and the limit is {size_text(most)}: {remedy}, or allow "
            f"more with {OPTION}"
        )


def size_text(size: int) -> str:
    """Return a number of bytes as text, `4.8 GB`."""
    for unit in ("G", "M", "K"):
        if size >= _UNITS[unit]:
            number = size / _UNITS[unit]
            return f"{number:.1f} {unit}B" if number < 1e6 else f"{number:.1e} {unit}B"
    return f"{size} bytes"


def parse_size(text: str) -> int:
    """Return the bytes that a text such as `500M` or `2.5G` stands for; units are powers of 1,000.

    Raises:
        ValueError: the text has another form, or stands for less than a byte.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([KMGT]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise ValueError(f"expected a size as 500M or 4G, got {text!r}")
    return size
