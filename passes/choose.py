"""choose: which tensors get a Q/DQ pair and which nodes stay float, from the rules of the target."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ConfigError, ModelError
from onnxq.facts import Head, Plan, Point, Weight
from onnxq.graph import (
    LAYERS,
    Constant,
    Model,
    Node,
    Tensor,
    behind,
    bias_of,
    constant,
    feeds_silu_only,
    is_depthwise,
    is_float,
    is_pointwise,
    is_silu,
    output_axis,
    producer,
    readers,
)
from onnxq.pipeline import Analysis, Facts
from onnxq.scheme import MAX_BITS, Range, Scheme
from onnxq.stem import Stem, pixels, positions
from onnxq.targets import Role, Rule, Target

_ALL_OPERANDS = frozenset({"Add", "Mul", "Concat"})
"""Operators all of whose inputs are data; the others have theirs first and then weights or settings."""

_FIRST = Stem(channels=32, products=math.inf)
"""Convs that keep 8 bits as the very first one does: they see the picture in detail, and have hardly any weights."""

_SIGMOID = Range(0.0, 255 / 256)
"""What a Sigmoid can give, so that the scale is 1/256 and the zero point 0."""


class Choose(Analysis[Plan]):
    """Plans the quantization.

    Layers with constant weights run on integers unless they are excluded or the target keeps their like float: the
    last ones, depthwise or narrow ones. Other nodes of the body follow by demand, from the outputs backwards: one runs
    on integers where its target has a rule for it and an integer node reads what it makes. Each node that stays float
    gets its reason.

    Args:
        target: its rules.
        weight_bits, act_bits: widths; the first and the last layers keep 8 bits, and so do narrow Convs near the image.
        symmetric: zero points of activations in the middle also where the target does not ask for it.
        exclude: nodes to keep float: a name, `op:TYPE` or `re:REGEX` (searched in the names).
        bits: patterns as in `exclude`, and the widths of the nodes that match: of the weight, and of what is read; of
            several patterns the last one counts.
        half: scales are to be float16 numbers.

    Raises:
        ConfigError: a pattern in `exclude` or `bits` matches no node, or is no regular expression; the target cannot
            have activations of so few bits.
        ModelError: no layer at all can be quantized.
    """

    name = "choose"
    gives = Plan
    needs = (Head,)

    def __init__(
        self,
        target: Target,
        *,
        weight_bits: int = 8,
        act_bits: int = 8,
        symmetric: bool = False,
        exclude: Sequence[str] = (),
        bits: Sequence[tuple[str, tuple[int, int]]] = (),
        half: bool = False,
    ) -> None:
        self._target = target
        self._weights = Scheme(weight_bits, signed=True, symmetric=True, half=half)
        self._activations = replace(target.scheme(act_bits, symmetric), half=half)
        self._exclude = tuple(exclude)
        self._bits = tuple(bits)
        for _, (_, width) in self._bits:
            target.scheme(width)

    def run(self, model: Model, facts: Facts) -> Plan:
        """Find the fact; the graph is not touched."""
        nodes = model.graph.nodes
        widths = {name: w for pattern, w in self._bits for name in matches([pattern], nodes, "--bits")}
        choice = _Choice(model, facts[Head], self._target, matches(self._exclude, nodes), widths)
        if not choice.layers:
            reasons = sorted({choice.skipped[n.name] for n in nodes if n.op == "Conv"})
            raise ModelError(f"no Conv can be quantized: {'; '.join(reasons)}")
        return Plan(
            points=_points(choice, model, self._activations),
            weights=_weights(choice, self._weights),
            integer=frozenset(choice.integer),
            layers=tuple(node.name for node in choice.layers),
            skipped=choice.skipped,
            ops={node.name: node.op for node in nodes},
        )


def matches(patterns: Iterable[str], nodes: Iterable[Node], option: str = "--exclude") -> dict[str, str]:
    """Names of the nodes that match a pattern, each with the pattern.

    Args:
        patterns: a name, `op:TYPE` or `re:REGEX`.
        nodes: of a graph.
        option: what to call it in errors.

    Raises:
        ConfigError: a pattern matches nothing, or is no regular expression.
    """
    nodes = list(nodes)
    found: dict[str, str] = {}
    for pattern in patterns:
        if pattern.startswith("op:"):
            hits = [node.name for node in nodes if node.op == pattern[3:]]
            known = sorted({node.op for node in nodes})
        elif pattern.startswith("re:"):
            try:
                hits = [node.name for node in nodes if re.search(pattern[3:], node.name)]
            except re.error as error:
                raise ConfigError(f"{option} {pattern}: not a regular expression ({error})") from None
            known = []
        else:
            hits = [node.name for node in nodes if node.name == pattern]
            known = [node.name for node in nodes]
        if not hits:
            wanted = pattern.removeprefix("op:")
            near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
            hint = f"; did you mean {', '.join(near)}?" if near else "; -v lists the nodes and why each stays float"
            raise ConfigError(f"{option} {pattern}: no node of the model matches{hint}")
        found.update(dict.fromkeys(hits, pattern))
    return found


def _operands(node: Node) -> list[Tensor]:
    """The tensors that the node computes with, without weights, bias and settings."""
    return list(node.inputs) if node.op in _ALL_OPERANDS else list(node.inputs[:1])


class _Choice:
    """Which nodes run on integers, and why the others do not."""

    def __init__(
        self,
        model: Model,
        head: Head,
        target: Target,
        excluded: Mapping[str, str],
        widths: Mapping[str, tuple[int, int]],
    ) -> None:
        self.target = target
        self.widths = widths
        self.outputs = model.output_names
        self.own = {id(node) for node in model.graph.nodes}
        self.integer: set[str] = set()
        self.layers: list[Node] = []
        self.skipped: dict[str, str] = {}
        self.behind_layers = behind(model.graph.nodes, lambda node: node.op in LAYERS)
        self.last = frozenset(head.last)
        self._tail = head.tail
        self._image = next((found for t in model.graph.inputs if (found := pixels(t)) is not None), None)
        inner = head.body - self.last
        self.stem = target.stem.convs(model.graph.nodes, self._image, inner) if target.stem else set[str]()
        self.ends = self.last | _FIRST.convs(model.graph.nodes, self._image, inner)
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
        if all(reader.name not in self.integer for reader in readers(y)):
            return True
        return feeds_silu_only(y) and (self._is_coarse(y) or self._leads_to_a_last_layer(y))

    def _is_coarse(self, tensor: Tensor) -> bool:
        """Whether it has so few positions that it does not matter that floats are four times as long."""
        count = positions(tensor)
        if count is None or self._image is None or self.target.least_stride is None:
            return False
        return count * self.target.least_stride**2 <= self._image

    def _leads_to_a_last_layer(self, silu_input: Tensor) -> bool:
        ends = [t for node in readers(silu_input) if is_silu(node) for t in node.outputs]
        return any(reader.name in self.last for t in ends for reader in readers(t))

    def _has_fused_activation(self, node: Node) -> bool:
        """Whether the Q of this node stands behind the activation that follows."""
        activation = self.fused_activation(node)
        return activation is not None and activation.name in self.integer

    def fused_activation(self, node: Node) -> Node | None:
        """The activation that is one with this node, which computes, so that the Q stands behind both."""
        rule = self.target.rules.get(node.op)
        following = readers(node.outputs[0])
        if rule is None or rule.role is Role.CARRIER or len(following) != 1 or node.outputs[0].name in self.outputs:
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
        if len(readers(tensor)) != 1 or tensor.name in self.outputs:
            return None
        made_by = producer(tensor)
        if made_by is not None and is_silu(made_by):
            return self._layer_before(next((t for t in made_by.inputs if feeds_silu_only(t)), None))
        if made_by is not None and made_by.op in self.target.fused_activations:
            return self._layer_before(made_by.inputs[0]) if len(readers(made_by.inputs[0])) == 1 else None
        return self._layer_before(tensor)

    def _layer_before(self, tensor: Tensor | None) -> Node | None:
        made_by = producer(tensor) if tensor is not None and tensor.name not in self.outputs else None
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
        if not node.inputs or not all(is_float(t) for t in [*_operands(node), *node.outputs]):
            return "does not compute on float32"
        if rule is None:
            return f"{self.target.title} runs {node.op} in float"
        if rule.role is Role.LAYER:
            return self._layer_refusal(node, rule)
        if any(t.name in self.outputs for t in node.outputs):
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
        return any(reader.name in self.integer for t in made for reader in readers(t))

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
        if node.name in self.last and not (self.target.last_layers or self._runs_as_matmul(node)):
            return "last layer of its branch"
        if is_depthwise(node):
            if self.target.float_depthwise and not self._quantized_anyway(node, rule):
                return "depthwise Conv"
        elif node.name in self.stem:
            return "near the image, with few channels"
        if node.op == "Conv" and self._is_too_narrow(node):
            return "too few channels for integers"
        if rule.output and not self._runs_as_matmul(node) and node.outputs[0].name in self.outputs:
            return "makes an output of the model"
        return None

    def _is_too_narrow(self, conv: Node) -> bool:
        first = conv.name not in self.behind_layers
        return self.target.is_too_narrow(conv.inputs[1].shape, conv.attrs.get("group", 1), first)

    def _quantized_anyway(self, node: Node, rule: Rule) -> bool:
        """Whether a Q would stand directly behind it all the same, so that the target makes an integer layer of it."""
        return rule.output and any(
            reader.op in self.target.fused_activations or self.target.rules[reader.op].role is not Role.ELEMENTWISE
            for reader in readers(node.outputs[0])
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
            before = [made_by for t in _operands(node) if (made_by := producer(t)) is not None]
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


def _points(choice: _Choice, model: Model, scheme: Scheme) -> tuple[Point, ...]:
    """The tensors that pass through Q/DQ, in graph order."""
    tensors = _tensors(choice, model)
    group_of = _groups(choice, model, tensors)
    sources = _sources(choice, model, tensors)
    known = _known_ranges(tensors)
    members: dict[str, list[str]] = {}
    for name in tensors:
        members.setdefault(group_of[name], []).append(name)
    of_group = {group: dict.fromkeys(s for name in names for s in sources[name]) for group, names in members.items()}

    points = []
    for name, tensor in tensors.items():
        group = group_of[name]
        alone = len(members[group]) == 1
        points.append(
            Point(
                tensor=name,
                scheme=replace(scheme, bits=max(_bits(choice, tensors[m], scheme.bits) for m in members[group])),
                group=group,
                users=_users(choice, tensor),
                sources=() if all(s in known for s in of_group[group]) else sources[name],
                silu_input=alone and feeds_silu_only(tensor),
                silu_output=alone and _is_silu_output(tensor),
                known=_hull([known[s] for s in of_group[group]]) if all(s in known for s in of_group[group]) else None,
            )
        )
    return tuple(points)


def _tensors(choice: _Choice, model: Model) -> dict[str, Tensor]:
    """What the integer nodes read, and what they make where the target wants that as integers."""
    tensors: dict[str, Tensor] = {}
    for node in model.graph.nodes:
        if node.name not in choice.integer:
            continue
        if choice.rule(node).residual:
            tensors.update({t.name: t for t in choice.identity(node)})
        elif choice.rule(node).input and not choice.is_fused(node):
            tensors.update({t.name: t for t in _operands(node)})
        if not choice.has_float_output(node):
            tensors.update({t.name: t for t in node.outputs})
    return tensors


def _groups(choice: _Choice, model: Model, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensor -> name of the first tensor of its group, by union-find over the nodes that share a grid.

    Tensors without a Q, between nodes that ride along, lead from one to the next.
    """
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    order = {name: index for index, name in enumerate(tensors)}
    for node in model.graph.nodes:
        if node.name not in choice.integer or not choice.rule(node).shared:
            continue
        tied = [t.name for t in node.outputs]
        tied += [t.name for t in _operands(node) if node.op != "Concat" or _binds(choice, node, t)]
        roots = sorted(map(find, tied), key=lambda name: order.get(name, len(order)))
        for root in roots:
            parent[root] = roots[0]
    return {name: find(name) for name in tensors}


