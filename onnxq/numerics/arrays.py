"""Names for the types of numpy arrays; docstrings give their shapes."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[np.generic]
"""Array of any dtype."""

Float32Array = NDArray[np.float32]
"""Values that a model holds or computes."""

Float64Array = NDArray[np.float64]
"""Values of onnxq's own arithmetic."""

FloatArray = NDArray[np.floating]
"""Values of either of these."""

Int64Array = NDArray[np.int64]
"""Counts and indices."""

NamedArrays = Mapping[str, AnyArray]
"""Arrays by the name of the tensor."""

_NARROW = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)


def narrowed(integers: Int64Array) -> AnyArray:
    """Return integers in the narrowest type that holds them all, signed or not."""
    least, greatest = integers.min(initial=0), integers.max(initial=0)
    for kind in _NARROW:
        if np.iinfo(kind).min <= least and greatest <= np.iinfo(kind).max:
            return integers.astype(kind)
    return integers
