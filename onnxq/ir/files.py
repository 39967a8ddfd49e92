"""Writing files atomically: a file is replaced as a whole or not at all."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onnxq import memory
from onnxq.errors import ConfigError, DataError
from onnxq.ir.temporary import sweep, temporary_file
from onnxq.remote.address import was_address

_JSON_FACTOR = 10
"""Bytes of memory that a byte of JSON takes as lists and dictionaries: COCO's annotations take 8."""

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; at the end of the block it replaces `path`.

    If the block raises, `path` stays as it was. If `path` is a link, the file that it leads to is replaced. A file that
    is replaced keeps its mode and owner. The new file is on the disk before it has the name.

    Raises:
        ConfigError: the folder does not exist or cannot be written to, or `path` is a folder, a device or a pipe, is
            read-only, or belongs to another user.
    """
    with _replacement(Path(path)) as (temporary, place):
        yield temporary
        _flush_to_disk(temporary, os.O_WRONLY)
        os.replace(temporary, place)
        with suppress(OSError):  # not every system can flush a folder
            _flush_to_disk(place.parent, os.O_RDONLY)


def write_json(path: Path, data: object) -> None:
    """Write lists, dictionaries, numbers and strings as JSON.

    Raises:
        ConfigError: as from `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it is missing, no file, not JSON, or larger than fits into memory.
    """
    refuse_special(path)
    try:
        size = _JSON_FACTOR * path.stat().st_size
        memory.require(size, f"{path}: its content", "split it")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def check_writable(path: Path) -> None:
    """Check before long work that `path` can be written, and remove what killed processes left in its folder.

    Raises:
        ConfigError: it cannot be written.
    """
    with _replacement(path) as (_, place):
        sweep(place.parent)


def why_missing(path: str | os.PathLike[str], what: str = "file") -> str:
    """Return in words why a path leads to nothing that can be read."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return f"cannot be read ({error.strerror}); check the path"
    if is_special(path):
        return "is a pipe, a socket or a device; give a file"
    return f"no such {what}; check the path"


def is_special(path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads to a pipe, a socket or a device, whose reading may never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def refuse_special(path: str | os.PathLike[str]) -> None:
    """Check before a path is read that it leads to no pipe, socket or device, whose reading may never end.

    Raises:
        DataError: it does.
    """
    if is_special(path):
        raise DataError(f"{path}: {why_missing(path)}")


@contextmanager
def _replacement(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield an empty file with the mode and owner of `path`, and the place that it is for: `path` without links.

    Raises:
        ConfigError: as from `atomic_write`, also for an OSError of the block.
    """
    try:
        before = _existing(path)
        place = Path(os.path.realpath(path))
        with temporary_file(place.parent) as temporary:
            if before is not None:
                _copy_access(path, before, temporary)
            yield temporary, place
    except OSError as error:
        if was_address(path):
            remedy = "give a path, and upload the file"
            raise ConfigError(f"{path}: files are written to paths, not to addresses; {remedy}") from None
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from None


def _existing(path: Path) -> os.stat_result | None:
    """Return the status of the file that would be replaced; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path}: is a folder; give the name of a file")
    if not stat.S_ISREG(found.st_mode):
        # Renaming would replace, for example, /dev/null by a file.
        raise ConfigError(f"{path}: is a device or a pipe; give the name of a file")
    # The superuser may write to any file, also to one that is marked as read-only on purpose.
    if not found.st_mode & _WRITABLE or not os.access(path, os.W_OK):
        raise ConfigError(f"{path}: is read-only; make it writable, or choose another place")
    return found


def _copy_access(path: Path, before: os.stat_result, temporary: Path) -> None:
    """Give a new file the owner and mode of the one that it will replace."""
    new = os.stat(temporary)
    if (new.st_uid, new.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.chown(temporary, before.st_uid, before.st_gid)
        except PermissionError:
            raise ConfigError(
                f"{path}: belongs to another user or group and would not any more; remove it, or choose another place"
            ) from None
    if new.st_mode != before.st_mode:
        os.chmod(temporary, stat.S_IMODE(before.st_mode))


def _flush_to_disk(path: Path, access: int) -> None:
    descriptor = os.open(path, access)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
