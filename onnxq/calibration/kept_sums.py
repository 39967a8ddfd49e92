"""The file in which the sums of finished samples are kept when the pool that observes them is lost."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from onnxq.calibration.array_files import headers_in_archive, require_memory, write_archive
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.ir.files import refuse_special
from onnxq.numerics.arrays import AnyArray
from onnxq.runtime.session import VERSION as ONNXRUNTIME
from onnxq.version import VERSION

_FORMAT = "onnxq finished 1"


class KeptSums:
    """A file with an object of some classes, which belongs to a model, data and versions.

    The object is written as its state: numbers, texts, lists, dictionaries and arrays. Nothing of the file is executed.

    Args:
        path: the file.
        key: what the object belongs to.
        classes: those of the object and of what is in it.
    """

    def __init__(self, path: Path, key: str, classes: Sequence[type]) -> None:
        self.path = path
        self._key = key
        self._classes = {each.__name__: each for each in classes}

    def save(self, what: object) -> None:
        """Write an object, whole or not at all.

        Raises:
            ConfigError: the file cannot be written.
        """
        arrays: dict[str, AnyArray] = {}
        content = {"format": _FORMAT, "key": self._key, "state": self._plain(what, arrays)}
        header = np.frombuffer(json.dumps(content).encode(), np.uint8)
        write_archive(self.path, {"header": header, **arrays})

    def load(self, check: Callable[[Any], None]) -> Any:
        """Return the object; None if there is no file, or if it belongs to another model, data or version.

        Args:
            check: is given the object, and raises whatever it likes if it cannot be.

        Raises:
            DataError: the file is of another kind, or damaged.
        """
        if not self.path.exists():
            return None
        refuse_special(self.path)
        try:
            headers = headers_in_archive(self.path)
            require_memory(self.path, headers.values())
            with np.load(self.path, allow_pickle=False) as archive:
                content = json.loads(archive["header"].tobytes())
                if content["format"] == _FORMAT and content["key"] != self._key:
                    return None
                arrays = {name: archive[name] for name in headers}
            if content["format"] != _FORMAT:
                raise ValueError(f"is {content['format']!r}")
            found = self._object(content["state"], arrays)
            check(found)
        except Exception as error:  # zipfile, zlib, numpy, json and objects of a wrong state raise many types
            why = str(error) or type(error).__name__
            raise DataError(
                f"{self.path}: is no file of finished samples ({why}); remove it, and run this again"
            ) from None
        return found

    def remove(self) -> None:
        """Remove the file, if there is one."""
        with suppress(OSError):
            self.path.unlink()

    def _plain(self, what: Any, arrays: dict[str, AnyArray]) -> Any:
        """Return an object as JSON has it; arrays are put beside it."""
        if what is None or isinstance(what, bool | int | float | str):
            return what
        if isinstance(what, np.ndarray):
            name = f"a{len(arrays)}"
            arrays[name] = what
            return {"array": name}
        if isinstance(what, list | tuple):
            return {type(what).__name__: [self._plain(each, arrays) for each in what]}
        if isinstance(what, dict):
            return {"dict": [[self._plain(each, arrays) for each in item] for item in what.items()]}
        name = type(what).__name__
        if self._classes.get(name) is not type(what):
            raise TypeError(f"{name} is not among the classes that are kept")
        state = what.__getstate__()
        return {"class": name, "state": self._plain(state, arrays)}

    def _object(self, plain: Any, arrays: Mapping[str, AnyArray]) -> Any:
        """Return the object that `_plain` made plain."""
        if not isinstance(plain, dict):
            return plain
        if "array" in plain:
            return arrays[plain["array"]]
        if "dict" in plain:
            return {self._object(key, arrays): self._object(value, arrays) for key, value in plain["dict"]}
        if "class" in plain:
            kind = self._classes[plain["class"]]
            made: Any = object.__new__(kind)
            state = self._object(plain["state"], arrays)
            if hasattr(kind, "__setstate__"):
                made.__setstate__(state)
            else:
                vars(made).update(state)
            return made
        return (
            tuple(self._object(each, arrays) for each in plain["tuple"])
            if "tuple" in plain
            else [self._object(each, arrays) for each in plain["list"]]
        )


def require_type(value: object, kind: Any) -> None:
    """Check that a value from the file has a type, such as `dict[str, int]`.

    Raises:
        msgspec.ValidationError: it has another one.
    """
    msgspec.convert(value, kind)


def key_of(model: onnx.ModelProto, samples: Samples, counted: str) -> str | None:
    """Return what tells sums of other samples, models, options and versions apart; None if nothing tells the samples.

    Files are told by their size and their time of change; pictures at addresses by their addresses alone.

    Args:
        model: what is run.
        samples: all of them, in a form that can be sent.
        counted: what is counted, as text.
    """
    try:
        loaders = pickle.dumps(samples.loaders)
    except Exception:  # whatever an object of the user raises
        return None
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    digest.update(loaders)
    digest.update(repr((counted, samples.preprocess, VERSION, ONNXRUNTIME, np.__version__)).encode())
    for file in samples.files:
        found = os.stat(file) if isinstance(file, Path) else None
        digest.update(repr((str(file), found and (found.st_size, found.st_mtime_ns))).encode())
    return digest.hexdigest()
