"""Rule for Convs near the image in which 8 bits cost more accuracy than they save time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxq.ir import LAYERS, Node, constant, downstream, is_depthwise, next_layers
from onnxq.targets.sizes import ImageSizes


@dataclass(frozen=True)
class FloatStemRule:
    """The stem is the first part of a network, in which Convs stay float. On each path it ends before a Conv that

    - has more than `channels` output channels, or
    - reads less than half of the image's height, sums more than `products` products per output value, and leads to a
      layer that does so, too: integers save the time of their border only where two such Convs follow each other.

    Convs that read the image itself always belong to the stem.

    Attributes:
        channels: greatest number of output channels in the stem. Narrow Convs are memory-bound, so integers save little
            time; and their outputs, near the image, lose most by one shared scale.
        products: greatest number of products per output value (input channels / groups x kernel area) in the stem. With
            more, integers save time.
    """

    channels: int
    products: float

    def convs(self, nodes: Sequence[Node], sizes: ImageSizes, body: frozenset[str]) -> set[str]:
        """Return the names of the Convs of the stem; if the whole network is that narrow, only those on the image.

        Args:
            nodes: of the graph, in topological order.
            sizes: of the images in the graph.
            body: names of the nodes that count as the network.
        """
        inner = downstream(nodes, lambda node: node.op in LAYERS)
        convs = {node.name: node for node in nodes if node.op in ("Conv", "ConvTranspose")}
        wide = {name for name, conv in convs.items() if name in inner and output_channels(conv) > self.channels}
        if not wide & body:
            return convs.keys() - inner
        saving = {name for name, conv in convs.items() if name in inner and self._saves_time(conv, sizes)}
        ending = wide | {name for name in saving if any(layer.name in saving for layer in next_layers(convs[name]))}
        return convs.keys() - ending - downstream(nodes, lambda node: node.name in ending)

    def _saves_time(self, conv: Node, sizes: ImageSizes) -> bool:
        read = sizes.positions(conv.inputs[0])
        is_deep = read is not None and sizes.pixels is not None and 4 * read < sizes.pixels
        return is_deep and not is_depthwise(conv) and _products(conv) > self.products


def output_channels(conv: Node) -> float:
    """Return the output channels of a Conv or ConvTranspose; infinity if the weight is computed."""
    weight = constant(conv.inputs[1])
    if weight is None:
        return math.inf
    return float(weight.shape[0] if conv.op == "Conv" else weight.shape[1] * conv.attrs.get("group", 1))


def _products(conv: Node) -> int:
    """Return the greatest number of products per output value of a narrow Conv or ConvTranspose."""
    weight = conv.inputs[1].shape
    return math.prod(weight[1:]) if conv.op == "Conv" else weight[0] * math.prod(weight[2:])
