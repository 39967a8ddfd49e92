"""Which Convs near the image cost more in 8 bits than they save."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxq.ir import LAYERS, Node, Tensor, constant, downstream, is_depthwise


@dataclass(frozen=True)
class FloatStemRule:
    """The first part of a network, in which Convs stay float. On every way from the image it ends before a Conv that

    - has more than `channels` output channels, or
    - reads less than half of the image's height, and sums more than `products` products for each value.

    The Convs on the image itself always belong to it.

    Attributes:
        channels: narrow Convs wait for memory rather than for arithmetic, so that integers save little time; and what
            they make, at the full range of the image, loses most on one scale.
        products: (input channels / groups x kernel area) that one value takes in a Conv whose arithmetic is worth it.
    """

    channels: int
    products: float

    def convs(self, nodes: Sequence[Node], image: int | None, body: frozenset[str]) -> set[str]:
        """Return the names of the Convs of the stem; if the whole network is that narrow, those on the image alone.

        Args:
            nodes: of the graph, in topological order.
            image: height times width of the model's input, px; None if unknown.
            body: names of the nodes that count as the network.
        """
        inner = downstream(nodes, lambda node: node.op in LAYERS)
        convs = {node.name: node for node in nodes if node.op in ("Conv", "ConvTranspose")}
        wide = {name for name, conv in convs.items() if name in inner and output_channels(conv) > self.channels}
        if not wide & body:
            return convs.keys() - inner
        ending = wide | {name for name, conv in convs.items() if name in inner and self._is_worth_it(conv, image)}
        return convs.keys() - ending - downstream(nodes, lambda node: node.name in ending)

    def _is_worth_it(self, conv: Node, image: int | None) -> bool:
        read = positions(conv.inputs[0])
        is_deep = read is not None and image is not None and 4 * read < image
        return is_deep and not is_depthwise(conv) and _products(conv) > self.products


def image_size(tensor: Tensor) -> tuple[int, int] | None:
    """Return height and width of images (batch, channels, height, width); None if they are not known."""
    if tensor.shape is None or len(tensor.shape) != 4:
        return None
    height, width = tensor.shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def positions(tensor: Tensor) -> int | None:
    """Return height times width of images (batch, channels, height, width); None if they are not known."""
    size = image_size(tensor)
    return None if size is None else math.prod(size)


def pixels(image: Tensor) -> int | None:
    """Return height times width of an input (batch, 3, height, width) or (batch, height, width, 3); None if unknown."""
    if image.shape is None or len(image.shape) != 4:
        return None
    values = image.shape[1:]
    return math.prod(values) // 3 if all(isinstance(size, int) for size in values) else None


def output_channels(conv: Node) -> float:
    """Return the output channels of a Conv or ConvTranspose; infinity if the weight is computed."""
    weight = constant(conv.inputs[1])
    if weight is None:
        return math.inf
    return float(weight.shape[0] if conv.op == "Conv" else weight.shape[1] * conv.attrs.get("group", 1))


def _products(conv: Node) -> int:
    """Return how many products of a narrow Conv or ConvTranspose make one value, at most."""
    weight = conv.inputs[1].shape
    return math.prod(weight[1:]) if conv.op == "Conv" else weight[0] * math.prod(weight[2:])
