"""The YAML file of a data set, as Ultralytics and Roboflow write it: its splits and class names."""

import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import yaml

from onnxq.errors import DataError
from onnxq.ir.files import refuse_special
from onnxq.remote.address import Address, Location, is_address

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".yaml", ".yml"})

Split = Literal["train", "val"]

_SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation")}
"""Split -> the keys that it may have."""


@dataclass(frozen=True)
class Dataset:
    """What the YAML file of a data set names.

    Attributes:
        root: the folder that paths are relative to.
        train, val: folders, lists or images of the split; empty if the file does not name it, or another one was asked
            for. Paths exist; of addresses it is not known.
        names: class names by label; may be empty.
        keypoints: number of keypoints of an object, and of values of each; (0, 0) if the file does not say.
    """

    root: Location
    train: tuple[Location, ...]
    val: tuple[Location, ...]
    names: tuple[str, ...]
    keypoints: tuple[int, int] = (0, 0)


def read_dataset(path: Path, splits: Collection[str] = ("train", "val")) -> Dataset:
    """Read the YAML file of a data set.

    Splits are searched under the file's `path`, beside the file, and in the working directory. A path that was written
    on another computer is searched by its last parts beside the file, and a warning names what was found.

    Args:
        path: the file.
        splits: those that are looked for, as others may have been left on another computer.

    Raises:
        DataError: the file is not the YAML of a data set, or all paths of a split that is looked for do not exist,
            or one is the YAML of a data set, or `names` or `kpt_shape` is of another form.
    """
    refuse_special(path)
    try:
        # The base loader keeps all scalars as text: a class may be called `no` or `1`.
        content = yaml.load(path.read_text("utf-8-sig"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not any(key in content for keys in _SPLITS.values() for key in keys):
        raise DataError(f"{path}: names neither train nor val; give the YAML of a data set, as Ultralytics writes it")
    folder = Path(os.path.abspath(path)).parent
    given = str(content.get("path") or "").strip()
    named = _portable("" if is_address(given) else given)
    roots = [folder / named, Path.cwd() / named, folder, Path.cwd()]
    root: Location = next((each for each in roots if os.path.isdir(each)), folder)
    if is_address(given):
        root = Address.parse(given)
    train, val = (_split(path, content, keys, roots, root) if name in splits else () for name, keys in _SPLITS.items())
    return Dataset(root, train, val, _names(path, content.get("names")), _keypoints(path, content.get("kpt_shape")))


def _keypoints(path: Path, shape: object) -> tuple[int, int]:
    match shape:
        case None | "" | "null":
            return 0, 0
        case [str(count), "2" | "3" as each] if count.isdecimal():
            return int(count), int(each)
    raise DataError(f"{path}: kpt_shape is {shape}; it is the number of keypoints, and 2 or 3 values of each: [17, 3]")


def _portable(path: str) -> str:
    return path.strip() if os.path.exists(path) else path.strip().replace("\\", "/")


def _split(
    path: Path, content: dict[str, object], keys: tuple[str, ...], roots: list[Path], root: Location
) -> tuple[Location, ...]:
    """Return the existing paths of a split, and its addresses."""
    key = next((key for key in keys if content.get(key)), None)
    if key is None:
        return ()
    value = content[key]
    given = value if isinstance(value, list) else [value]
    entries = [entry for entry in given if isinstance(entry, str)]
    if len(entries) < len(given):
        raise DataError(f"{path}: {key} is not a path or a list of paths")
    found = [_address(entry, root) or _find(path, key, entry, roots) for entry in entries]
    existing = tuple(each for each in found if each is not None)
    missing = [entry for entry, each in zip(entries, found, strict=True) if each is None]
    if not existing:
        where = ", ".join(map(str, dict.fromkeys(roots)))
        raise DataError(f"{path}: {key} is {entries[0]}, which does not exist; put it in one of these folders: {where}")
    for each in existing:
        if isinstance(each, Path) and each.suffix.lower() in SUFFIXES and not os.path.isdir(each):
            raise DataError(f"{path}: {key} is {each}, the YAML of a data set; name the images, as a folder or list")
    if missing:
        log.warning("%s: %d of the %d paths of %s do not exist: %s", path, len(missing), len(entries), key, missing[0])
    return existing


def _address(entry: str, root: Location) -> Address | None:
    """Return the address that an entry is, or that it has below the address of the data set."""
    if is_address(entry.strip()):
        return Address.parse(entry.strip())
    return root / _portable(entry) if isinstance(root, Address) and not os.path.isabs(entry) else None


def _find(path: Path, key: str, entry: str, roots: list[Path]) -> Path | None:
    named = _portable(entry)
    for root in roots:
        if named and os.path.exists(root / named):
            return Path(os.path.normpath(root / named))
    folder = roots[2]
    for tail in _tails(named):
        if os.path.exists(folder / tail):
            # Roboflow writes `../train/images` for a folder beside the file.
            if not named.startswith("../") or named[3:] != str(tail):
                log.warning("%s: %s is %s, which does not exist; %s is taken", path, key, entry, folder / tail)
            return folder / tail
    return None


def _tails(named: str) -> Iterator[PurePosixPath]:
    """Yield the last parts of a path, the most first; not `images` alone, which may hold all splits."""
    parts = [part for part in PurePosixPath(named).parts if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        tail = PurePosixPath(*parts[start:])
        if str(tail) != "images":
            yield tail


def _names(path: Path, names: object) -> tuple[str, ...]:
    match names:
        case None | "":
            return ()
        case list() if all(isinstance(name, str) for name in names):
            return tuple(names)
        case dict() if set(names) == {str(label) for label in range(len(names))}:
            return tuple(str(names[str(label)]) for label in range(len(names)))
    raise DataError(f"{path}: names is neither a list nor numbered from 0 without gaps")
