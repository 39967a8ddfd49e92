"""Finds the files that a data source stands for: a folder, a pattern, a list, a COCO file or a data set's YAML."""

import functools
import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from onnxq._text import plural, some
from onnxq.calibration import dataset_yaml
from onnxq.errors import DataError
from onnxq.ir.files import is_special, read_json, refuse_special, why_missing
from onnxq.remote.address import Address, Location, is_address, location
from onnxq.remote.fetched import read_bytes
from onnxq.remote.listing import files_below, is_pattern, matching

log = logging.getLogger(__name__)

IMAGES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip

VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})

ARRAYS = frozenset({".npy", ".npz"})

_BESIDE_IMAGES = frozenset({
    "", ".cache", ".csv", ".db", ".html", ".ini", ".json", ".log", ".md", ".names", ".onnx", ".pdf", ".pt", ".py",
    ".tsv", ".txt", ".xml", ".yaml", ".yml", ".zip",
})  # fmt: skip
"""Kinds of files that data sets have beside images, and that nobody takes for images."""

Split = dataset_yaml.Split

_PATHS = (str, os.PathLike, Address)


class FoundFiles(NamedTuple):
    """The files of a source.

    Attributes:
        files: those that exist; of those at addresses that a list names, it is not known.
        missing: file -> reason, for files that the source names and that do not exist.
        other_kinds: suffix -> number of the files in a folder that are of a kind that is not read.
    """

    files: Sequence[Location]
    missing: Mapping[str, str] = {}
    other_kinds: Mapping[str, int] = {}


def paths_of(source: object) -> list[str | Address] | None:
    """Return the paths that a source consists of; None if it is not a path or a sequence of paths."""
    if isinstance(source, _PATHS):
        return [_as_text(source)]
    if isinstance(source, Sequence) and source and all(isinstance(each, _PATHS) for each in source):
        return [_as_text(each) for each in source]
    return None


def _as_text(source: str | os.PathLike[str] | Address) -> str | Address:
    return source if isinstance(source, Address) else os.fsdecode(source)


def find_files(source: str | Location, split: Split = "train") -> FoundFiles:
    """Return the files that a path, pattern, list, COCO file or data set's YAML stands for, without opening them.

    A folder stands for all images below it; for all videos if there are none; for its arrays if there are neither.
    An address stands for a picture, a folder of pictures, a ZIP archive of pictures or a list of them.

    Args:
        source: the path, pattern or address.
        split: the part of a data set that its YAML stands for.

    Raises:
        DataError: the source does not exist, is of an unknown kind, or has no file that exists.
        ConfigError: an address cannot be reached.
    """
    if is_address(source):
        return _at_address(source if isinstance(source, Address) else Address.parse(str(source)))
    source, path = str(source), Path(str(source))
    if os.path.isdir(source):
        return _in_folder(path)
    if not os.path.exists(source):
        if _is_pattern(source):
            return FoundFiles(_matching(source))
        raise DataError(f"{source}: {why_missing(source, 'file or folder')}")
    suffix = path.suffix.lower()
    refuse_special(source)
    if suffix == ".txt":
        return _listed(path)
    if suffix == ".json":
        return _in_coco(path)
    if suffix in dataset_yaml.SUFFIXES:
        return _in_dataset(path, split)
    if suffix in IMAGES | VIDEOS | ARRAYS:
        return FoundFiles([path])
    known = ", ".join(sorted(IMAGES | VIDEOS | ARRAYS | dataset_yaml.SUFFIXES | {".txt", ".json"}))
    raise DataError(f"{source}: unknown kind of file; give a folder or one of {known}")


def _is_pattern(source: str) -> bool:
    return any(letter in source for letter in "*?[") and not os.path.exists(source)


def _in_folder(folder: Path) -> FoundFiles:
    """The images below the folder, else the videos below it, else its arrays; without hidden files and folders."""
    below = list(_below(folder))
    direct = [file for file in below if file.parent == folder]
    found = _of_one_kind(folder, below, ((below, IMAGES), (below, VIDEOS), (direct, ARRAYS)))
    if found is None:
        raise _without_data(folder, below, f"images ({', '.join(sorted(IMAGES))}), videos, .npy or .npz files")
    return found


