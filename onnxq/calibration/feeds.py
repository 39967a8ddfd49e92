"""Feeds of a model: arrays for its inputs, checked, and batched as the model takes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxq._text import shape_text, some
from onnxq.errors import DataError
from onnxq.runtime.session import Feed

Inputs = Mapping[str, tuple[Sequence[int | None], DTypeLike]]
"""Input name -> shape (None: dynamic) and dtype."""

T = TypeVar("T")


class Sample(NamedTuple):
    """The feed of one run.

    Attributes:
        feed: an array for each input, the image input first.
        valid: number of real samples in the batch; the last one is repeated to fill a batch of fixed size.
    """

    feed: Feed
    valid: int


Loader = Callable[[], Sample | None]
"""Loads a sample in the thread that calls it; returns None if no image of it can be read."""


class _Shaped(Protocol):
    """An array, or the header of an array in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


class ArrayHeader(NamedTuple):
    """Shape and dtype of an array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of a model, which every sample must fit.

    Attributes:
        specs: input name -> shape (None: dynamic) and dtype.
        image_input: the input that takes images; its first axis is the batch.
    """

    specs: Mapping[str, tuple[tuple[int | None, ...], np.dtype[Any]]]
    image_input: str

    @property
    def batch(self) -> int:
        """Samples per run; 1 if the model takes any number."""
        return self.specs[self.image_input][0][0] or 1

    def names(self) -> list[str]:
        """Return the names of the inputs, the image input first."""
        return sorted(self.specs, key=lambda name: name != self.image_input)

    def choose(self, where: str, arrays: Mapping[str, T]) -> dict[str, T]:
        """Return the arrays by input name; a single array fits a single input under any name.

        Raises:
            DataError: an input has no array.
        """
        if len(arrays) == len(self.specs) == 1:
            return {self.image_input: next(iter(arrays.values()))}
        if not arrays.keys() >= self.specs.keys():
            raise self._misnamed(where, arrays)
        return {name: arrays[name] for name in self.names()}

    def feed(self, where: str, item: object) -> Feed:
        """Return arrays by input for an item of an iterable: a mapping, or a bare array for a single input.

        Raises:
            DataError: the item is neither, or its names are not those of the inputs.
        """
        if isinstance(item, Mapping):
            if item.keys() != self.specs.keys():
                raise self._misnamed(where, item)
            return {name: np.asarray(item[name]) for name in self.names()}
        if not hasattr(item, "__array__"):
            raise DataError(f"{where} is a {type(item).__name__}; give {{input name: array}} for {self._all_names()}")
        if len(self.specs) > 1:
            raise DataError(f"{where} is a bare array; give {{input name: array}} for {self._all_names()}")
        return {self.image_input: np.asarray(item)}

    def check(self, where: str, arrays: Mapping[str, _Shaped]) -> int:
        """Check types and shapes, and return the number of samples in the arrays.

        Raises:
            DataError: an array does not fit its input, or has no samples.
        """
        full = {name: self._full_shape(name, arrays[name]) for name in self.names()}
        rows = next(iter(full[self.image_input]), 1)
        for name, shape in full.items():
            self._check_type(where, name, arrays[name].dtype)
            wanted = self.specs[name][0]
            if self._has_batch(name):
                wanted = (None if name == self.image_input else rows, *wanted[1:])
            if len(shape) != len(wanted) or any(size not in (None, given) for size, given in zip(wanted, shape)):
                given = shape_text(map(str, arrays[name].shape))
                raise DataError(
                    f"{where}: input {name} has shape {given}, not {shape_text(wanted)}; "
                    "resize, transpose or split it as the model expects"
                )
        if rows == 0:
            raise DataError(f"{where}: holds no samples; leave it out")
        return rows

    def row(self, where: str, arrays: Mapping[str, NDArray[Any]], index: int) -> Feed:
        """Copy one sample out of checked arrays, with a batch of one and the model's types.

        Raises:
            DataError: it has NaN or infinite values, or whole numbers that the model's type cannot hold.
        """
        feed = {}
        for name in self.names():
            array = arrays[name].reshape(self._full_shape(name, arrays[name]))
            part = array[index : index + 1] if self._has_batch(name) else array
            # Copy even if the type fits: a generator may fill the same array again.
            with np.errstate(over="ignore"):
                feed[name] = np.array(part, dtype=self.specs[name][1], order="C")
            if feed[name].dtype.kind == "f" and not np.isfinite(feed[name]).all():
                raise DataError(f"{where}: input {name} has NaN or infinite values; repair it or leave it out")
            if feed[name].dtype.kind != "f" and (feed[name] != part).any():
                raise DataError(
                    f"{where}: input {name} takes {feed[name].dtype}, and has values from {part.min()} to "
                    f"{part.max()}: scale them as the model expects"
                )
        return feed

    def join(self, feeds: Sequence[Feed]) -> Sample:
        """Join single samples to the model's batch, repeating the last one to fill it.

        Raises:
            DataError: their images differ in shape.
        """
        if self.batch == 1:
            return Sample(feeds[0], 1)
        full = [*feeds, *[feeds[-1]] * (self.batch - len(feeds))]
        shapes = sorted({feed[self.image_input].shape for feed in feeds})
        if len(shapes) > 1:
            raise DataError(
                f"samples of shapes {shapes[0]} and {shapes[1]} cannot be run in one batch "
                f"of {self.batch}; give all the same shape"
            )
        joined = {
            name: np.concatenate([feed[name] for feed in full]) if self._has_batch(name) else feeds[-1][name]
            for name in self.names()
        }
        return Sample(joined, len(feeds))

    def batches(self, loads: Sequence[Callable[[], Feed | None]]) -> tuple[Loader, ...]:
        """Return loaders of the model's batch for loaders of single samples."""
        step = self.batch
        return tuple(partial(self._load, loads[start : start + step]) for start in range(0, len(loads), step))

    def _load(self, loads: Sequence[Callable[[], Feed | None]]) -> Sample | None:
        feeds = [feed for load in loads if (feed := load()) is not None]
        return self.join(feeds) if feeds else None

    def _has_batch(self, name: str) -> bool:
        """Whether the input's first axis is the batch: it is declared like that of the image input."""
        return self.specs[name][0][:1] == self.specs[self.image_input][0][:1]

    def _full_shape(self, name: str, array: _Shaped) -> tuple[int, ...]:
        """The array's shape, with a batch axis for a single sample without one."""
        is_single = len(array.shape) == len(self.specs[name][0]) - 1
        return (1, *array.shape) if is_single else tuple(array.shape)

    def _check_type(self, where: str, name: str, given: np.dtype[Any]) -> None:
        wanted = self.specs[name][1]
        if (given.kind == "f") == (wanted.kind == "f") and np.can_cast(given, wanted, "same_kind"):
            return
        given_as = "values 0-255 as uint8: scale them" if given == np.uint8 else f"not {given}: convert it"
        raise DataError(f"{where}: input {name} takes {wanted}, {given_as} as the model expects")

    def _misnamed(self, where: str, arrays: Mapping[str, object]) -> DataError:
        given = some(list(map(str, arrays))) or "nothing"
        names = self._all_names()
        return DataError(f"{where}: has {given}, the model's inputs are {names}; give the arrays these names")

    def _all_names(self) -> str:
        return ", ".join(self.names())
