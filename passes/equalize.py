"""equalize: brings the channels of activations to similar magnitudes without changing the function."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.ir import (
    CHANNELWISE_LINEAR,
    CONVS,
    Builder,
    Constant,
    Model,
    Node,
    Tensor,
    bias_of,
    constant,
    has_plain_bias,
    is_float,
    set_bias,
)
from onnxq.numerics.arrays import Float32Array, Float64Array, Int64Array
from onnxq.pipeline import Facts, Rewrite

Ids = Int64Array
"""Numbers of channels; all channels of all tensors are numbered together."""

Mask = NDArray[np.bool_]
"""A truth value for each channel."""

_FIXED = 0
"""A channel that stands for all channels whose scale must stay 1."""

_ROUNDS = 100
"""Greatest number of iterations."""

_CONVERGED = 1e-3
"""The iteration ends when no channel moves further than this relative to its layer, in octaves."""

_LEAST_SPREAD = 0.7
"""Least spread of the scales of a layer's channels that is worth an edit, root mean square in octaves."""

_SCALE_STEPS = 16
"""Scales have a mantissa of four bits, so that rounding errors of logarithms change no weight."""


class Equalize(Rewrite):
    """Divides each output channel of a layer by a scale, and multiplies the weights that read it by the same scale.

    Cross-layer equalization (Nagel et al., arXiv 1906.04721, section 4.1): all channels of an activation share one
    scale, so channels of small values lose precision beside channels of large ones. Layers are Conv and ConvTranspose
    with constant float32 weights, with any number of groups. Between two layers there may be

    - nothing, Relu, LeakyRelu, PRelu with constant slopes: f(s x) = s f(x) for s > 0
    - MaxPool, AveragePool, and Resize that does not mix channels
    - Concat, Split and Slice along the channels (Split and Slice also along other axes)
    - Add of two tensors, whose channels then share their scales

    A channel keeps its scale if anything else reads it: another operator, an output of the model, a subgraph, or a
    layer that shares its weights. The model computes the same function, apart from float32 rounding.

    The scales minimize the sum of squares of all weights and biases, a convex function of their logarithms. At the
    minimum the weights that produce a channel and the weights that read it have equal norms; the paper compares ranges,
    but norms predict the activation better. The mean magnitude of a layer's output is kept, because weights say too
    little about the outputs of different layers. Layers whose channels are nearly equal stay: in trials, equalizing
    them lost accuracy about as often as it gained. The pass needs no data, so saved statistics fit the graph
    regardless of their data.
    """

    name = "equalize"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of scales that are not 1."""
        edits = 0
        # Mostly once; again if the first edits move a layer slightly over the least spread.
        while found := _equalize(model):
            edits += found
        return edits


def _equalize(model: Model) -> int:
    channels = _Channels(model)
    scales = _scales(channels.layers, channels.labels)
    builder = Builder(model)
    for layer in channels.layers:
        _rescale(layer, scales, builder)
    return int(np.count_nonzero((scales != 1) & (channels.labels == np.arange(scales.size))))


@dataclass(frozen=True)
class _Layer:
    """A layer with its input channels, int64 (inputs,), and its output channels, int64 (outputs,)."""

    node: Node
    inputs: Ids
    outputs: Ids

    @property
    def weight(self) -> Float32Array:
        """The weight, float32 (groups, outputs of a group, inputs of a group, kernel)."""
        values, groups = np.asarray(constant(self.node.inputs[1]), np.float32), self.groups
        if self.node.op == "Conv":
            return values.reshape(groups, self.outputs.size // groups, self.inputs.size // groups, -1)
        return values.reshape(groups, self.inputs.size // groups, self.outputs.size // groups, -1).swapaxes(1, 2)

    @property
    def groups(self) -> int:
        return int(self.node.attrs.get("group", 1))

    @property
    def bias(self) -> Float32Array:
        """The bias, float32 (outputs,); zeros if there is none."""
        bias = bias_of(self.node)
        return np.zeros(self.outputs.size, np.float32) if bias is None else np.asarray(constant(bias), np.float32)

    def spread(self, values: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return the values of its output channels and its input channels, in shapes that broadcast with the weight."""
        groups = self.groups
        return values[self.outputs].reshape(groups, -1, 1), values[self.inputs].reshape(groups, 1, -1)


