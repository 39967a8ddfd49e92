"""Statistics of the channels of a tensor: observed, or taken from the tensors that it is joined or enlarged from."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxq.errors import DataError
from onnxq.facts import Statistics
from onnxq.ir import Model, Tensor, constant, producer
from onnxq.numerics.channel_statistics import ChannelStatistics


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


def check_statistics(statistics: Statistics, model: Model) -> None:
    """Check that statistics from outside are of this model.

    Raises:
        DataError: they are of another one, or have other numbers of channels or inputs than its tensors and layers.
    """
    if statistics.digest != model.digest():
        raise DataError(
            "the calibration was made with another model, or with another choice of --equalize, --migrate or "
            "--target; calibrate this one with --calib"
        )
    tensors, nodes = model.graph.tensors(), model.nodes
    for name, channels in statistics.channels.items():
        shape = list(getattr(tensors.get(name), "shape", None) or ())
        wanted = shape[1] if len(shape) > 1 else None
        if isinstance(wanted, int) and wanted != len(channels.means):
            raise _unfit(f"{len(channels.means)} channels of the tensor {name!r}", wanted)
    for name, covariance in statistics.inputs.items():
        conv = nodes.get(name)
        weight = constant(conv.inputs[1]) if conv is not None and conv.op == "Conv" else None
        if conv is not None and weight is not None:
            inputs = math.prod(weight.shape[1:])
            try:
                covariance.shape(conv.attrs.get("group", 1), inputs)
            except ValueError as blocks:
                raise _unfit(f"{blocks} for the layer {name!r}", f"{inputs} inputs of a group") from None


def _unfit(what: str, wanted: object) -> DataError:
    return DataError(f"the calibration has {what}, which has {wanted}: the file was changed; calibrate again")


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
    """Return the tensors whose channels are those of a tensor, in order; none unless a Concat or Resize makes it.

    A Resize may change the number of channels.
    """
    source = producer(tensor)
    if source is None or source.op not in ("Concat", "Resize") or source.attrs.get("axis", 1) != 1:
        return []
    if source.op == "Concat":
        return list(source.inputs)
    image = source.inputs[0]
    return [image] if (image.shape or ())[1:2] == (tensor.shape or ())[1:2] else []
