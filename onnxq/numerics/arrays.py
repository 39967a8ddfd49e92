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
