"""Migration of scales: which tensors can have their channels divided, and where."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.facts import Plan
from onnxq.ir import (
    CHANNELWISE_LINEAR,
    Constant,
    Model,
    Node,
    Tensor,
    bias_of,
    constant,
    consumers,
    has_plain_bias,
    is_float,
    producer,
)
from onnxq.numerics.arrays import Float32Array
from onnxq.targets.sizes import ImageSizes

LEAST_SAMPLES = 50
"""Samples below which migration loses more than it gains: with 10 images YOLOv5n loses twice as much, with 100 less."""


@dataclass(frozen=True)
class Migratable:
    """A tensor whose channels can be divided.

    Attributes:
        layers: the layers on integers that read it; their weights can be multiplied.
        sources: the nodes whose constants can be divided instead of the tensor, so that no Mul is needed: a Conv, or a
            Mul by a constant, and Adds of constants behind it; none: a Mul is needed.
    """

    layers: tuple[Node, ...]
    sources: tuple[Node, ...] = ()

    @property
    def channels(self) -> int:
        """Number of channels of the tensor."""
        return _channels(self.layers[0])

    @property
    def is_separate(self) -> bool:
        """Whether no layer adds up channels: each weight of an output is multiplied by one scale."""
        return all(layer.inputs[1].shape[1] == 1 for layer in self.layers)


def migratable(model: Model, plan: Plan) -> dict[str, Migratable]:
    """Return the tensors whose scales can go into the weights that read them, in the order of the graph.

    Each layer on integers that reads such a tensor is a Conv, of any number of groups, with a constant float32 weight
    that no other node reads. Tensors that any other node on integers reads are left out, and so are the inputs of the
    model, and the outputs of nodes on integers unless they can be divided at their source: a Mul would stand between a
    node and its Q.

    Args:
        model: the float model.
        plan: its nodes on integers.
    """
    nodes, outputs = model.nodes, model.output_names
    readers: dict[str, list[Node]] = {}
    for name in plan.layers:
        readers.setdefault(nodes[name].inputs[0].name, []).append(nodes[name])
    found = {}
    for name, layers in readers.items():
        tensor = layers[0].inputs[0]
        source = producer(tensor)
        on_integers = {node.name for node in consumers(tensor)} & plan.integer
        if source is None or not all(_is_plain(layer, outputs) for layer in layers) or len(on_integers) > len(layers):
            continue
        sources = _sources(tensor, layers, outputs)
        if sources or source.name not in plan.integer:
            found[name] = Migratable(tuple(layers), sources)
    return found


@dataclass(frozen=True)
class DividedInput:
    """An input of Convs that a Mul divides by a scale for each channel.

    Attributes:
        tensor: that is divided.
        quotient: what the Convs read.
        node: name of the Mul.
        layers: names of all nodes that read the quotient, in the order of the plan.
        scales: float32 (channels,).
    """

    tensor: str
    quotient: str
    node: str
    layers: tuple[str, ...]
    scales: Float32Array


def divided_inputs(model: Model, plan: Plan, scales: Mapping[str, Float32Array]) -> list[DividedInput]:
    """Return the tensors that a Mul divides and whose scales can still be replaced.

    Only layers on integers read the quotient, and it shares its range with no other tensor. Tensors that were divided
    at their source are left out, and so are those that only Convs read which add up no channels: these lose nothing by
    scales.

    Args:
        model: after `migrate-scales`.
        plan: of the model.
        scales: tensor -> what it was divided by, at its source or by a Mul.
    """
    made_by = {node.outputs[0].name: node for node in model.graph.nodes}
    alone = {points[0].tensor for points in plan.groups().values() if len(points) == 1}
    found = []
    for tensor, divisors in scales.items():
        node = made_by.get(divided_name(tensor))
        if node is None or node.outputs[0].name not in alone or node.outputs[0].name in model.output_names:
            continue
        readers = {reader.name: reader for reader in consumers(node.outputs[0])}
        layers = tuple(name for name in plan.layers if name in readers)
        if len(layers) == len(readers) and not Migratable(tuple(readers.values())).is_separate:
            found.append(DividedInput(tensor, node.outputs[0].name, node.name, layers, divisors))
    return found


def divide_otherwise(model: Model, scales: Mapping[str, Float32Array]) -> None:
    """Replace the scales by which Muls divide, and multiply the weights behind; the float function stays the same.

    Args:
        model: edited in place.
        scales: tensor that a Mul divides -> the new scales, float32 (channels,).
    """
    made_by = {node.outputs[0].name: node for node in model.graph.nodes}
    for tensor, divisors in scales.items():
        node = made_by[divided_name(tensor)]
        factors, old = np.reciprocal(divisors), np.asarray(constant(node.inputs[1]), np.float32)
        if np.array_equal(factors, old.reshape(-1)):
            continue
        for layer in consumers(node.outputs[0]):
            weight = multiplied_weight(layer, divisors * old.reshape(-1))
            layer.inputs[1] = Constant(layer.inputs[1].name, weight)
        node.inputs[1] = Constant(node.inputs[1].name, factors.reshape(old.shape))


def multiplied_weight(layer: Node, scales: Float32Array) -> Float32Array:
    """Return the weight of a Conv, of any number of groups, multiplied by scales of its input channels.

    Args:
        layer: with a constant weight.
        scales: float32 (channels,).
    """
    weight, groups = np.asarray(constant(layer.inputs[1]), np.float32), layer.attrs.get("group", 1)
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    factors = scales.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return np.asarray((by_group * factors).reshape(weight.shape), np.float32)


def is_cheap(found: Migratable, stride: int | None, sizes: ImageSizes) -> bool:
    """Return whether a tensor has a stride of at least this, so that a Mul costs next to no time.

    Args:
        found: the tensor.
        stride: `Target.scaling_stride`; at 1, sizes need not be known.
        sizes: of the images in the graph.
    """
    if stride is None or stride <= 1:
        return stride is not None
    return sizes.has_stride(found.layers[0].inputs[0], stride)


def divided_name(tensor: str) -> str:
    """Return the name of a tensor whose channels a Mul has divided."""
    return f"{tensor}_migrated"


def _channels(layer: Node) -> int:
    return int(layer.inputs[1].shape[1] * layer.attrs.get("group", 1))


def _is_plain(layer: Node, outputs: frozenset[str]) -> bool:
    return layer.op == "Conv" and _is_own(layer.inputs[1], outputs)


def _is_own(tensor: Tensor, outputs: frozenset[str]) -> bool:
    """Return whether a tensor is a float constant that one node reads and nothing else."""
    is_read_once = len(tensor.outputs) == 1 and tensor.name not in outputs
    return isinstance(tensor, Constant) and is_read_once and is_float(tensor)


def _sources(tensor: Tensor, layers: list[Node], outputs: frozenset[str]) -> tuple[Node, ...]:
    """Return the nodes whose constants scale a tensor and nothing else, the last one first; none if there are none."""
    rank, channels = len(layers[0].inputs[1].shape), _channels(layers[0])
    found: list[Node] = []
    for node in _chain(tensor, layers, outputs):
        if node.op in CHANNELWISE_LINEAR and constant(node.inputs[0]) is None:
            continue
        if node.op == "Conv":
            is_scaled = _is_own(node.inputs[1], outputs) and has_plain_bias(node)
            bias = bias_of(node)
            return (*found, node) if is_scaled and (bias is None or is_float(bias)) else ()
        factors = [t for t in node.inputs if constant(t) is not None]
        if node.op not in ("Mul", "Add") or len(factors) != 1 or not _is_divisible(factors[0], rank, channels):
            return ()
        found.append(node)
        if node.op == "Mul":
            return tuple(found)
        if not all(t is factors[0] or _has_channels(t, rank, channels) for t in node.inputs):
            return ()
    return ()


def _is_divisible(factor: Tensor, rank: int, channels: int) -> bool:
    """Return whether a constant can be divided along the channels without growing beyond a value for each of them."""
    shape = np.broadcast_shapes(factor.shape, (channels, *[1] * (rank - 2)))
    return is_float(factor) and 0 < math.prod(shape) <= max(math.prod(factor.shape), channels)


def _has_channels(tensor: Tensor, rank: int, channels: int) -> bool:
    """Return whether an Add does not broadcast a tensor along its channels, or to more dimensions."""
    return tensor.shape is not None and len(tensor.shape) == rank and tensor.shape[1] == channels


def _chain(tensor: Tensor, readers: list[Node], outputs: frozenset[str]) -> Iterator[Node]:
    """Yield the nodes before a tensor for as long as nothing else reads what they make."""
    node = producer(tensor)
    while (
        node is not None
        and tensor.name not in outputs
        and {id(each) for each in consumers(tensor)} == set(map(id, readers))
    ):
        yield node
        data = [t for t in node.inputs if t.name and constant(t) is None]
        if len(data) != 1 or len(node.outputs) != 1:
            return
        tensor, readers = data[0], [node]
        node = producer(tensor)