def _of_one_kind(
    folder: Location, below: Sequence[Location], choice: Iterable[tuple[Sequence[Location], Collection[str]]]
) -> FoundFiles | None:
    """Return the files of the first kind that there is; None if there is none."""
    for candidates, suffixes in choice:
        files = [file for file in candidates if file.suffix.lower() in suffixes]
        if files:
            others = _other_kinds(below, suffixes)
            if others:
                log.warning("%s: left out %s, which are not read with %s", folder, kinds_text(others), _group(suffixes))
            return FoundFiles(files, other_kinds=others)
    return None


def _without_data(folder: Location, below: Sequence[Location], kinds: str) -> DataError:
    others = _other_kinds(below, ())
    hint = f"{kinds_text(others)} are not read: convert them to .png or .jpg, or " if others else ""
    return DataError(f"{folder}: has no {kinds}; {hint}give another folder")


def _at_address(address: Address) -> FoundFiles:
    """The pictures at an address: itself, or those of a folder, an archive, a pattern or a list."""
    if is_pattern(address):
        files = [file for file in matching(address) if file.suffix.lower() in IMAGES]
        if not files:
            raise DataError(f"{address}: matches no image; check the pattern")
        return FoundFiles(files)
    suffix = address.suffix.lower()
    if suffix in IMAGES:
        return FoundFiles([address])
    if suffix == ".txt":
        return _listed_at(address)
    if suffix in VIDEOS | ARRAYS | dataset_yaml.SUFFIXES | {".json"}:
        raise DataError(
            f"{address}: at an address only pictures are read, folders, .zip archives and .txt lists of them; download "
            "this file, and give its path"
        )
    folder = replace(address, is_zip=True) if suffix == ".zip" and not address.is_zip else address
    below = files_below(folder)
    found = _of_one_kind(folder, below, [(below, IMAGES)])
    if found is None:
        raise _without_data(folder, below, f"images ({', '.join(sorted(IMAGES))})")
    return found


def _listed_at(path: Address) -> FoundFiles:
    """The pictures that a list at an address names, relative to it or by their own addresses."""
    try:
        lines = _lines(read_bytes(path).decode("utf-8-sig"))
    except ValueError as error:
        raise _no_list(path, error) from None
    if not lines:
        raise DataError(f"{path}: names no files; write one path per line")
    names = (line.replace("\\", "/") for line in lines)
    return FoundFiles([Address.parse(name) if is_address(name) else path.parent / name for name in names])


def _group(suffixes: Collection[str]) -> str:
    return "images" if suffixes is IMAGES else "videos" if suffixes is VIDEOS else "arrays"


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, also behind links, but no pipes and devices; each folder once."""
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        files = (Path(place, name) for name in sorted(names) if not name.startswith("."))
        yield from (file for file in files if not is_special(file))


def _other_kinds(files: Sequence[Location], read: Collection[str]) -> dict[str, int]:
    kinds = Counter(file.suffix.lower() for file in files)
    return {kind: kinds[kind] for kind in sorted(kinds) if kind not in _BESIDE_IMAGES and kind not in read}


def kinds_text(kinds: Mapping[str, int]) -> str:
    """Return numbers of files by suffix as text, `27 .heic, 3 .mp4`."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _matching(pattern: str) -> list[Path]:
    matches = [Path(match) for match in glob.glob(pattern, recursive=True) if os.path.isfile(match)]
    files = [file for file in matches if file.suffix.lower() in IMAGES | VIDEOS | ARRAYS]
    if not files:
        raise DataError(f"{pattern}: matches no image, video, .npy or .npz file; check the pattern")
    return files


def _in_dataset(path: Path, split: Split) -> FoundFiles:
    dataset = dataset_yaml.read_dataset(path, (split,))
    parts = dataset.train if split == "train" else dataset.val
    if not parts:
        raise DataError(f"{path}: names no {split} split; give its images as a folder")
    found = [find_files(part) for part in parts]
    others: Counter[str] = sum((Counter(each.other_kinds) for each in found), Counter())
    files = [file for each in found for file in each.files]
    return FoundFiles(files, {name: why for each in found for name, why in each.missing.items()}, dict(others))


