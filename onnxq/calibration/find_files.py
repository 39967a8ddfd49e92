"""Finds the files that a data source stands for: a folder, a pattern, a list or a COCO file."""

import glob
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from onnxq._text import plural, some
from onnxq.errors import DataError

log = logging.getLogger(__name__)

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

ARRAYS = frozenset({".npy", ".npz"})


class FoundFiles(NamedTuple):
    """The files of a source.

    Attributes:
        files: those that exist.
        missing: file -> reason, for files that the source names and that do not exist.
    """

    files: Sequence[Path]
    missing: Mapping[str, str] = {}


def paths_of(source: object) -> list[str] | None:
    """Return the paths that a source consists of; None if it is not a path or a sequence of paths."""
    if isinstance(source, str | os.PathLike):
        return [os.fsdecode(source)]
    if isinstance(source, Sequence) and source and all(isinstance(each, str | os.PathLike) for each in source):
        return [os.fsdecode(each) for each in source]
    return None


def find_files(source: str) -> FoundFiles:
    """Return the files that a path, pattern, list or COCO file stands for, without opening them.

    Raises:
        DataError: the source does not exist, is of an unknown kind, or has no file that exists.
    """
    path = Path(source)
    if os.path.isdir(source):
        return FoundFiles(_in_folder(path))
    if not os.path.exists(source):
        if _is_pattern(source):
            return FoundFiles(_matching(source))
        raise DataError(f"{source}: no such file or folder; check the path")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _listed(path)
    if suffix == ".json":
        return _in_coco(path)
    if suffix in IMAGES | ARRAYS:
        return FoundFiles([path])
    known = ", ".join(sorted(IMAGES | ARRAYS | {".txt", ".json"}))
    raise DataError(f"{source}: unknown kind of file; give a folder or one of {known}")


def _is_pattern(source: str) -> bool:
    return any(letter in source for letter in "*?[") and not os.path.exists(source)


def _in_folder(folder: Path) -> list[Path]:
    """The folder's images, else those of its subfolders, else its arrays; without hidden files and folders."""
    for pattern, suffixes in (("*", IMAGES), ("**/*", IMAGES), ("*", ARRAYS)):
        files = [
            file
            for file in folder.glob(pattern)
            if file.suffix.lower() in suffixes
            and not any(part.startswith(".") for part in file.relative_to(folder).parts)
            and file.is_file()
        ]
        if files:
            return files
    raise DataError(f"{folder}: has no images ({', '.join(sorted(IMAGES))}), .npy or .npz files; give another folder")


def _matching(pattern: str) -> list[Path]:
    matches = [Path(match) for match in glob.glob(pattern, recursive=True) if os.path.isfile(match)]
    files = [file for file in matches if file.suffix.lower() in IMAGES | ARRAYS]
    if not files:
        raise DataError(f"{pattern}: matches no image, .npy or .npz file; check the pattern")
    return files


def _listed(path: Path) -> FoundFiles:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a list of files ({error}); write one path per line") from None
    return _existing(path, [line for line in lines if line and not line.startswith("#")], [path.parent, Path()])


def _in_coco(annotations: Path) -> FoundFiles:
    try:
        names = [str(image["file_name"]) for image in json.loads(annotations.read_text("utf-8-sig"))["images"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{annotations}: has no images with a file_name; give annotations in COCO's format") from None
    folder = Path(os.path.abspath(annotations)).parent
    split = annotations.stem.rpartition("_")[2]
    candidates = [
        base / inner for base in (folder, folder.parent) for inner in ("", split, "images", f"images/{split}")
    ]
    return _existing(annotations, names, [path for path in candidates if path.is_dir()])


def _existing(source: Path, names: Sequence[str], folders: Sequence[Path]) -> FoundFiles:
    """Take each name from the first folder that has it."""
    if not names:
        raise DataError(f"{source}: names no files; write one path per line")
    found = {name: next((folder / name for folder in folders if os.path.isfile(folder / name)), None) for name in names}
    files = [file for file in found.values() if file is not None]
    missing = [name for name, file in found.items() if file is None]
    if not files:
        where = ", ".join(map(str, dict.fromkeys(folders)))
        raise DataError(
            f"{source}: names {len(found)} file{plural(len(found))} and none exists, such as {missing[0]}; "
            f"put them in one of these folders: {where}"
        )
    if missing:
        log.warning("%s: %d of its %d files do not exist: %s", source, len(missing), len(found), some(missing))
    return FoundFiles(files, {name: f"{source} names it, and it does not exist" for name in missing})


def short_name(source: str) -> str:
    """Return a short name of a source: the pattern, the last part of the path, or the folder of an image."""
    path = Path(os.path.abspath(source))
    if _is_pattern(source):
        return source
    return (path.parent if path.suffix.lower() in IMAGES else path).name or source
