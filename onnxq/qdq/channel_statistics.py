"""Statistics of the channels of a tensor: observed, or taken from the tensors that it is joined or enlarged from."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxq.facts import ChannelStatistics
from onnxq.ir import Tensor, producer


def channel_statistics(tensor: Tensor, observed: Mapping[str, ChannelStatistics]) -> ChannelStatistics | None:
    """Return the statistics of a tensor's channels, observed or taken from the inputs of a Concat or Resize, or None.

    Args:
        tensor: of an image or its features, (batch, channels, height, width).
        observed: tensor -> its statistics.
    """
    if tensor.name in observed:
        return observed[tensor.name]
    if not is_derived(tensor, observed):
        return None
    parts = [channel_statistics(part, observed) for part in _parts(tensor)]
    return _joined([part for part in parts if part is not None])


def _joined(parts: Sequence[ChannelStatistics]) -> ChannelStatistics:
    """Return the statistics of the channels of all parts; pairs that span two parts get the sum of their peaks."""
    means, variances, peaks = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("means", "variances", "peaks")
    )
    even = len(peaks) // 2 * 2
    pair_peaks = peaks[0:even:2] + peaks[1:even:2]
    start = 0
    for part in parts:
        if start % 2 == 0:
            pair_peaks[start // 2 : start // 2 + len(part.pair_peaks)] = part.pair_peaks
        start += len(part.peaks)
    return ChannelStatistics(means, variances, peaks, pair_peaks)


def is_derived(tensor: Tensor, observed: Collection[str]) -> bool:
    """Return whether `channel_statistics` knows a tensor if these tensors are observed."""
    parts = _parts(tensor)
    return tensor.name in observed or (bool(parts) and all(is_derived(part, observed) for part in parts))


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors whose channels are those of a tensor, in order; none unless a Concat or Resize makes it."""
    source = producer(tensor)
    if source is None or source.op not in ("Concat", "Resize") or source.attrs.get("axis", 1) != 1:
        return []
    return list(source.inputs) if source.op == "Concat" else list(source.inputs[:1])