def _listed(path: Path) -> FoundFiles:
    try:
        lines = _lines(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _no_list(path, error) from None
    elsewhere = [Address.parse(line) for line in lines if is_address(line)]
    here = [line for line in lines if not is_address(line)]
    if elsewhere and not here:
        return FoundFiles(elsewhere)
    found = _existing(path, here, [path.parent, Path()])
    return found._replace(files=[*found.files, *elsewhere])


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _no_list(path: Location, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as a list of files ({error}); write one path per line")


def _in_coco(annotations: Path) -> FoundFiles:
    content = read_json(annotations)
    try:
        names = [str(image["file_name"]) for image in content["images"]]
    except (KeyError, TypeError):
        raise DataError(f"{annotations}: has no images with a file_name; give annotations in COCO's format") from None
    folder = Path(os.path.abspath(annotations)).parent
    split = annotations.stem.rpartition("_")[2]
    candidates = [
        base / inner for base in (folder, folder.parent) for inner in ("", split, "images", f"images/{split}")
    ]
    return _existing(annotations, names, [path for path in candidates if os.path.isdir(path)])


def _existing(source: Path, names: Sequence[str], folders: Sequence[Path]) -> FoundFiles:
    """Take each name from the first folder that has it."""
    if not names:
        raise DataError(f"{source}: names no files; write one path per line")
    folders = list(dict.fromkeys(folders))
    # Many names are in few folders, each of which is looked for once.
    places = functools.cache(lambda above: [place for each in folders if os.path.isdir(place := each / above)])
    found = {name: _first_existing(name, places) for name in names}
    if not any(found.values()):
        found = _by_last_parts(source, names, places)
    files = [file for file in found.values() if file is not None]
    missing = [name for name, file in found.items() if file is None]
    if not files:
        where = ", ".join(map(str, folders))
        raise DataError(
            f"{source}: names {len(found)} file{plural(len(found))} and none exists, such as {missing[0]}; "
            f"put them in one of these folders: {where}"
        )
    if missing:
        log.warning("%s: %d of its %d files do not exist: %s", source, len(missing), len(found), some(missing))
    return FoundFiles(files, {name: f"{source} names it, and it does not exist" for name in missing})


def _first_existing(name: str, places: Callable[[str], Iterable[Path]]) -> Path | None:
    """Return the file of a name, which may have been written on Windows, in the first folder that has it.

    Args:
        name: of the file.
        places: returns the folders that a file may be in, for what its name has before the last part.
    """
    for spelled in (name, name.replace("\\", "/")) if "\\" in name else (name,):
        above, last = os.path.split(spelled)
        for place in places(above):
            if os.path.isfile(os.path.join(place, last)):
                return place / last
    return None


def _by_last_parts(
    source: Path, names: Sequence[str], places: Callable[[str], Iterable[Path]]
) -> dict[str, Path | None]:
    """Find names that were written on another computer by their last parts, the same number of parts for all of them.

    A number of parts is taken only if no two names are the same by them.
    """
    parts = {name: PurePosixPath(name.replace("\\", "/")).parts for name in names}
    for kept in range(max(map(len, parts.values())) - 1, 0, -1):
        if not any(places(above) for above in {"/".join(each[-kept:-1]) for each in parts.values()}):
            continue
        tails = {name: "/".join(each[-kept:]) for name, each in parts.items()}
        if len(set(tails.values())) < len(tails):
            break
        found = {name: _first_existing(tail, places) for name, tail in tails.items()}
        taken = next(filter(None, found.values()), None)
        if taken is not None:
            log.warning("%s: its files do not exist where it says; they are taken by name, as %s", source, taken)
            return found
    return dict.fromkeys(names)


def short_name(source: str | Address) -> str:
    """Return a short name of a source: the pattern, the last part of the path, or the folder of an image."""
    place = location(source)
    if isinstance(place, Address):
        if is_pattern(place):
            return str(place)
        return (place.parent if place.suffix.lower() in IMAGES else place).name
    source = str(source)
    path = Path(os.path.abspath(source))
    if _is_pattern(source):
        return source
    return (path.parent if path.suffix.lower() in IMAGES and not os.path.isdir(path) else path).name or source
