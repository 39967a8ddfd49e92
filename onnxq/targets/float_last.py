"""Rule for last layers that stay float because they take little time."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from onnxq.ir import CONVS, Node, constant
from onnxq.targets.sizes import ImageSizes


@dataclass(frozen=True)
class FloatLastRule:
    """The cheapest last Convs stay float, as many as compute at most a share of the products of all Convs.

    Boxes and scores come straight out of them, so the rounding of their inputs moves boxes more than that of almost any
    other tensor. Those of coarse levels, which find large objects, have few positions.

    Attributes:
        share: of the products of all Convs with a constant weight.
    """

    share: float

    def convs(self, nodes: Sequence[Node], last: Collection[str], sizes: ImageSizes) -> set[str]:
        """Return the names of the last Convs that stay float; none if the size of a Conv is not known.

        Args:
            nodes: of the graph, in topological order.
            last: names of the last layers.
            sizes: of the images in the graph.
        """
        counts: dict[str, int] = {}
        for node in nodes:
            if node.op in CONVS and constant(node.inputs[1]) is not None:
                found = products(node, sizes)
                if found is None:
                    return set()
                counts[node.name] = found
        return least({name: counts[name] for name in counts.keys() & last}, self.share * sum(counts.values()))


def least(counts: Mapping[str, int], most: float) -> set[str]:
    """Return the names of the least counts, as many as have together at most this sum."""
    names = sorted(counts, key=lambda name: (counts[name], name))
    sums = accumulate(counts[name] for name in names)
    return {name for name, total in zip(names, sums, strict=True) if total <= most}


def products(conv: Node, sizes: ImageSizes) -> int | None:
    """Return the multiplications of a Conv or ConvTranspose for one image; None if the size of its images is unknown.

    Each weight is used once per output position, or input position of a ConvTranspose.

    Args:
        conv: its weight has a known shape, as constants have.
        sizes: of the images in the graph.
    """
    count = sizes.positions(conv.outputs[0] if conv.op == "Conv" else conv.inputs[0])
    return None if count is None else count * math.prod(conv.inputs[1].shape)
