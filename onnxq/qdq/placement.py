"""Where Q/DQ pairs stand: the tensors and weights that pass through them, their widths, and which share a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxq.facts import QuantizationPoint, QuantizedWeight
from onnxq.ir import LAYERS, Constant, Model, Node, Tensor, consumers, feeds_only_silu, is_silu, output_axis, producer
from onnxq.numerics.scheme import MAX_BITS, Range, Scheme
from onnxq.qdq.selection import NodeSelection, operands
from onnxq.targets import Role

_SIGMOID = Range(0.0, 255 / 256)
"""What a Sigmoid can give, so that the scale is 1/256 and the zero point 0."""


Widths = Mapping[str, tuple[int, int]]
"""Node -> widths of its weight and of what it reads, where they are its own."""


def quantization_points(
    choice: NodeSelection, model: Model, scheme: Scheme, widths: Widths
) -> tuple[QuantizationPoint, ...]:
    """The tensors that pass through Q/DQ, in graph order.

    Args:
        choice: what runs on integers.
        model: that it is of.
        scheme: of activations; those at both ends of the network and inside SiLU have 8 bits all the same.
        widths: of single nodes.
    """
    tensors = _tensors(choice, model)
    group_of = _groups(choice, model, tensors)
    sources = _sources(choice, model, tensors)
    known = _known_ranges(tensors)
    members: dict[str, list[str]] = {}
    for name in tensors:
        members.setdefault(group_of[name], []).append(name)
    own = {id(node) for node in model.graph.nodes}
    of_group = {group: dict.fromkeys(s for name in names for s in sources[name]) for group, names in members.items()}

    points = []
    for name, tensor in tensors.items():
        group = group_of[name]
        alone = len(members[group]) == 1
        is_known = all(source in known for source in of_group[group])
        points.append(
            QuantizationPoint(
                tensor=name,
                scheme=replace(scheme, bits=max(_bits(choice, tensors[m], scheme, widths) for m in members[group])),
                group=group,
                # Those within a subgraph are left alone.
                users=tuple(node.name for node in _users(choice, tensor) if id(node) in own),
                sources=() if is_known else sources[name],
                silu_input=alone and feeds_only_silu(tensor),
                silu_output=alone and _is_silu_output(tensor),
                known=_union([known[source] for source in of_group[group]]) if is_known else None,
            )
        )
    return tuple(points)


def _tensors(choice: NodeSelection, model: Model) -> dict[str, Tensor]:
    """What the integer nodes read, and what they make where the target wants that as integers."""
    tensors: dict[str, Tensor] = {}
    for node in model.graph.nodes:
        if node.name not in choice.integer:
            continue
        if choice.rule(node).residual:
            tensors.update({t.name: t for t in choice.identity(node)})
        elif choice.rule(node).input and not choice.is_fused(node):
            tensors.update({t.name: t for t in operands(node)})
        if not choice.has_float_output(node):
            tensors.update({t.name: t for t in node.outputs})
    return tensors


def _groups(choice: NodeSelection, model: Model, tensors: Mapping[str, Tensor]) -> dict[str, str]:
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
        tied += [t.name for t in operands(node) if node.op != "Concat" or _binds(choice, node, t)]
        roots = sorted(map(find, tied), key=lambda name: order.get(name, len(order)))
        for root in roots:
            parent[root] = roots[0]
    return {name: find(name) for name in tensors}


def _binds(choice: NodeSelection, concat: Node, tensor: Tensor) -> bool:
    """Whether a Concat dictates the grid of an input: it costs nothing where nobody else reads it."""
    return not isinstance(tensor, Constant) and (choice.rule(concat).binding or consumers(tensor) == [concat])


def _sources(choice: NodeSelection, model: Model, tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Tensor -> the tensors whose values it holds: what only moves values needs no look of its own."""
    sources: dict[str, tuple[str, ...]] = {name: (name,) for name in tensors}
    for node in model.graph.nodes:
        if node.name not in choice.integer or choice.rule(node).role is not Role.CARRIER:
            continue
        if all(t.name in sources for t in operands(node)):
            came_from = tuple(dict.fromkeys(s for t in operands(node) for s in sources[t.name]))
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


def _union(ranges: Sequence[Range]) -> Range:
    return Range(float(np.min([r.low for r in ranges])), float(np.max([r.high for r in ranges])))


def _bits(choice: NodeSelection, tensor: Tensor, scheme: Scheme, widths: Widths) -> int:
    """Width of a tensor's integers: 8 at both ends of the network, and inside SiLU, where levels cost no speed.

    Where readers are given widths of their own, the widest that one of them wants.
    """
    made_by = producer(tensor)
    before_all = made_by is None or (made_by.op not in LAYERS and made_by.name not in choice.downstream_of_layers)
    at_an_end = before_all or any(reader.name in choice.ends for reader in consumers(tensor))
    inside_silu = feeds_only_silu(tensor) or (made_by is not None and made_by.op == "Sigmoid")
    if inside_silu:
        return MAX_BITS
    default = MAX_BITS if at_an_end else scheme.bits
    users = [node for node in consumers(tensor) if node.name in choice.integer]
    return max((widths.get(node.name, (0, default))[1] for node in users), default=default)


def _is_silu_output(tensor: Tensor) -> bool:
    made_by = producer(tensor)
    return made_by is not None and is_silu(made_by)


def _users(choice: NodeSelection, tensor: Tensor) -> list[Node]:
    """The readers that get the dequantized tensor.

    An Identity makes an output of the model, or it would be gone, and outputs stay what they are.
    """
    floats = choice.target.float_readers | {"Identity"}
    return [node for node in consumers(tensor) if node.name in choice.integer or node.op not in floats]


def quantized_weights(choice: NodeSelection, scheme: Scheme, widths: Widths) -> tuple[QuantizedWeight, ...]:
    """The constant weights of the integer layers, each once; those at both ends of the network keep 8 bits.

    Args:
        choice: what runs on integers.
        scheme: of weights, without an axis.
        widths: of single nodes.
    """
    weights: dict[str, QuantizedWeight] = {}
    for node in choice.layers:
        tensor = node.inputs[1]
        if tensor.name in weights:
            shared = weights[tensor.name]
            weights[tensor.name] = replace(shared, users=(*shared.users, node.name))
            continue
        at_an_end = node.name in choice.ends
        bits, _ = widths.get(node.name, (MAX_BITS if at_an_end else scheme.bits, 0))
        weights[tensor.name] = QuantizedWeight(
            tensor=tensor.name,
            scheme=replace(scheme, bits=bits, axis=output_axis(node)),
            users=(node.name,),
        )
    return tuple(weights.values())
