"""Q/DQ placement: which tensors and weights are quantized, their widths, and which share a scale and zero point."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxq.facts import QuantizationPoint, QuantizedWeight
from onnxq.ir import LAYERS, Constant, Model, Node, Tensor, consumers, feeds_only_silu, is_silu, output_axis, producer
from onnxq.numerics.scheme import Range, Scheme
from onnxq.qdq.network import operands
from onnxq.qdq.selection import NodeSelection
from onnxq.targets import Role, Target
from onnxq.targets.float_last import least
from onnxq.targets.sizes import image_size

ENDS_BITS = 8
"""Least width at both ends of the network, where few levels cost most, and inside SiLU, where they save no time."""

_FEW = 0.2
"""Share of all weights in the layers of the fewest weights, which keep `ENDS_BITS` if activations have that many."""

Widths = Mapping[str, tuple[int, int]]
"""Node -> widths of its weight and of its input; nodes without an entry have the default widths."""

SchemeOf = Callable[[int], Scheme]
"""Width -> scheme of a target."""


def quantization_points(
    selection: NodeSelection, model: Model, scheme_of: SchemeOf, bits: int, widths: Widths
) -> tuple[QuantizationPoint, ...]:
    """Return the tensors that pass through Q/DQ, in graph order.

    Args:
        selection: the nodes that run on integers.
        model: the graph of the selection.
        scheme_of: schemes of activations.
        bits: width of activations; at both ends of the network and inside SiLU it is at least `ENDS_BITS`.
        widths: of single nodes.
    """
    tensors = _tensors(selection, model)
    group_of = groups_of(selection.target, selection.integer, model, tensors)
    width_of = {name: _bits(selection, tensor, bits, widths) for name, tensor in tensors.items()}
    known = _known_ranges(tensors, width_of)
    sources = _sources(selection, model, tensors, known)
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
                scheme=scheme_of(max(width_of[member] for member in members[group])),
                group=group,
                # Nodes within a subgraph keep reading the float tensor.
                users=tuple(node.name for node in _users(selection, tensor) if id(node) in own),
                sources=() if is_known else sources[name],
                silu_input=alone and feeds_only_silu(tensor),
                silu_output=alone and _is_silu_output(tensor),
                known=_union([known[source] for source in of_group[group]]) if is_known else None,
                is_output=selection.is_quantized_output(tensor) and bool(tensor.inputs),
            )
        )
    return tuple(points)


def _tensors(selection: NodeSelection, model: Model) -> dict[str, Tensor]:
    """Return the inputs of the integer nodes, and their outputs if the target quantizes them behind the node."""
    tensors: dict[str, Tensor] = {}
    for node in model.graph.nodes:
        if node.name not in selection.integer:
            continue
        if selection.rule(node).residual:
            tensors.update({t.name: t for t in selection.identity(node)})
        elif selection.rule(node).input and not selection.is_fused(node):
            tensors.update({t.name: t for t in operands(node)})
        if not selection.has_float_output(node):
            tensors.update({t.name: t for t in node.outputs})
    return tensors


def groups_of(
    target: Target,
    integer: Collection[str],
    model: Model,
    tensors: Iterable[str],
    apart: Collection[tuple[str, str]] = (),
) -> dict[str, str]:
    """Return for each tensor the first tensor of its group, by union-find over the nodes that share a scale.

    Tensors without a Q, between nodes that the runtime moves a Q across, connect their neighbours.

    Args:
        target: its rules.
        integer: names of the nodes that run on integers.
        model: the graph.
        tensors: names of those that pass through Q/DQ, in order.
        apart: names of Concats and of inputs that do not have their scale although the rules would have it so.
    """
    parent: dict[str, str] = {}

    def root_of(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    order = {name: index for index, name in enumerate(tensors)}
    for node in model.graph.nodes:
        if node.name not in integer or not target.rules[node.op].shared:
            continue
        tied = [t.name for t in node.outputs]
        tied += [t.name for t in tied_inputs(target, node) if (node.name, t.name) not in apart]
        roots = sorted(map(root_of, tied), key=lambda name: order.get(name, len(order)))
        for root in roots:
            parent[root] = roots[0]
    return {name: root_of(name) for name in order}


def tied_inputs(target: Target, node: Node) -> list[Tensor]:
    """Return the inputs that have the scale of the node; of a Concat, the bound ones and those it alone reads."""
    if node.op != "Concat":
        return operands(node)
    binding = target.rules[node.op].binding
    return [t for t in operands(node) if not isinstance(t, Constant) and (binding or consumers(t) == [node])]


def _sources(
    selection: NodeSelection, model: Model, tensors: Mapping[str, Tensor], known: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Return for each tensor the tensors whose values its range must hold.

    They are those that its carriers move, else the tensor itself. Of a tensor of which only maxima are read, they are
    the maxima: what its range cuts off, such as padding and masks, is less than each of them.

    Args:
        selection: the nodes that run on integers.
        model: the graph.
        tensors: those that pass through Q/DQ.
        known: names of those whose range is known without data.
    """
    sources: dict[str, tuple[str, ...]] = {name: (name,) for name in tensors}
    pooled = _pooled(selection, tensors, known)
    for node in model.graph.nodes:
        if not _carries(selection, node) or (node.op == "MaxPool" and node.inputs[0].name in pooled):
            continue
        if all(t.name in sources for t in operands(node)):
            moved = tuple(dict.fromkeys(s for t in operands(node) for s in sources[t.name]))
            sources.update({t.name: moved for t in node.outputs})
    for name, readers in pooled.items():
        outputs = (t.name for node in readers for t in node.outputs)
        sources[name] = tuple(dict.fromkeys(s for output in outputs for s in sources[output]))
    return sources


