"""The calibration file: `Statistics` as `.npz`."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import DataError
from onnxq.facts import Statistics
from onnxq.ir.files import atomic_write
from onnxq.numerics.arrays import AnyArray, Int64Array
from onnxq.numerics.histogram import Histogram

_FORMAT = "onnxq calibration 1"

_FIXED_DATE = (1980, 1, 1, 0, 0, 0)


def save_statistics(statistics: Statistics, path: str | Path) -> None:
    """Write statistics to an `.npz` file, whole or not at all. Equal statistics give equal bytes.

    Members: `header`, JSON as uint8; `counts`, int64 (tensors, bins); and `mean_0`, `mean_1` ..., float64 (channels,).

    Raises:
        ConfigError: the file cannot be written.
    """
    names, averaged = sorted(statistics.histograms), sorted(statistics.means)
    histograms = [statistics.histograms[name] for name in names]
    header = {
        "format": _FORMAT,
        "digest": statistics.digest,
        "samples": statistics.samples,
        "tensors": [
            {"name": name, "exponent": h.exponent, "start": h.start, "low": h.low, "high": h.high, "floor": h.floor}
            for name, h in zip(names, histograms, strict=True)
        ],
        "means": averaged,
    }
    arrays: dict[str, AnyArray] = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "counts": np.stack([h.counts for h in histograms]) if histograms else np.zeros((0, 1), np.int64),
        **{f"mean_{k}": statistics.means[name] for k, name in enumerate(averaged)},
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
            means = {str(name): np.asarray(archive[f"mean_{k}"]) for k, name in enumerate(header["means"])}
        if header["format"] != _FORMAT:
            raise DataError(f"{path}: is {header['format']!r}, this onnxq reads {_FORMAT!r}; calibrate again")
        histograms = {t["name"]: _histogram(t, c) for t, c in zip(header["tensors"], counts, strict=True)}
        return Statistics(histograms, int(header["samples"]), str(header["digest"]), means)
    except FileNotFoundError:
        raise DataError(f"{path}: no such calibration file; make one with --save-calibration") from None
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and json raise many types on broken files
        cause = "not a calibration file written by --save-calibration; make one with it"
        raise DataError(f"{path}: {cause}") from error


def _histogram(header: dict[str, Any], counts: Int64Array) -> Histogram:
    histogram = Histogram(header["floor"])
    histogram.counts = counts
    histogram.exponent, histogram.start = int(header["exponent"]), int(header["start"])
    histogram.low, histogram.high = float(header["low"]), float(header["high"])
    return histogram
