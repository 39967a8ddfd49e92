"""Rule for Convs near the image in which 8 bits cost more accuracy than they save time."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxq.ir import LAYERS, Node, Tensor, constant, downstream, is_depthwise, next_layers


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

    def convs(self, nodes: Sequence[Node], image: int | None, body: frozenset[str]) -> set[str]:
        """Return the names of the Convs of the stem; if the whole network is that narrow, only those on the image.

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
        saving = {name for name, conv in convs.items() if name in inner and self._saves_time(conv, image)}
        ending = wide | {name for name in saving if any(layer.name in saving for layer in next_layers(convs[name]))}
        return convs.keys() - ending - downstream(nodes, lambda node: node.name in ending)

    def _saves_time(self, conv: Node, image: int | None) -> bool:
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


def has_stride(tensor: Tensor, whole: int | None, stride: int) -> bool:
    """Return whether a tensor has at least this stride relative to an image; not if a size is not known.

    Args:
        tensor: images.
        whole: pixels of the image.
        stride: both along height and width.
    """
    count = positions(tensor)
    return count is not None and whole is not None and count * stride**2 <= whole


def pixels(inputs: Iterable[Tensor]) -> int | None:
    """Return height times width of the images among a model's inputs; None if unknown.

    Args:
        inputs: images have the shape (batch, 3, height, width) or (batch, height, width, 3). The first of known size
            counts.
    """
    shapes = (each.shape[1:] for each in inputs if each.shape is not None and len(each.shape) == 4)
    return next((math.prod(shape) // 3 for shape in shapes if all(isinstance(size, int) for size in shape)), None)


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