class _Channels:
    """Numbers the channels of all tensors, and finds those that must share a scale.

    Attributes:
        layers: the layers whose weights may be edited.
        labels: channel -> the least channel that it shares its scale with, int64 (channels,).
    """

    def __init__(self, model: Model) -> None:
        self.layers: list[_Layer] = []
        self._outputs = model.output_names
        self._of: dict[str, Ids] = {}
        self._count = 1
        self._tied: list[tuple[Ids, Ids]] = []
        for node in model.graph.nodes:
            self._visit(node)
        own = {id(node) for node in model.graph.nodes}
        for tensor in (t for node in model.graph.nodes for t in node.outputs if t.name in self._of):
            if tensor.name in self._outputs or any(id(reader) not in own for reader in tensor.outputs):
                self._fix(tensor)
        self.labels = _least_of_each(self._count, self._tied)

    def _visit(self, node: Node) -> None:
        if _is_layer(node, self._outputs):
            self._add_layer(node)
            return
        passed = self._carried(node)
        if passed is None:
            for tensor in node.inputs:
                self._fix(tensor)
        else:
            self._of.update({t.name: ids for t, ids in zip(node.outputs, passed, strict=True)})

    def _add_layer(self, node: Node) -> None:
        weight, group = node.inputs[1].shape, node.attrs.get("group", 1)
        inputs, outputs = (weight[1] * group, weight[0]) if node.op == "Conv" else (weight[0], weight[1] * group)
        read = self._of.get(node.inputs[0].name, np.full(inputs, _FIXED))
        own = np.arange(self._count, self._count + outputs)
        self._count += outputs
        self._of[node.outputs[0].name] = own
        self.layers.append(_Layer(node, read, own))

    def _fix(self, tensor: Tensor) -> None:
        self._tie(self._of.get(tensor.name, np.full(1, _FIXED)), np.full(1, _FIXED))

    def _tie(self, some: Ids, others: Ids) -> None:
        self._tied.append((some, np.broadcast_to(others, some.shape)))

    def _carried(self, node: Node) -> list[Ids] | None:
        """Return the channels of each output of a node that passes scales through; None for any other node."""
        if node.op == "Concat":
            return self._joined(node)
        if node.op == "Add":
            return self._added(node)
        x = self._of.get(node.inputs[0].name) if node.inputs else None
        if x is None or not all(isinstance(t, Constant) or not t.name for t in node.inputs[1:]):
            return None
        if node.op == "Split":
            return _split(node, x)
        if node.op == "Slice":
            return _sliced(node, x)
        if len(node.outputs) == 1 and (
            node.op in CHANNELWISE_LINEAR or (node.op == "Resize" and _keeps_channels(node, x))
        ):
            return [x]
        return None

    def _joined(self, concat: Node) -> list[Ids] | None:
        parts = [self._of.get(t.name, _fixed(t)) for t in concat.inputs]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or _axis(concat.attrs["axis"], concat.outputs[0]) != 1:
            return None
        return [np.concatenate(known)]

    def _added(self, add: Node) -> list[Ids] | None:
        one, other = (self._of.get(t.name) for t in add.inputs)
        shapes = [t.shape for t in add.inputs]
        if one is None or other is None or None in shapes or len(shapes[0]) != len(shapes[1]) or one.size != other.size:
            return None
        self._tie(one, other)
        return [one]


def _is_layer(node: Node, outputs: frozenset[str]) -> bool:
    """Return whether a node is a layer with constant float32 weights of its own, which may be edited."""
    if node.op not in CONVS or not isinstance(node.inputs[1], Constant) or not has_plain_bias(node):
        return False
    if any(t.name in outputs for t in node.inputs[1:]):
        return False
    return len(node.inputs[1].outputs) == 1 and all(is_float(t) for t in node.inputs[1:] if t.name)


def _fixed(tensor: Tensor) -> Ids | None:
    """Return channels whose scales must stay 1, as many as the tensor has; None if their number is not known."""
    count = tensor.shape[1] if tensor.shape is not None and len(tensor.shape) > 1 else None
    return np.full(count, _FIXED) if isinstance(count, int) else None


def _axis(axis: int, tensor: Tensor) -> int | None:
    """Return an axis counted from the front; None if that needs a shape that is not known."""
    if axis >= 0:
        return axis
    return axis + len(tensor.shape) if tensor.shape is not None else None


