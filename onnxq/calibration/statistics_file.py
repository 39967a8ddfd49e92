"""The calibration file: `Statistics` as `.npz`."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import DataError
from onnxq.facts import ChannelStatistics, Statistics
from onnxq.ir.files import atomic_write
from onnxq.numerics.arrays import AnyArray, Int64Array
from onnxq.numerics.histogram import Histogram

_FORMAT = "onnxq calibration 2"

_CHANNEL_ARRAYS = tuple(field.name for field in dataclasses.fields(ChannelStatistics))

_FIXED_DATE = (1980, 1, 1, 0, 0, 0)


def save_statistics(statistics: Statistics, path: str | Path) -> None:
    """Write statistics to an `.npz` file, whole or not at all. Equal statistics give equal bytes.

    Members: `header`, JSON as uint8; `counts`, int64 (tensors, bins); `means_0`, `variances_0`, `peaks_0`,
    `pair_peaks_0`, `means_1` ..., float64, of the tensors under `channels` in the header; and `patches_0`, `patches_1`
    ..., float64 (k, k), of the layers under `patches`; `migration_0` ..., float32 (channels,), of the tensors under
    `migration`.

    Raises:
        ConfigError: the file cannot be written.
    """
    names, averaged, layers = sorted(statistics.histograms), sorted(statistics.channels), sorted(statistics.patches)
    migrated = sorted(statistics.migration)
    histograms = [statistics.histograms[name] for name in names]
    header = {
        "format": _FORMAT,
        "digest": statistics.digest,
        "samples": statistics.samples,
        "tensors": [
            {"name": name, "exponent": h.exponent, "start": h.start, "low": h.low, "high": h.high, "floor": h.floor}
            for name, h in zip(names, histograms, strict=True)
        ],
        "channels": averaged,
        "patches": layers,
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
        **{f"patches_{k}": statistics.patches[name] for k, name in enumerate(layers)},
        **{f"migration_{k}": statistics.migration[name] for k, name in enumerate(migrated)},
    }
    with atomic_write(Path(path)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            # numpy.savez writes the time of day; a fixed date keeps the bytes the same.
            member = zipfile.ZipInfo(f"{key}.npy", date_time=_FIXED_DATE)
            archive.writestr(member, buffer.getvalue(), zipfile.ZIP_DEFLATED)


def load_statistics(path: str | Path) -> Statistics:
    """Read statistics that `save_statistics` wrote.

    Raises:
        DataError: there is no such file, or it is no calibration file of this version of onnxq.
    """
    try:
        with Path(path).open("rb") as file, np.load(file) as archive:
            header = json.loads(archive["header"].tobytes())
            counts = archive["counts"]
            if header["format"] != _FORMAT:
                raise DataError(f"{path}: is {header['format']!r}, this onnxq reads {_FORMAT!r}; calibrate again")
            channels = {
                str(name): ChannelStatistics(*(np.asarray(archive[f"{kind}_{k}"]) for kind in _CHANNEL_ARRAYS))
                for k, name in enumerate(header["channels"])
            }
            patches = {str(name): np.asarray(archive[f"patches_{k}"]) for k, name in enumerate(header["patches"])}
            migration = {str(name): np.asarray(archive[f"migration_{k}"]) for k, name in enumerate(header["migration"])}
        if not all((np.isfinite(each) & (each > 0)).all() for each in migration.values()):
            raise ValueError("scales are not positive")
        if not all(np.isfinite(each).all() for each in (*patches.values(), *_arrays(channels.values()))):
            raise ValueError("statistics are not finite")
        histograms = {t["name"]: _histogram(t, c) for t, c in zip(header["tensors"], counts, strict=True)}
        return Statistics(histograms, int(header["samples"]), str(header["digest"]), channels, patches, migration)
    except FileNotFoundError:
        raise DataError(f"{path}: no such calibration file; make one with --save-calibration") from None
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and json raise many types on broken files
        cause = "not a calibration file written by --save-calibration; make one with it"
        raise DataError(f"{path}: {cause}") from error


def _arrays(channels: Iterable[ChannelStatistics]) -> Iterator[AnyArray]:
    for each in channels:
        yield from (getattr(each, kind) for kind in _CHANNEL_ARRAYS)


def _histogram(header: dict[str, Any], counts: Int64Array) -> Histogram:
    histogram = Histogram(header["floor"])
    histogram.counts = counts
    histogram.exponent, histogram.start = int(header["exponent"]), int(header["start"])
    histogram.low, histogram.high = float(header["low"]), float(header["high"])
    return histogram
