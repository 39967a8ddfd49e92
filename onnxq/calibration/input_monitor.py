"""Looks at the model's inputs while calibration samples are loaded."""

import math
import threading
import zlib
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.feeds import Loader, Sample
from onnxq.facts import InputSummary, Probe
from onnxq.runtime.session import Feed

PROBES = 2
"""Samples on which the quantized model is compared with the float model."""

_CHECKSUM_STRIDE = 61
"""Every n-th value of an image goes into the checksum that finds duplicates."""


class InputMonitor:
    """Records the first samples and a summary of all of them. The loaders may run in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._feeds: dict[int, Feed] = {}
        self._checksums: list[int] = []
        self._low = math.inf
        self._high = -math.inf

    def watch(self, loaders: Iterable[Loader]) -> Iterator[Loader]:
        """Yield loaders that load the same samples and record them; each is to be called once."""
        for step, loader in enumerate(loaders):
            yield partial(self._load, step, loader)

    def probe(self) -> Probe:
        """Return the first `PROBES` samples that could be read, in the order of the loaders."""
        return Probe(tuple(self._feeds[step] for step in sorted(self._feeds)))

    def summary(self) -> InputSummary:
        """Return the summary of the image input over all samples that could be read."""
        return InputSummary(self._low, self._high, len(self._checksums), len(set(self._checksums)))

    def _load(self, step: int, loader: Loader) -> Sample | None:
        sample = loader()
        if sample is not None:
            images = next(iter(sample.feed.values()))[: sample.valid]
            low, high, checksums = float(images.min()), float(images.max()), list(map(_checksum, images))
            with self._lock:
                self._low, self._high = min(self._low, low), max(self._high, high)
                self._checksums += checksums
                self._feeds[step] = sample.feed
                for later in sorted(self._feeds)[PROBES:]:
                    del self._feeds[later]
        return sample


def _checksum(image: NDArray[np.generic]) -> int:
    return zlib.crc32(image.reshape(-1)[::_CHECKSUM_STRIDE].tobytes())
