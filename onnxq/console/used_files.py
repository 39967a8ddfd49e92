"""The files that a command reads and writes: no output replaces an input, and no input changes meanwhile."""

import argparse
import os
import stat
import unicodedata
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from onnxq.calibration.dataset_yaml import SUFFIXES, Split, read_dataset
from onnxq.calibration.find_files import ARRAYS, IMAGES, VIDEOS, find_files
from onnxq.errors import ConfigError, DataError
from onnxq.evaluation.annotations.yolo_labels import label_file
from onnxq.ir.files import check_writable
from onnxq.ir.storage import files_of
from onnxq.ir.temporary import sweep, temporary_file
from onnxq.remote.address import Address, Location, location


class UsedFiles:
    """The inputs and outputs of a command.

    Name all inputs before the first of them is opened. `check` looks for outputs that would replace an input or each
    other, before the work. `require_unchanged` looks whether an input has changed, before the first output is written.
    """

    def __init__(self) -> None:
        self._inputs: dict[Path, tuple[str, os.stat_result]] = {}
        self._folders: list[Path] = []
        self._outputs: list[tuple[str, Path]] = []
        self._output_folders: list[tuple[str, Path, str]] = []

    def reads(self, what: str, paths: Iterable[Path | None]) -> None:
        """Name files that are read; `what` they are is for messages. None and files that do not exist are left out."""
        for path in paths:
            if path is not None and path not in self._inputs:
                with suppress(OSError, ValueError):  # a model may name a file as no system does
                    self._inputs[path] = what, os.stat(path)

    def reads_model(self, what: str, path: Path) -> None:
        """Name a model that is read, with the files of its weights."""
        self.reads(what, files_of(path))

    def reads_data(self, what: str, source: str | Location, split: Split) -> None:
        """Name a source of images, videos or arrays, as `find_files` takes it, with all files that it stands for.

        What is at an address is left out: no output can be there.
        """
        path = location(source)
        if isinstance(path, Address):
            return
        if os.path.isdir(path):
            self._folders.append(path)
        elif os.path.isfile(path):
            self.reads(what, [path])
        # What is wrong with the source, the command itself tells.
        with suppress(DataError, OSError):
            if path.suffix.lower() in SUFFIXES:
                data_set = read_dataset(path, (split,))
                for part in data_set.train if split == "train" else data_set.val:
                    self.reads_data(what, part, split)
            else:
                self.reads(what, (file for file in find_files(path, split).files if isinstance(file, Path)))

    def reads_labels(self, what: str) -> None:
        """Name the label files of the images that were named."""
        self.reads(what, [label_file(path) for path in list(self._inputs) if path.suffix.lower() in IMAGES])

    def writes(self, option: str, path: Path | None) -> None:
        """Name a file that is written if it is not None."""
        if path is not None:
            self._outputs.append((option, path))

    def writes_into(self, option: str, folder: Path | None, pattern: str) -> None:
        """Name a folder, unless it is None, for files whose names match a pattern, such as `[0-9]*-*.jpg`."""
        if folder is not None:
            self._output_folders.append((option, folder, pattern))

    def check(self) -> None:
        """Refuse outputs that cannot be written, or would replace an input, join the data or replace each other.

        Raises:
            ConfigError: there is such an output.
        """
        read = {(found.st_dev, found.st_ino): what for what, found in self._inputs.values()}
        written: dict[Hashable, str] = {}
        for option, path in self._outputs:
            place = _place(path)
            if place in read:
                raise ConfigError(f"{path}: is {read[place]}; give another name with {option}")
            if place in written:
                raise ConfigError(f"{path}: is written by {written[place]} already; give another name with {option}")
            written[place] = option
            self._refuse_data(option, path, path.suffix)
            check_writable(path)
        for option, folder, pattern in self._output_folders:
            self._check_folder(option, folder, pattern, read, written)

    def _check_folder(
        self, option: str, folder: Path, pattern: str, read: dict[tuple[int, int], str], written: dict[Hashable, str]
    ) -> None:
        """Refuse a folder of outputs in which one would replace an input or another output, or join the data."""
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        try:
            is_folder = stat.S_ISDIR(os.stat(there).st_mode)
            if is_folder:
                with suppress(FileNotFoundError):
                    os.stat(folder)
        except OSError as error:
            raise ConfigError(f"{option} {folder}: cannot be used ({error.strerror}); choose another place") from None
        if not is_folder:
            raise ConfigError(f"{option} {folder}: {there} is a file; give the name of a folder")
        suffix = Path(pattern).suffix
        self._refuse_data(option, folder / pattern, suffix, folder)
        holds_images = {os.path.realpath(path.parent) for path in self._inputs if path.suffix.lower() in IMAGES}
        if suffix in IMAGES and os.path.realpath(folder) in holds_images:
            raise ConfigError(f"{option} {folder}: is a folder of the images; give another folder")
        for path in folder.glob(pattern):
            place = _place(path)
            if place in read:
                raise ConfigError(f"{option} {folder}: {path.name} in it is {read[place]}; give another folder")
        for other, path in self._outputs:
            if os.path.realpath(path.parent) == os.path.realpath(folder) and path.match(pattern):
                raise ConfigError(f"{option} {folder}: {other} writes {path.name} into it; give another folder")
        sweep(folder)

    def _refuse_data(self, option: str, path: Path, suffix: str, shown: Path | None = None) -> None:
        """Refuse an output that a folder of data would count among its files from then on."""
        if suffix.lower() not in IMAGES | VIDEOS | ARRAYS:
            return
        for folder in self._folders:
            if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                raise ConfigError(
                    f"{option} {shown or path}: would be among the data in {folder}; give a place outside of it"
                )

    def require_unchanged(self) -> None:
        """Check that no input has changed since it was named.

        Raises:
            DataError: one has.
        """
        for path in self._changed():
            raise DataError(
                f"{path}: changed while it was in use, so the results are dropped; run this again when it is complete"
            )

    def _changed(self) -> Iterator[Path]:
        for path, (_, before) in self._inputs.items():
            try:
                now = os.stat(path)
            except OSError:
                yield path
                continue
            if any(getattr(before, key) != getattr(now, key) for key in ("st_dev", "st_ino", "st_size", "st_mtime_ns")):
                yield path


def place(text: str) -> Location:
    """Return the path or the address that the value of an option means, for argparse.

    Raises:
        ArgumentTypeError: it is an address that cannot be read.
    """
    try:
        return location(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _place(path: Path) -> Hashable:
    """Return what two paths of the same file have in common, under any name: also of a file that does not exist yet."""
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    folder, name = os.path.split(os.path.realpath(path))
    with suppress(OSError):
        if _ignores_case(Path(folder)):
            return folder, unicodedata.normalize("NFC", name).casefold()
    return folder, name


def _ignores_case(folder: Path) -> bool:
    """Return whether the names in a folder are the same in upper and lower case.

    Raises:
        OSError: no file can be created in it.
    """
    with temporary_file(folder) as path:
        return path.with_name(path.name.upper()).exists()
