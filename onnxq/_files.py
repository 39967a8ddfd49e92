"""Files are written whole or not at all."""

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
    """Give a temporary name in the folder of `path`, which is renamed to `path` when the block ends without an error.

    A link stays, and what it leads to is replaced.

    Raises:
        ConfigError: the folder does not exist or cannot be written to, or `path` is a folder, a device or a pipe.
    """
    path = Path(path)
    _refuse_all_but_files(path)
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
    """Write what is made of lists, dictionaries, numbers and strings.

    Raises:
        ConfigError: as from `replace_file`.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def check_writable(path: Path) -> None:
    """Find out before long work whether `path` can be written.

    Raises:
        ConfigError: it cannot.
    """
    _refuse_all_but_files(path)
    place = Path(os.path.realpath(path))
    try:
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}."):
            pass
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _refuse_all_but_files(path: Path) -> None:
    if os.path.isdir(path):
        raise ConfigError(f"{path}: is a folder; give the name of a file")
    if os.path.exists(path) and not os.path.isfile(path):
        # Renaming onto it would leave a file in the place of, say, /dev/null.
        raise ConfigError(f"{path}: is a device or a pipe; give the name of a file")


def _new_file_beside(path: Path) -> Path:
    """An empty file of another name, with the mode of any new file: those of `tempfile` are private to their owner."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with suppress(FileExistsError):
            temporary.touch(exist_ok=False)
            return temporary
