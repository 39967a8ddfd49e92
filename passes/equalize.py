"""equalize: channels of small values and those of large ones are brought to one size, the function unchanged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.ir import (
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
from onnxq.pipeline import Facts, Rewrite

Array = NDArray[np.float64]

Ids = NDArray[np.int64]

Mask = NDArray[np.bool_]

_PER_CHANNEL = frozenset({"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool"})
"""Operators that give channel c of s x, for s > 0, as s times what they give of channel c of x."""

_FIXED = 0
"""The channel, in place of all those, whose scale has to stay 1."""

_ROUNDS = 100

_CONVERGED = 1e-3
"""Octaves that no channel still moves by, against the others that its layer makes."""

_LEAST_SPREAD = 0.7
"""Octaves, root mean square, that the scales of a layer's channels must lie apart to be worth an edit."""

_SCALE_STEPS = 16
"""Scales have a mantissa of four bits, so that rounding errors of logarithms change no weight."""


class Equalize(Rewrite):
    """Divides each channel that a layer makes by a scale, and multiplies the weights that read it by the same.

    Cross-layer equalization (Nagel et al., arXiv 1906.04721, section 4.1): activations share one grid among all of
    their channels, so that channels of small values drown beside those of large ones. Layers are Conv and
    ConvTranspose with constant float32 weights, in groups or not. The values may pass from one to the next through

    - nothing, Relu, LeakyRelu, PRelu with constant slopes: f(s x) = s f(x) for s > 0
    - MaxPool, AveragePool, and Resize that leaves the channels alone
    - Concat, Split and Slice along the channels (Split and Slice also along others)
    - Add of two tensors, whose channels then share their scales

    Whatever else reads a channel keeps it at its scale, and so do outputs of the model, subgraphs, and layers that
    share weights. The model computes the same but for the rounding of float32.

    The scales are those with the least sum of the squares of all weights and biases, a convex function of their
    logarithms. There the weights that make a channel have the same norm as those that read it; the paper takes ranges,
    but norms tell more of the activation. What a layer makes keeps its size on average over its channels, as weights
    tell too little of how large the outputs of different layers are, and layers whose channels are nearly equal are
    left alone: there equalizing was measured to lose about as often as it gains. No data is needed, so that statistics
    that were kept fit the graph whatever they were made from.
    """

    name = "equalize"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of scales that are not 1."""
        edits = 0
        # Mostly once; again where the first edits bring a layer over the least spread that was a hair below it.
        while found := _equalize(model):
            edits += found
        return edits


def _equalize(model: Model) -> int:
    channels = _Channels(model)
    scales = _scales(channels.layers, channels.labels)
    fresh = Builder(model)
    for layer in channels.layers:
        _rescale(layer, scales, fresh)
    return int(np.count_nonzero((scales != 1) & (channels.labels == np.arange(scales.size))))


@dataclass(frozen=True)
class _Layer:
    """A layer and the channels that it reads and makes, int64 (inputs,) and (outputs,)."""

    node: Node
    read: Ids
    made: Ids

    @property
    def weight(self) -> NDArray[np.float32]:
        """Its weight as float32 (groups, outputs of a group, inputs of a group, kernel)."""
        values, groups = np.asarray(constant(self.node.inputs[1]), np.float32), self.groups
        if self.node.op == "Conv":
            return values.reshape(groups, self.made.size // groups, self.read.size // groups, -1)
        return values.reshape(groups, self.read.size // groups, self.made.size // groups, -1).swapaxes(1, 2)

    @property
    def groups(self) -> int:
        return int(self.node.attrs.get("group", 1))

    @property
    def bias(self) -> NDArray[np.float32]:
        """Its bias, float32 (outputs,); zeros where it has none."""
        bias = bias_of(self.node)
        return np.zeros(self.made.size, np.float32) if bias is None else np.asarray(constant(bias), np.float32)

    def spread(self, values: Array) -> tuple[Array, Array]:
        """Values of all channels as those of its outputs and of its inputs, to go with the weight but the kernel."""
        groups = self.groups
        return values[self.made].reshape(groups, -1, 1), values[self.read].reshape(groups, 1, -1)


class _Channels:
    """Which channels of which tensors have one scale.

    Attributes:
        layers: those whose weights may be edited.
        labels: channel -> the channel that it shares its scale with, int64 (channels,).
    """

    def __init__(self, model: Model) -> None:
        self.layers: list[_Layer] = []
        self._of: dict[str, Ids] = {}
        self._count = 1
        self._tied: list[tuple[Ids, Ids]] = []
        for node in model.graph.nodes:
            self._visit(node)
        own = {id(node) for node in model.graph.nodes}
        for tensor in (t for node in model.graph.nodes for t in node.outputs if t.name in self._of):
            if tensor.name in model.output_names or any(id(reader) not in own for reader in tensor.outputs):
                self._fix(tensor)
        self.labels = _least_of_each(self._count, self._tied)

    def _visit(self, node: Node) -> None:
        if _is_layer(node):
            self._add_layer(node)
            return
        made = self._carried(node)
        if made is None:
            for tensor in node.inputs:
                self._fix(tensor)
        else:
            self._of.update({t.name: ids for t, ids in zip(node.outputs, made, strict=True)})

    def _add_layer(self, node: Node) -> None:
        weight, group = node.inputs[1].shape, node.attrs.get("group", 1)
        inputs, outputs = (weight[1] * group, weight[0]) if node.op == "Conv" else (weight[0], weight[1] * group)
        read = self._of.get(node.inputs[0].name, np.full(inputs, _FIXED))
        made = np.arange(self._count, self._count + outputs)
        self._count += outputs
        self._of[node.outputs[0].name] = made
        self.layers.append(_Layer(node, read, made))

    def _fix(self, tensor: Tensor) -> None:
        self._tie(self._of.get(tensor.name, np.full(1, _FIXED)), np.full(1, _FIXED))

    def _tie(self, some: Ids, others: Ids) -> None:
        self._tied.append((some, np.broadcast_to(others, some.shape)))

    def _carried(self, node: Node) -> list[Ids] | None:
        """The channels of each output of a node that leaves their scales alone; None for any other node."""
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
        if len(node.outputs) == 1 and (node.op in _PER_CHANNEL or (node.op == "Resize" and _keeps_channels(node, x))):
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


def _is_layer(node: Node) -> bool:
    """Whether its weights may be edited: constant float32 ones of its own."""
    if node.op not in CONVS or not isinstance(node.inputs[1], Constant) or not has_plain_bias(node):
        return False
    return len(node.inputs[1].outputs) == 1 and all(is_float(t) for t in node.inputs[1:] if t.name)


def _fixed(tensor: Tensor) -> Ids | None:
    """The channels of a tensor whose scales have to stay 1; None where their number is not known."""
    count = tensor.shape[1] if tensor.shape is not None and len(tensor.shape) > 1 else None
    return np.full(count, _FIXED) if isinstance(count, int) else None


def _axis(axis: int, tensor: Tensor) -> int | None:
    """An axis counted from the front; None where that needs a shape which is not known."""
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
    """The values of a constant; none of an input that is left out."""
    values = constant(tensor)
    return [] if values is None else values.ravel().tolist()


def _sliced(node: Node, x: Ids) -> list[Ids] | None:
    starts, ends, *others = map(_numbers, node.inputs[1:])
    axes, steps = (*others, [], [])[:2]
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = _axis(axis, node.inputs[0])
        if place is None:
            return None
        if place == 1:
            x = x[slice(start, end, step)]
    return [x]


def _keeps_channels(resize: Node, x: Ids) -> bool:
    """Whether a Resize, which is linear in its values, mixes none of different channels and adds none of its own."""
    if resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize" or "axes" in resize.attrs:
        return False
    scales = constant(resize.inputs[2]) if len(resize.inputs) > 2 else None
    if scales is not None and scales.size:
        return bool(scales[1] == 1)
    sizes = constant(resize.inputs[3]) if len(resize.inputs) > 3 else None
    kept = resize.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    return kept and sizes is not None and int(sizes[1]) == x.size


def _least_of_each(count: int, ties: Sequence[tuple[Ids, Ids]]) -> Ids:
    """Number -> the least of all the numbers below `count` that it is tied to, directly or not."""
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


class _Together:
    """The free channels that are made together: by one layer, or by layers whose outputs are added.

    Args:
        layers: that make them.
        free: channel -> whether its scale is open, bool (channels,).
        labels: channel -> the channel that it shares its scale with, int64 (channels,).
    """

    def __init__(self, layers: Sequence[_Layer], free: Mask, labels: Ids) -> None:
        ties = [(made[1:], made[:-1]) for layer in layers if (made := labels[layer.made][free[layer.made]]).size]
        self._group = _least_of_each(labels.size, ties)[labels]
        self._free = free
        self._each = np.flatnonzero(free & (labels == np.arange(labels.size)))

    def mean(self, values: Array) -> Array:
        """Channel -> mean of the values of the channels that are made together with it, float64 (channels,)."""
        groups = self._group[self._each]
        count = np.bincount(groups, minlength=values.size)
        return (np.bincount(groups, values[self._each], values.size) / np.maximum(count, 1))[self._group]

    def centred(self, values: Array) -> Array:
        """The values less their mean, and 0 for channels that are not free, float64 (channels,)."""
        return np.where(self._free, values - self.mean(values), 0)


def _scales(layers: Sequence[_Layer], labels: Ids) -> Array:
    """Channel -> what it is to be divided by, float64 (channels,)."""
    free = labels != labels[_FIXED]
    layers = [layer for layer in layers if free[layer.made].any() or free[layer.read].any()]
    squares = [_squares(layer) for layer in layers]
    logs = np.zeros(labels.size)
    # What nothing makes or nothing reads has no size to bring to another.
    made, read = _norms(layers, squares, labels, logs)
    free &= (made > 0) & (read > 0)
    together = _Together(layers, free, labels)
    for _ in range(_ROUNDS if free.any() else 0):
        made, read = (np.where(free, norm, 1) for norm in _norms(layers, squares, labels, logs))
        # The least of a function that lies above the sum and touches it here: half of the way to equal norms.
        step = np.log2(made / read) / 8
        logs += step
        if np.abs(together.centred(step)).max() < _CONVERGED:
            break
    logs = together.centred(logs)
    mantissas, exponents = np.frexp(np.exp2(logs))
    rounded = np.ldexp(np.rint(mantissas * _SCALE_STEPS) / _SCALE_STEPS, exponents)
    return np.where(together.mean(np.square(logs)) >= _LEAST_SPREAD**2, rounded, 1)


def _squares(layer: _Layer) -> tuple[Array, Array]:
    """Squares of its weight, summed over the kernel, and of its bias."""
    return np.square(layer.weight, dtype=np.float64).sum(axis=3), np.square(layer.bias, dtype=np.float64)


def _norms(
    layers: Sequence[_Layer], squares: Sequence[tuple[Array, Array]], labels: Ids, logs: Array
) -> tuple[Array, Array]:
    """Channel -> sum of the squares of what makes it, and of the weights that read it, float64 (channels,)."""
    made, read = np.zeros(labels.size), np.zeros(labels.size)
    for layer, (weight, bias) in zip(layers, squares, strict=True):
        divisor, factor = layer.spread(logs)
        scaled = weight * np.exp2(2 * (factor - divisor))
        np.add.at(made, labels[layer.made], scaled.sum(axis=2).ravel() + bias * np.exp2(-2 * logs[layer.made]))
        np.add.at(read, labels[layer.read], scaled.sum(axis=1).ravel())
    return made[labels], read[labels]


def _rescale(layer: _Layer, scales: Array, fresh: Builder) -> None:
    """Multiply the weights by the scales of what they read, and divide them by those of what they make."""
    divisor, factor = layer.spread(scales)
    if np.any(factor != divisor):
        weight = (layer.weight * (factor / divisor)[..., None]).astype(np.float32)
        if layer.node.op == "ConvTranspose":
            weight = weight.swapaxes(1, 2)
        tensor = layer.node.inputs[1]
        layer.node.inputs[1] = Constant(tensor.name, np.ascontiguousarray(weight).reshape(tensor.shape))
    bias = bias_of(layer.node)
    if bias is not None and np.any(scales[layer.made] != 1):
        name = bias.name if len(bias.outputs) == 1 else fresh.name(bias.name)
        set_bias(layer.node, Constant(name, (layer.bias / scales[layer.made]).astype(np.float32)))