def _pooled(selection: NodeSelection, tensors: Mapping[str, Tensor], known: Collection[str]) -> dict[str, list[Node]]:
    """Return the tensors that only MaxPools on integers read, at once or moved, and their readers; the last one first.

    The values that a Concat joins count as they are.
    """
    pooled: dict[str, list[Node]] = {}
    for name, tensor in reversed([*tensors.items()]):
        readers = _users(selection, tensor)
        if not readers or name in known or selection.is_quantized_output(tensor):
            continue
        if all(
            _carries(selection, node)
            and node.op != "Concat"
            and all(t.name in (tensors if node.op == "MaxPool" else pooled) for t in node.outputs)
            for node in readers
        ):
            pooled[name] = readers
    return pooled


def _carries(selection: NodeSelection, node: Node) -> bool:
    rule = selection.target.rules.get(node.op)  # none of a node within a subgraph that has the name of another one
    return rule is not None and node.name in selection.integer and rule.role is Role.CARRIER


def _known_ranges(tensors: Mapping[str, Tensor], width_of: Mapping[str, int]) -> dict[str, Range]:
    """Return the ranges that are known without data: those of constants and Sigmoids."""
    known = {}
    for name, tensor in tensors.items():
        source = producer(tensor)
        if source is not None and source.op == "Sigmoid":
            known[name] = Range(0.0, 1 - 2.0 ** -width_of[name])  # the scale is 1/256 at 8 bits
        elif isinstance(tensor, Constant):
            known[name] = Range(float(np.min(tensor.values, initial=0.0)), float(np.max(tensor.values, initial=0.0)))
    return known


def _union(ranges: Sequence[Range]) -> Range:
    return Range(float(np.min([r.low for r in ranges])), float(np.max([r.high for r in ranges])))


def _bits(selection: NodeSelection, tensor: Tensor, bits: int, widths: Widths) -> int:
    """Return the width of a tensor: the default, or the greatest of the widths that its consumers have."""
    source = producer(tensor)
    precedes_layers = source is None or (source.op not in LAYERS and source.name not in selection.downstream_of_layers)
    at_an_end = precedes_layers or any(reader.name in selection.ends for reader in consumers(tensor))
    inside_silu = feeds_only_silu(tensor) or (source is not None and source.op == "Sigmoid")
    if inside_silu:
        return ENDS_BITS if _is_misfused_gate(selection.target, tensor) else max(ENDS_BITS, bits)
    default = max(ENDS_BITS, bits) if at_an_end else bits
    users = [node for node in consumers(tensor) if node.name in selection.integer]
    return max((widths.get(node.name, (0, default))[1] for node in users), default=default)


def _is_misfused_gate(target: Target, tensor: Tensor) -> bool:
    """Return whether a tensor is the gate of a SiLU that the target's runtime may fuse and compute wrongly.

    It may if its size is unknown.
    """
    size = image_size(tensor)
    if target.misfused_silu is None or feeds_only_silu(tensor) or not any(map(is_silu, consumers(tensor))):
        return False
    return size is None or target.misfused_silu(*size)


def _is_silu_output(tensor: Tensor) -> bool:
    source = producer(tensor)
    return source is not None and is_silu(source)


def _users(selection: NodeSelection, tensor: Tensor) -> list[Node]:
    """Return the consumers that read the dequantized tensor."""
    return [node for node in consumers(tensor) if not selection.reads_floats(node)]


def quantized_weights(
    selection: NodeSelection, scheme_of: SchemeOf, bits: int, activation_bits: int, widths: Widths
) -> tuple[QuantizedWeight, ...]:
    """Return the constant weights of the integer layers, each once.

    Args:
        selection: the nodes that run on integers.
        scheme_of: schemes of weights, without an axis.
        bits: width of weights; at both ends of the network, and in layers of few weights, it is at least `ENDS_BITS`.
        activation_bits: width of activations; if they are narrower than `ENDS_BITS`, layers of few weights are too.
        widths: of single nodes.
    """
    wide = selection.ends | (_of_few_weights(selection.layers) if activation_bits >= ENDS_BITS else set())
    weights: dict[str, QuantizedWeight] = {}
    for node in selection.layers:
        tensor = node.inputs[1]
        if tensor.name in weights:
            shared = weights[tensor.name]
            weights[tensor.name] = replace(shared, users=(*shared.users, node.name))
            continue
        width, _ = widths.get(node.name, (max(ENDS_BITS, bits) if node.name in wide else bits, 0))
        weights[tensor.name] = QuantizedWeight(
            tensor=tensor.name,
            scheme=replace(scheme_of(width), axis=output_axis(node)),
            users=(node.name,),
        )
    return tuple(weights.values())


def _of_few_weights(layers: Sequence[Node]) -> set[str]:
    """Return the names of the layers with the fewest weights, as many as have together the share `_FEW` of all."""
    counts = {layer.name: math.prod(layer.inputs[1].shape) for layer in layers}
    return least(counts, _FEW * sum(counts.values()))
