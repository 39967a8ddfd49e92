"""The calibration file: `Statistics` as `.npz`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.array_files import headers_in_archive, require_memory, write_archive
from onnxq.errors import DataError
from onnxq.facts import PreparedImages, Statistics
from onnxq.ir.files import refuse_special
from onnxq.numerics.arrays import AnyArray
from onnxq.numerics.channel_statistics import ChannelStatistics
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.input_covariance import InputCovariance
from onnxq.yolo.preprocess import YOLO, parse_preprocess

_FORMAT = "onnxq calibration 4"

_Pixels = Annotated[int, msgspec.Meta(gt=0, lt=2**31)]

_CHANNEL_ARRAYS = tuple(field.name for field in dataclasses.fields(ChannelStatistics))


def save_statistics(statistics: Statistics, path: str | Path) -> None:
    """Write statistics to an `.npz` file, whole or not at all. Equal statistics give equal bytes.

    Members: `header`, JSON as uint8; `counts`, int64 (tensors, bins); `means_0`, `variances_0`, `peaks_0`,
    `pair_peaks_0`, `means_1` ..., float64, of the tensors under `channels` in the header; `covariance_0`
    ..., float32 (blocks, n, n), and `taps_0` ..., float64 (t, t), of the layers under `inputs`, with
    these numbers; `migration_0` ..., float32 (channels,), of the tensors under `migration`.

    Raises:
        ConfigError: the file cannot be written.
    """
    names, averaged, layers = sorted(statistics.histograms), sorted(statistics.channels), sorted(statistics.inputs)
    covariances = list({id(statistics.inputs[name]): statistics.inputs[name] for name in layers}.values())
    numbers = {id(each): k for k, each in enumerate(covariances)}
    migrated = sorted(statistics.migration)
    histograms = [statistics.histograms[name] for name in names]
    header = {
        "format": _FORMAT,
        "digest": statistics.digest,
        "samples": statistics.samples,
        "images": dataclasses.asdict(statistics.images) if statistics.images else None,
        "tensors": [
            {"name": name, "exponent": h.exponent, "start": h.start, "low": h.low, "high": h.high, "floor": h.floor}
            for name, h in zip(names, histograms, strict=True)
        ],
        "channels": averaged,
        "inputs": {name: numbers[id(statistics.inputs[name])] for name in layers},
        "migration": migrated,
    }
    arrays: dict[str, AnyArray] = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "counts": np.stack([h.counts for h in histograms]) if histograms else np.zeros((0, 1), np.int64),
        **{
            f"{kind}_{k}": getattr(statistics.channels[name], kind)
            for k, name in enumerate(averaged)
            for kind in _CHANNEL_ARRAYS
        },
        **{f"covariance_{k}": each.channels for k, each in enumerate(covariances)},
        **{f"taps_{k}": each.taps for k, each in enumerate(covariances)},
        **{f"migration_{k}": statistics.migration[name] for k, name in enumerate(migrated)},
    }
    write_archive(Path(path), arrays)


class _TensorHeader(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    exponent: int
    start: int
    low: float
    high: float
    floor: float


class _ImagesHeader(msgspec.Struct, forbid_unknown_fields=True):
    preprocess: str
    size: tuple[_Pixels, _Pixels]


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    digest: str
    samples: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    images: _ImagesHeader | None
    tensors: list[_TensorHeader]
    channels: list[str]
    inputs: dict[str, Annotated[int, msgspec.Meta(ge=0)]]
    migration: list[str]


def load_statistics(path: str | Path) -> Statistics:
    """Read statistics that `save_statistics` wrote.

    Raises:
        DataError: there is no such file, it is no calibration file of this version of onnxq, or what it says cannot be.
    """
    refuse_special(path)
    try:
        headers = headers_in_archive(Path(path))
        require_memory(Path(path), headers.values())
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in headers}
        content = json.loads(arrays["header"].tobytes())
        if content["format"] != _FORMAT:
            raise DataError(f"{path}: is {content['format']!r}, this onnxq reads {_FORMAT!r}; calibrate again")
        return _statistics(msgspec.convert(content, _Header), arrays)
    except FileNotFoundError:
        raise DataError(f"{path}: no such calibration file; make one with --save-calibration") from None
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and json raise many types on broken files
        cause = f"not a calibration file written by --save-calibration ({_in_words(error)}); make one with it"
        raise DataError(f"{path}: {cause}") from error


def _in_words(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _statistics(header: _Header, arrays: Mapping[str, AnyArray]) -> Statistics:
    """Return what a file holds.

    Raises:
        KeyError, ValueError: an array is missing, or has values that no calibration gives.
    """
    for what in (header.channels, header.migration, [each.name for each in header.tensors]):
        if len(set(what)) < len(what):
            raise ValueError("a name comes twice")
    histograms = {t.name: _histogram(t, c) for t, c in zip(header.tensors, arrays["counts"], strict=True)}
    channels = {
        name: ChannelStatistics(*(_array(arrays, f"{kind}_{k}", np.float64, 1) for kind in _CHANNEL_ARRAYS))
        for k, name in enumerate(header.channels)
    }
    covariances = {
        k: InputCovariance(_array(arrays, f"covariance_{k}", np.float32, 3), _array(arrays, f"taps_{k}", np.float64, 2))
        for k in set(header.inputs.values())
    }
    migration = {name: _array(arrays, f"migration_{k}", np.float32, 1) for k, name in enumerate(header.migration)}
    for name, each in channels.items():
        count = len(each.means)
        if [len(each.variances), len(each.peaks), len(each.pair_peaks)] != [count, count, count // 2]:
            raise ValueError(f"the statistics of the channels of {name!r} differ in length")
    for part in (part for each in covariances.values() for part in (each.channels, each.taps)):
        if part.shape[-2] != part.shape[-1] or not part.size:
            raise ValueError("a covariance is not square, or empty")
    inputs = {name: covariances[k] for name, k in header.inputs.items()}
    if not all((each > 0).all() for each in migration.values()):
        raise ValueError("scales are not positive")
    return Statistics(histograms, header.samples, header.digest, channels, inputs, migration, _images(header.images))


def _images(header: _ImagesHeader | None) -> PreparedImages | None:
    if header is None:
        return None
    if parse_preprocess(header.preprocess)(YOLO).name != header.preprocess:
        raise ValueError(f"preprocess {header.preprocess!r} is not in its usual form")
    return PreparedImages(header.preprocess, header.size)


def _array(arrays: Mapping[str, AnyArray], key: str, dtype: type[Any], rank: int) -> NDArray[Any]:
    array = arrays[key]
    if array.dtype != dtype or array.ndim != rank or not np.isfinite(array).all():
        raise ValueError(f"{key} is not {np.dtype(dtype)} of rank {rank}, or not finite")
    return array


def _histogram(header: _TensorHeader, counts: NDArray[Any]) -> Histogram:
    try:
        return Histogram.of(counts, header.exponent, header.start, header.low, header.high, header.floor)
    except ValueError as error:
        raise ValueError(f"tensor {header.name!r} {error}") from None
