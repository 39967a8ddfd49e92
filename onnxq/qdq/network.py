"""Lookups in a graph that the rules of node selection share."""

from collections.abc import Collection, Sequence, Set

from onnxq.facts import DecodeBoundary
from onnxq.ir import (
    LAYERS,
    MOVES_VALUES,
    Constant,
    Model,
    Node,
    Tensor,
    consumers,
    downstream,
    feeds_only_silu,
    is_pointwise,
    is_scaling,
    is_silu,
    producer,
)
from onnxq.targets import Role, Target
from onnxq.targets.sizes import ImageSizes

_ALL_OPERANDS = frozenset({"Add", "Sub", "Mul", "Div", "Concat"})
"""Operators whose inputs are all data; in others the data comes first, then weights or settings."""


_SCORES = frozenset({"Sigmoid", "Softmax"})
"""Operators whose values are scores, from 0 to 1."""

_SELECTS_VALUES = MOVES_VALUES | {"GatherElements", "GatherND", "ReduceMax", "TopK"}
"""Operators whose outputs hold some values of their first input."""


def operands(node: Node) -> list[Tensor]:
    """Return the data inputs of a node, without weights, bias and settings."""
    return list(node.inputs) if node.op in _ALL_OPERANDS else list(node.inputs[:1])


class Network:
    """Lookups in a graph that the rules share.

    Args:
        model: its nodes are in topological order.
        boundary: where the network ends.
        target: its rules.
        sizes: of the images in the graph.

    Attributes:
        nodes: of the graph.
        target: as given.
        outputs: names of the outputs of the model.
        last: names of the last layers of every branch.
        decode: names of the nodes downstream of these.
        inner: names of the other nodes.
        sizes: as given.
        stem: names of the Convs that the target keeps float near the image.
        float_last: names of the last Convs that the target keeps float because they take little time.
        downstream_of_layers: names of the nodes that depend on a layer.
    """

    def __init__(self, model: Model, boundary: DecodeBoundary, target: Target, sizes: ImageSizes) -> None:
        self.nodes: Sequence[Node] = model.graph.nodes
        self.target = target
        self.outputs = model.output_names
        self.last = frozenset(boundary.last)
        self.decode = frozenset(boundary.tail)
        self.inner = boundary.body - self.last
        self.sizes = sizes
        self.stem = target.stem.convs(self.nodes, sizes, self.inner) if target.stem else set[str]()
        self.float_last = target.float_last.convs(self.nodes, self.last, sizes) if target.float_last else set[str]()
        self.downstream_of_layers = downstream(self.nodes, lambda node: node.op in LAYERS)
        self._depth = _depth(self.nodes)

    def is_layer(self, node: Node) -> bool:
        """Return whether a node has weights that the target can quantize."""
        rule = self.target.rules.get(node.op)
        return rule is not None and rule.role is Role.LAYER

    def runs_as_matmul(self, node: Node, integer: Set[str]) -> bool:
        """Return whether a 1x1 Conv is lowered to a product of integers with a float output.

        It is if no consumer is among the `integer` nodes, or only a SiLU deep in the network or before a last layer.
        """
        if not self.target.lowers_pointwise or not is_pointwise(node):
            return False
        y = node.outputs[0]
        if all(reader.name not in integer for reader in consumers(y)):
            return True
        return feeds_only_silu(y) and (self._is_coarse(y) or self._leads_to_a_last_layer(y))

    def _is_coarse(self, tensor: Tensor) -> bool:
        """Return whether a tensor has so few positions that the size of floats costs no time."""
        count, stride = self.sizes.positions(tensor), self.target.float_silu_stride
        if count is None or self.sizes.pixels is None or stride is None:
            return False
        return count <= self.target.float_silu_positions or self.sizes.has_stride(tensor, stride)

    def _leads_to_a_last_layer(self, silu_input: Tensor) -> bool:
        outputs = [t for node in consumers(silu_input) if is_silu(node) for t in node.outputs]
        scaled = [t for output in outputs for node in consumers(output) if is_scaling(node) for t in node.outputs]
        return any(reader.name in self.last for t in (*outputs, *scaled) for reader in consumers(t))

    def fused_activation(self, node: Node) -> Node | None:
        """Return the activation that is fused with this node, so that the Q follows both."""
        rule = self.target.rules.get(node.op)
        following = consumers(node.outputs[0])
        if rule is None or rule.role is Role.CARRIER or len(following) != 1 or node.outputs[0].name in self.outputs:
            return None
        return following[0] if following[0].op in self.target.fused_activations else None

    def fused_with(self, node: Node) -> Node | None:
        """Return the node before an activation that it is fused with."""
        before = producer(node.inputs[0]) if node.op in self.target.fused_activations else None
        return before if before is not None and self.fused_activation(before) is node else None

    def residual_layer(self, add: Node, refused: Collection[str]) -> Node | None:
        """Return the integer layer that is fused with an Add; of two layers the deeper one, which is computed last.

        Args:
            add: an Add of two tensors.
            refused: names of the nodes that stay float.
        """
        one, other = add.inputs
        if isinstance(one, Constant) or isinstance(other, Constant) or one.shape != other.shape or one is other:
            return None
        layers = [layer for t in add.inputs if (layer := self.own_layer(t, refused)) is not None]
        return max(layers, key=lambda layer: self._depth[layer.name], default=None)

    def joins_scores(self, node: Node) -> bool:
        """Return whether a node of the decode is a Concat of scores with other values, such as boxes in px."""
        if node.op != "Concat" or node.name not in self.decode:
            return False
        return len({_holds_scores(t) for t in node.inputs}) == 2

    def own_layer(self, tensor: Tensor, refused: Collection[str]) -> Node | None:
        """Return the integer layer whose only use is this tensor, directly or through its activation; else None."""
        if len(consumers(tensor)) != 1 or tensor.name in self.outputs:
            return None
        source = producer(tensor)
        if source is not None and is_silu(source):
            return self._layer_before(next((t for t in source.inputs if feeds_only_silu(t)), None), refused)
        if source is not None and source.op in self.target.fused_activations:
            before = source.inputs[0]
            return self._layer_before(before, refused) if len(consumers(before)) == 1 else None
        return self._layer_before(tensor, refused)

    def _layer_before(self, tensor: Tensor | None, refused: Collection[str]) -> Node | None:
        source = producer(tensor) if tensor is not None and tensor.name not in self.outputs else None
        rule = self.target.rules.get(source.op) if source is not None else None
        is_layer = rule is not None and rule.role is Role.LAYER
        return source if is_layer and source is not None and source.name not in refused else None


def _holds_scores(tensor: Tensor) -> bool:
    """Return whether the values of a tensor come out of a Sigmoid or a Softmax, moved but not changed."""
    source = producer(tensor)
    while source is not None and source.op in _SELECTS_VALUES:
        source = producer(source.inputs[0]) if source.inputs else None
    return source is not None and source.op in _SCORES


def _depth(nodes: Sequence[Node]) -> dict[str, int]:
    """Return for each node the number of layers on the longest path that ends with it; nodes in topological order."""
    depth: dict[str, int] = {}
    for node in nodes:
        before = [depth.get(p.name, 0) for t in node.inputs for p in t.inputs]
        depth[node.name] = max(before, default=0) + (node.op in LAYERS)
    return depth
