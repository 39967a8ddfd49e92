"""Temporary files and folders; those that a killed process left behind are removed by a later one.

A process keeps each of them locked while it lives, and the system releases the lock however the process ends. So one
that has onnxq's name and this machine's, and can be locked, has no owner any more.
"""

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnxq.errors import ConfigError

if sys.platform != "win32":
    import fcntl

# Locks may not reach other machines that share the folder.
_PREFIX = f"onnxq-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"

_NAME = re.compile(rf"\.?{_PREFIX}[0-9a-f]{{16}}")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


_SMALL = 65536
"""A disk with less room is full: what was written to it last may be incomplete. Bytes."""


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """Yield an empty hidden file with the default mode; after the block it is removed, unless it was moved.

    Raises:
        OSError: it cannot be created.
    """

    def create() -> Path:
        path = folder / f".{_new_name()}"
        path.touch(exist_ok=False)  # files of `tempfile` are private to their owner
        return path

    path, lock = _locked(create)
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        _release(lock)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder in the system's folder for temporary files; after the block it is removed.

    Raises:
        ConfigError: it cannot be created, or the block found no room in it.
    """
    path, lock = _new_folder()
    try:
        yield path
    except Exception as error:  # runtimes do not say that a disk is full, and some do not notice
        full = _why_full(path)
        if full is None:
            raise
        raise ConfigError(no_room(full, path.parent)) from error
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _release(lock)


def temporary_place() -> Path:
    """Return the first folder that takes temporary files: of TMPDIR, TEMP, TMP, /tmp and others as in `tempfile`.

    A killed process leaves the file with which `tempfile` tries a folder; what this tries, a later one removes.

    Raises:
        ConfigError: no folder takes them.
    """
    with temporary_folder() as folder:
        return folder.parent


def _new_folder() -> tuple[Path, int | None]:
    """Create a folder in the first place that takes one with a file; return its path and what holds its lock.

    Raises:
        ConfigError: no place does.
    """
    failed: OSError | None = None
    for place in _places():
        sweep(place)

        def create(place: Path = place) -> Path:
            path = place / _new_name()
            path.mkdir(mode=0o700)
            return path

        try:
            path, lock = _locked(create)
        except OSError as error:
            failed = failed or error
            continue
        try:
            (path / "tried").write_bytes(b"tried")
            (path / "tried").unlink()
        except OSError as error:
            failed = failed or error
            shutil.rmtree(path, ignore_errors=True)
            _release(lock)
            continue
        return path, lock
    raise ConfigError(
        f"no folder takes temporary files (TMPDIR, /tmp and others are full or read-only: {failed}); point TMPDIR to "
        "one with room"
    )


def _places() -> list[Path]:
    """Return the folders to try, the best first."""
    if tempfile.tempdir is not None or sys.platform == "win32":
        return [Path(tempfile.gettempdir())]
    given = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    places = []
    for name in (*filter(None, given), "/tmp", "/var/tmp", "/usr/tmp", os.curdir):
        with suppress(FileNotFoundError):  # the working directory was removed
            places.append(Path(os.path.abspath(name)))
    return places


def _why_full(folder: Path) -> OSError | None:
    """Return the error if a folder has no room for another small file; None if it has."""
    try:
        (folder / _new_name()).write_bytes(bytes(_SMALL))
    except OSError as error:
        return error if error.errno in _NO_ROOM else None
    return None


def no_room(error: OSError, place: Path, what: str = "temporary files") -> str:
    """Return the message that temporary files cannot be written in a folder."""
    return f"{place}: cannot take {what} ({error.strerror or error}); point TMPDIR to a folder with more room"


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders directly in a folder that killed processes of this user left behind."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if _NAME.fullmatch(name):
                _remove_left(folder / name)


def _remove_left(path: Path) -> None:
    lock = _lock(path, wait=False)
    if lock is None:
        return
    found = os.fstat(lock)
    if sys.platform != "win32" and found.st_uid == os.geteuid():
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    _release(lock)


def _new_name() -> str:
    return _PREFIX + secrets.token_hex(8)


def _locked(create: Callable[[], Path]) -> tuple[Path, int | None]:
    """Create a file or folder and lock it; return its path and the descriptor that holds the lock, if there is one."""
    while True:
        path = create()
        lock = _lock(path, wait=True)
        if os.path.lexists(path):
            return path, lock
        _release(lock)  # another process swept it away before it was locked


def _lock(path: Path, wait: bool) -> int | None:
    """Return a descriptor that holds the lock of a file or folder.

    None: another process holds it, there is no such file, or the file system has no locks.
    """
    if sys.platform == "win32":
        return None
    try:
        flags = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR  # NFS locks no file that is open for reading only
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
