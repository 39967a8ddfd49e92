"""Sizes of the images in a network, on which the rules that weigh time against accuracy depend."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxq.ir import Constant, Model, Tensor, inferred_graph
from onnxq.ir.shape_inference import declared_shape

Size = tuple[int, int]
"""Height and width."""

Shape = Sequence[int | str | None]
"""Lengths of axes; a name or None for one that is unknown."""


@dataclass(frozen=True)
class ImageSizes:
    """The sizes of the images in a network.

    A model of dynamic size takes images of other sizes as well, so nothing that must hold for all of them may depend on
    these sizes.

    Attributes:
        tensors: name -> height and width of tensors (batch, channels, height, width). Those of unknown size are absent.
        pixels: height times width of the model's input; None if unknown.
    """

    tensors: Mapping[str, Size]
    pixels: int | None

    def positions(self, tensor: Tensor) -> int | None:
        """Return height times width of a tensor; None if unknown."""
        size = self.tensors.get(tensor.name)
        return None if size is None else math.prod(size)

    def has_stride(self, tensor: Tensor, stride: int) -> bool:
        """Return whether a tensor has at least this stride, along both axes; not if a size is unknown."""
        count = self.positions(tensor)
        return count is not None and self.pixels is not None and count * stride**2 <= self.pixels


def declared_sizes(model: Model) -> ImageSizes:
    """Return the sizes that the graph declares."""
    tensors = [tensor for tensor in model.graph.tensors().values() if not isinstance(tensor, Constant)]
    known = {tensor.name: size for tensor in tensors if (size := image_size(tensor)) is not None}
    return ImageSizes(known, _pixels(tensor.shape for tensor in model.graph.inputs))


def sizes_at(model: Model, name: str, shape: Sequence[int]) -> ImageSizes:
    """Return the sizes for an input of this shape.

    Args:
        model: not changed.
        name: of the image input.
        shape: lengths of its axes; they count where the graph declares none.

    Raises:
        ModelError: shapes cannot be inferred.
    """
    proto = model.to_proto_without_weights()
    image = next(value for value in proto.graph.input if value.name == name)
    for dim, length in zip(image.type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = dim.dim_value or length
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = inferred_graph(proto)
    known = dict(_known((*proto.graph.input, *graph.value_info, *graph.output)))
    return ImageSizes(known, _pixels(map(declared_shape, proto.graph.input)))


def image_size(tensor: Tensor) -> Size | None:
    """Return height and width of images (batch, channels, height, width); None if they are not declared."""
    return _size(tensor.shape)


def _known(values: Iterable[onnx.ValueInfoProto]) -> Iterator[tuple[str, Size]]:
    for value in values:
        size = _size(declared_shape(value))
        if size is not None:
            yield value.name, size


def _size(shape: Shape | None) -> Size | None:
    if shape is None or len(shape) != 4:
        return None
    height, width = shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _pixels(shapes: Iterable[Shape | None]) -> int | None:
    """Return the pixels of the first image of known size; images are (batch, 3, h, w) or (batch, h, w, 3)."""
    images = (shape[1:] for shape in shapes if shape is not None and len(shape) == 4)
    sizes = ([length for length in image if isinstance(length, int)] for image in images)
    return next((math.prod(known) // 3 for known in sizes if len(known) == 3), None)