def _split(node: Node, x: Ids) -> list[Ids] | None:
    axis = _axis(node.attrs.get("axis", 0), node.inputs[0])
    if axis is None:
        return None
    if axis != 1:
        return [x] * len(node.outputs)
    sizes = _numbers(node.inputs[1]) if len(node.inputs) > 1 else []
    if not sizes and x.size % len(node.outputs) == 0:
        sizes = [x.size // len(node.outputs)] * len(node.outputs)
    if not sizes:
        return None
    return list(np.split(x, np.cumsum(sizes)[:-1]))


def _numbers(tensor: Tensor) -> list[int]:
    """Return the values of a constant; none if the input is absent."""
    values = constant(tensor)
    return [] if values is None else values.ravel().tolist()


def _sliced(node: Node, x: Ids) -> list[Ids] | None:
    given = [_numbers(tensor) for tensor in node.inputs[1:]]
    starts, ends = given[0], given[1]
    axes = given[2] if len(given) > 2 and given[2] else list(range(len(starts)))
    steps = given[3] if len(given) > 3 and given[3] else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = _axis(axis, node.inputs[0])
        if place is None:
            return None
        if place == 1:
            x = x[slice(start, end, step)]
    return [x]


def _keeps_channels(resize: Node, x: Ids) -> bool:
    """Return whether a Resize, which is linear in its values, neither mixes channels nor adds values."""
    if resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize" or "axes" in resize.attrs:
        return False
    scales = constant(resize.inputs[2]) if len(resize.inputs) > 2 else None
    if scales is not None and scales.size:
        return bool(scales[1] == 1)
    sizes = constant(resize.inputs[3]) if len(resize.inputs) > 3 else None
    kept = resize.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    return kept and sizes is not None and int(sizes[1]) == x.size


def _least_of_each(count: int, ties: Sequence[tuple[Ids, Ids]]) -> Ids:
    """Return for each number below `count` the least of all numbers that it is tied to, directly or not."""
    least = np.arange(count)
    some = np.concatenate([np.zeros(0, np.int64), *(one for one, _ in ties)])
    others = np.concatenate([np.zeros(0, np.int64), *(other for _, other in ties)])
    while True:
        before = least.copy()
        np.minimum.at(least, least[some], least[others])
        np.minimum.at(least, least[others], least[some])
        least = least[least]
        if np.array_equal(least, before):
            return least


class _Groups:
    """Groups of free channels: those of one layer's output, or of layers whose outputs are added.

    Args:
        layers: their layers.
        free: channel -> whether its scale may change, bool (channels,).
        labels: channel -> the channel that it shares its scale with, int64 (channels,).
    """

    def __init__(self, layers: Sequence[_Layer], free: Mask, labels: Ids) -> None:
        ties = [(own[1:], own[:-1]) for layer in layers if (own := labels[layer.outputs][free[layer.outputs]]).size]
        self._group = _least_of_each(labels.size, ties)[labels]
        self._free = free
        self._each = np.flatnonzero(free & (labels == np.arange(labels.size)))

    def mean(self, values: Float64Array) -> Float64Array:
        """Return for each channel the mean of the values of its group, float64 (channels,)."""
        groups = self._group[self._each]
        count = np.bincount(groups, minlength=values.size)
        return (np.bincount(groups, values[self._each], values.size) / np.maximum(count, 1))[self._group]

    def centered(self, values: Float64Array) -> Float64Array:
        """Return the values less the mean of their group, 0 for channels that are not free, float64 (channels,)."""
        return np.where(self._free, values - self.mean(values), 0)


def _scales(layers: Sequence[_Layer], labels: Ids) -> Float64Array:
    """Return the scale that each channel is to be divided by, float64 (channels,)."""
    free = labels != labels[_FIXED]
    layers = [layer for layer in layers if free[layer.outputs].any() or free[layer.inputs].any()]
    squares = [_squares(layer) for layer in layers]
    logs = np.zeros(labels.size)
    # A channel without weights on either side has no norm to equalize.
    before, after = _norms(layers, squares, labels, logs)
    free &= (before > 0) & (after > 0)
    groups = _Groups(layers, free, labels)
    for _ in range(_ROUNDS if free.any() else 0):
        before, after = (np.where(free, norm, 1) for norm in _norms(layers, squares, labels, logs))
        # The minimum of a function that lies above the sum and touches it here: half of the way to equal norms.
        step = np.log2(before / after) / 8
        logs += step
        if np.abs(groups.centered(step)).max() < _CONVERGED:
            break
    logs = groups.centered(logs)
    mantissas, exponents = np.frexp(np.exp2(logs))
    rounded = np.ldexp(np.rint(mantissas * _SCALE_STEPS) / _SCALE_STEPS, exponents)
    return np.where(groups.mean(np.square(logs)) >= _LEAST_SPREAD**2, rounded, 1)


def _squares(layer: _Layer) -> tuple[Float64Array, Float64Array]:
    """Return the squares of the weight, summed over the kernel, and those of the bias."""
    return np.square(layer.weight, dtype=np.float64).sum(axis=3), np.square(layer.bias, dtype=np.float64)


def _norms(
    layers: Sequence[_Layer], squares: Sequence[tuple[Float64Array, Float64Array]], labels: Ids, logs: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Return for each channel the sums of squares of the weights and biases on either side of it."""
    before, after = np.zeros(labels.size), np.zeros(labels.size)
    for layer, (weight, bias) in zip(layers, squares, strict=True):
        divisor, factor = layer.spread(logs)
        scaled = weight * np.exp2(2 * (factor - divisor))
        np.add.at(before, labels[layer.outputs], scaled.sum(axis=2).ravel() + bias * np.exp2(-2 * logs[layer.outputs]))
        np.add.at(after, labels[layer.inputs], scaled.sum(axis=1).ravel())
    return before[labels], after[labels]


def _rescale(layer: _Layer, scales: Float64Array, builder: Builder) -> None:
    """Multiply the weights by the scales of the input channels, and divide them by those of the output channels."""
    divisor, factor = layer.spread(scales)
    if np.any(factor != divisor):
        weight = (layer.weight * (factor / divisor)[..., None]).astype(np.float32)
        if layer.node.op == "ConvTranspose":
            weight = weight.swapaxes(1, 2)
        tensor = layer.node.inputs[1]
        layer.node.inputs[1] = Constant(tensor.name, np.ascontiguousarray(weight).reshape(tensor.shape))
    bias = bias_of(layer.node)
    if bias is not None and np.any(scales[layer.outputs] != 1):
        name = bias.name if len(bias.outputs) == 1 else builder.name(bias.name)
        set_bias(layer.node, Constant(name, (layer.bias / scales[layer.outputs]).astype(np.float32)))
