"""Rule for Convs that have too few channels for an integer kernel."""

from collections.abc import Sequence
from dataclasses import dataclass

_BUNDLE = 8
"""TensorRT's integer kernels for few channels take them in bundles of this size."""


@dataclass(frozen=True)
class FewChannelsRule:
    """NVIDIA's rule for INT8 Convs with few channels (Model-Optimizer, `find_nodes_from_convs_to_exclude`).

    - a narrow Conv without groups must have a square kernel, a multiple of 8 channels on one side, and `channels`
      channels on one side unless it is the first layer
    - a narrow Conv with groups, such as a depthwise one, must have a multiple of 8 output channels and a kernel of at
      least 3

    Attributes:
        channels: a Conv with fewer input or output channels is narrow.
    """

    channels: int

    def keeps_float(self, weight: Sequence[int], group: int, first: bool) -> bool:
        """Return whether a Conv has no good integer kernel.

        Args:
            weight: shape of its weight, (output channels, input channels / group, kernel...).
            group: number of groups.
            first: no layer precedes it.
        """
        outputs, inputs, *kernel = weight
        if min(outputs, inputs) >= self.channels:
            return False
        if group > 1:
            return outputs % _BUNDLE != 0 or min(kernel) < 3
        wide = first or max(outputs, inputs) >= self.channels
        bundled = outputs % _BUNDLE == 0 or inputs % _BUNDLE == 0
        return not (wide and bundled and len(set(kernel)) == 1)
