"""Writing files atomically: a file is replaced as a whole or not at all."""

import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnxq.errors import ConfigError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; at the end of the block it replaces `path`.

    If the block raises, `path` stays as it was. If `path` is a link, the file that it leads to is replaced.

    Raises:
        ConfigError: the folder does not exist or cannot be written to, or `path` is a folder, a device or a pipe.
    """
    path = Path(path)
    _check_is_file(path)
    place = Path(os.path.realpath(path))
    try:
        temporary = _new_file_beside(place)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    try:
        yield temporary
        os.replace(temporary, place)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_json(path: Path, data: object) -> None:
    """Write lists, dictionaries, numbers and strings as JSON.

    Raises:
        ConfigError: as from `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def check_writable(path: Path) -> None:
    """Check before long work that `path` can be written.

    Raises:
        ConfigError: it cannot be written.
    """
    _check_is_file(path)
    place = Path(os.path.realpath(path))
    try:
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}."):
            pass
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _check_is_file(path: Path) -> None:
    if os.path.isdir(path):
        raise ConfigError(f"{path}: is a folder; give the name of a file")
    if os.path.exists(path) and not os.path.isfile(path):
        # Renaming would replace, for example, /dev/null by a file.
        raise ConfigError(f"{path}: is a device or a pipe; give the name of a file")


def _new_file_beside(path: Path) -> Path:
    """Create an empty file in the same folder with the default mode; files of `tempfile` are private to their owner."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with suppress(FileExistsError):
            temporary.touch(exist_ok=False)
            return temporary