def _binds(choice: _Choice, concat: Node, tensor: Tensor) -> bool:
    """Whether a Concat dictates the grid of an input: it costs nothing where nobody else reads it."""
    return not isinstance(tensor, Constant) and (choice.rule(concat).binding or readers(tensor) == [concat])


def _sources(choice: _Choice, model: Model, tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Tensor -> the tensors whose values it holds: what only moves values needs no look of its own."""
    sources: dict[str, tuple[str, ...]] = {name: (name,) for name in tensors}
    for node in model.graph.nodes:
        if node.name not in choice.integer or choice.rule(node).role is not Role.CARRIER:
            continue
        if all(t.name in sources for t in _operands(node)):
            came_from = tuple(dict.fromkeys(s for t in _operands(node) for s in sources[t.name]))
            sources.update({t.name: came_from for t in node.outputs})
    return sources


def _known_ranges(tensors: Mapping[str, Tensor]) -> dict[str, Range]:
    known = {}
    for name, tensor in tensors.items():
        made_by = producer(tensor)
        if made_by is not None and made_by.op == "Sigmoid":
            known[name] = _SIGMOID
        elif isinstance(tensor, Constant):
            known[name] = Range(float(np.min(tensor.values)), float(np.max(tensor.values)))
    return known


def _hull(ranges: Sequence[Range]) -> Range:
    return Range(float(np.min([r.low for r in ranges])), float(np.max([r.high for r in ranges])))


def _bits(choice: _Choice, tensor: Tensor, bits: int) -> int:
    """Width of a tensor's integers: 8 at both ends of the network, and inside SiLU, where levels cost no speed.

    Where readers are given widths of their own, the widest that one of them wants.
    """
    made_by = producer(tensor)
    before_all = made_by is None or (made_by.op not in LAYERS and made_by.name not in choice.behind_layers)
    at_an_end = before_all or any(reader.name in choice.ends for reader in readers(tensor))
    inside_silu = feeds_silu_only(tensor) or (made_by is not None and made_by.op == "Sigmoid")
    if inside_silu:
        return MAX_BITS
    default = MAX_BITS if at_an_end else bits
    users = [node for node in readers(tensor) if node.name in choice.integer]
    return max((choice.widths.get(node.name, (0, default))[1] for node in users), default=default)


def _is_silu_output(tensor: Tensor) -> bool:
    made_by = producer(tensor)
    return made_by is not None and is_silu(made_by)


def _users(choice: _Choice, tensor: Tensor) -> tuple[str, ...]:
    """The readers that get the dequantized tensor; those within a subgraph are left alone."""
    floats = choice.target.float_readers
    users = [node for node in readers(tensor) if id(node) in choice.own]
    return tuple(node.name for node in users if node.name in choice.integer or node.op not in floats)


def _weights(choice: _Choice, scheme: Scheme) -> tuple[Weight, ...]:
    """The constant weights of the integer layers, each once; those at both ends of the network keep 8 bits."""
    weights: dict[str, Weight] = {}
    for node in choice.layers:
        tensor = node.inputs[1]
        if tensor.name in weights:
            shared = weights[tensor.name]
            weights[tensor.name] = replace(shared, users=(*shared.users, node.name))
            continue
        at_an_end = node.name in choice.ends
        bits, _ = choice.widths.get(node.name, (MAX_BITS if at_an_end else scheme.bits, 0))
        weights[tensor.name] = Weight(
            tensor=tensor.name,
            scheme=replace(scheme, bits=bits, axis=output_axis(node)),
            users=(node.name,),
        )
    return tuple(weights.values())
