"""Which nodes run on integers on a target, and why the others do not."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.facts import DecodeBoundary
from onnxq.ir import (
    LAYERS,
    Constant,
    Model,
    Node,
    Tensor,
    bias_of,
    constant,
    consumers,
    downstream,
    feeds_only_silu,
    is_depthwise,
    is_float,
    is_pointwise,
    is_silu,
    output_axis,
    producer,
)
from onnxq.targets import Role, Rule, Target
from onnxq.targets.stem import FloatStemRule, pixels, positions

_ALL_OPERANDS = frozenset({"Add", "Mul", "Concat"})
"""Operators all of whose inputs are data; the others have theirs first and then weights or settings."""

_FIRST = FloatStemRule(channels=32, products=math.inf)
"""Convs that keep 8 bits as the very first one does: they see the picture in detail, and have hardly any weights."""


def operands(node: Node) -> list[Tensor]:
    """The tensors that the node computes with, without weights, bias and settings."""
    return list(node.inputs) if node.op in _ALL_OPERANDS else list(node.inputs[:1])


class NodeSelection:
    """What runs on integers.

    Args:
        model: its nodes are in topological order.
        head: where the network ends.
        target: its rules.
        excluded: name of a node that is to stay float -> the pattern that says so.

    Attributes:
        target: as given.
        integer: names of the nodes that run on integers.
        layers: those of them that have weights, in graph order.
        skipped: name -> reason, for every other node.
        ends: names of the Convs near the image and of the last layers, which lose most by few bits.
        downstream_of_layers: names of the nodes that depend on a layer.
    """

    def __init__(self, model: Model, head: DecodeBoundary, target: Target, excluded: Mapping[str, str]) -> None:
        self.target = target
        self._outputs = model.output_names
        self.integer: set[str] = set()
        self.layers: list[Node] = []
        self.skipped: dict[str, str] = {}
        self.downstream_of_layers = downstream(model.graph.nodes, lambda node: node.op in LAYERS)
        self._last = frozenset(head.last)
        self._tail = head.tail
        self._image = next((found for t in model.graph.inputs if (found := pixels(t)) is not None), None)
        inner = head.body - self._last
        self._stem = target.stem.convs(model.graph.nodes, self._image, inner) if target.stem else set[str]()
        self.ends = self._last | _FIRST.convs(model.graph.nodes, self._image, inner)
        self._excluded = excluded
        self._depth = _depth(model.graph.nodes)
        for node in reversed(model.graph.nodes):
            reason = self._reason(node)
            if reason:
                self.skipped[node.name] = reason
                continue
            self.integer.add(node.name)
            if self.rule(node).role is Role.LAYER:
                self.layers.append(node)
        self.layers.reverse()
        self._withdraw_behind_floats(model)

    def rule(self, node: Node) -> Rule:
        """The rule of an integer node."""
        return self.target.rules[node.op]

    def has_float_output(self, node: Node) -> bool:
        """Whether no Q stands directly behind this integer node."""
        return not self.rule(node).output or self._runs_as_matmul(node) or self._has_fused_activation(node)

    def _runs_as_matmul(self, node: Node) -> bool:
        """Whether it is a product at every position with a float output: as nobody wants integers, or only a SiLU."""
        if self.target.least_stride is None or not is_pointwise(node):
            return False
        y = node.outputs[0]
        if all(reader.name not in self.integer for reader in consumers(y)):
            return True
        return feeds_only_silu(y) and (self._is_coarse(y) or self._leads_to_a_last_layer(y))

    def _is_coarse(self, tensor: Tensor) -> bool:
        """Whether it has so few positions that it does not matter that floats are four times as long."""
        count = positions(tensor)
        if count is None or self._image is None or self.target.least_stride is None:
            return False
        return count * self.target.least_stride**2 <= self._image

    def _leads_to_a_last_layer(self, silu_input: Tensor) -> bool:
        ends = [t for node in consumers(silu_input) if is_silu(node) for t in node.outputs]
        return any(reader.name in self._last for t in ends for reader in consumers(t))

    def _has_fused_activation(self, node: Node) -> bool:
        """Whether the Q of this node stands behind the activation that follows."""
        activation = self.fused_activation(node)
        return activation is not None and activation.name in self.integer

    def fused_activation(self, node: Node) -> Node | None:
        """The activation that is one with this node, which computes, so that the Q stands behind both."""
        rule = self.target.rules.get(node.op)
        following = consumers(node.outputs[0])
        if rule is None or rule.role is Role.CARRIER or len(following) != 1 or node.outputs[0].name in self._outputs:
            return None
        return following[0] if following[0].op in self.target.fused_activations else None

    def is_fused(self, node: Node) -> bool:
        """Whether this node is an activation that is one with the integer node before it."""
        before = producer(node.inputs[0]) if node.op in self.target.fused_activations else None
        return before is not None and before.name in self.integer and self.fused_activation(before) is node

    def residual_layer(self, add: Node) -> Node | None:
        """The integer layer that is one with an Add: of two the one further behind, as the other is there before."""
        one, other = add.inputs
        if isinstance(one, Constant) or isinstance(other, Constant) or one.shape != other.shape or one is other:
            return None
        layers = [layer for layer in map(self._own_layer, add.inputs) if layer is not None]
        return max(layers, key=lambda layer: self._depth[layer.name], default=None)

    def identity(self, add: Node) -> list[Tensor]:
        """The input of a residual Add that is not its layer's."""
        layer = self.residual_layer(add)
        return [t for t in add.inputs if self._own_layer(t) is not layer]

    def _own_layer(self, tensor: Tensor) -> Node | None:
        """The integer layer that a tensor comes from, directly or through its activation, and that is for it alone."""
        if len(consumers(tensor)) != 1 or tensor.name in self._outputs:
            return None
        made_by = producer(tensor)
        if made_by is not None and is_silu(made_by):
            return self._layer_before(next((t for t in made_by.inputs if feeds_only_silu(t)), None))
        if made_by is not None and made_by.op in self.target.fused_activations:
            return self._layer_before(made_by.inputs[0]) if len(consumers(made_by.inputs[0])) == 1 else None
        return self._layer_before(tensor)

    def _layer_before(self, tensor: Tensor | None) -> Node | None:
        made_by = producer(tensor) if tensor is not None and tensor.name not in self._outputs else None
        rule = self.target.rules.get(made_by.op) if made_by is not None else None
        return made_by if rule is not None and rule.role is Role.LAYER and self._reason(made_by) is None else None

    def _reason(self, node: Node) -> str | None:
        """Why a node stays float, or None; nodes come from the last to the first, but layers in any order."""
        if node.name in self._tail:
            return self._tail[node.name]
        return f"excluded by {self._excluded[node.name]}" if node.name in self._excluded else self._refusal(node)

    def _refusal(self, node: Node) -> str | None:
        """Why a node of the body stays float, or None."""
        rule = self.target.rules.get(node.op)
        if not node.inputs or not all(is_float(t) for t in [*operands(node), *node.outputs]):
            return "does not compute on float32"
        if rule is None:
            return f"{self.target.title} runs {node.op} in float"
        if rule.role is Role.LAYER:
            return self._layer_refusal(node, rule)
        if any(t.name in self._outputs for t in node.outputs):
            return "makes an output of the model"
        if rule.residual and self.residual_layer(node) is None:
            return "fuses with no layer on integers"
        if not self._is_wanted(node, rule) and not self._closes_a_layer(node):
            return "nothing behind it runs on integers"
        return None

    def _is_wanted(self, node: Node, rule: Rule) -> bool:
        """Whether an integer node reads what this node makes, or what the activation makes that is one with it."""
        activation = self.fused_activation(node) if rule.residual else None
        made = activation.outputs if activation is not None else node.outputs
        return any(reader.name in self.integer for t in made for reader in consumers(t))

    def _closes_a_layer(self, node: Node) -> bool:
        """Whether it is the activation of a layer that needs its Q behind the activation."""
        before = producer(node.inputs[0]) if node.op in self.target.fused_activations else None
        rule = self.target.rules.get(before.op) if before is not None else None
        return rule is not None and rule.role is Role.LAYER and self.fused_activation(before) is node

    def _layer_refusal(self, node: Node, rule: Rule) -> str | None:
        weight = constant(node.inputs[1])
        if weight is None:
            return "its weight is not constant"
        if node.op in ("Gemm", "MatMul") and not _is_plain_product(node, weight):
            return "is no plain product with a matrix"
        if node.name in self._last and not (self.target.last_layers or self._runs_as_matmul(node)):
            return "last layer of its branch"
        if is_depthwise(node):
            if self.target.float_depthwise and not self._quantized_anyway(node, rule):
                return "depthwise Conv"
        elif node.name in self._stem:
            return "near the image, with few channels"
        if node.op == "Conv" and self._is_too_narrow(node):
            return "too few channels for integers"
        if rule.output and not self._runs_as_matmul(node) and node.outputs[0].name in self._outputs:
            return "makes an output of the model"
        return None

    def _is_too_narrow(self, conv: Node) -> bool:
        first = conv.name not in self.downstream_of_layers
        return self.target.is_too_narrow(conv.inputs[1].shape, conv.attrs.get("group", 1), first)

    def _quantized_anyway(self, node: Node, rule: Rule) -> bool:
        """Whether a Q would stand directly behind it all the same, so that the target makes an integer layer of it."""
        return rule.output and any(
            reader.op in self.target.fused_activations or self.target.rules[reader.op].role is not Role.ELEMENTWISE
            for reader in consumers(node.outputs[0])
            if reader.op in self.target.rules
        )

    def _withdraw_behind_floats(self, model: Model) -> None:
        """Take back from the integers what should not stand behind floats.

        Where targets fuse the Q behind a layer, what follows a layer with a float output must not start with a Q:
        onnxruntime would quantize a float layer by itself, with one scale for the whole weight.
        """
        for node in model.graph.nodes:
            rule = self.target.rules.get(node.op)
            if node.name not in self.integer or rule is None or rule.role is Role.LAYER:
                continue
            before = [made_by for t in operands(node) if (made_by := producer(t)) is not None]
            if any(self._is_float_layer(made_by) for made_by in before):
                self._withdraw(node, "reads the float output of a layer")
            elif rule.behind_integers and not any(made_by.name in self.integer for made_by in before):
                self._withdraw(node, "reads floats")

    def _withdraw(self, node: Node, reason: str) -> None:
        self.integer.discard(node.name)
        self.skipped[node.name] = reason

    def _is_float_layer(self, node: Node) -> bool:
        rule = self.target.rules.get(node.op)
        if rule is None or rule.role is not Role.LAYER or not rule.output:
            return False
        return node.name not in self.integer or self._runs_as_matmul(node)


def _is_plain_product(node: Node, matrix: NDArray[np.generic]) -> bool:
    """Whether a Gemm or MatMul is x W, and a bias for each output if any."""
    bias = bias_of(node)
    factors = (node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0), node.attrs.get("transA", 0))
    width = matrix.shape[output_axis(node)] if matrix.ndim == 2 else 0
    return matrix.ndim == 2 and factors == (1.0, 1.0, 0) and (bias is None or list(bias.shape or ()) == [width])


def _depth(nodes: Sequence[Node]) -> dict[str, int]:
    """Node -> how many layers lead to it on the longest way, itself included; nodes in topological order."""
    depth: dict[str, int] = {}
    for node in nodes:
        before = [depth.get(p.name, 0) for t in node.inputs for p in t.inputs]
        depth[node.name] = max(before, default=0) + (node.op in LAYERS)
    return depth
