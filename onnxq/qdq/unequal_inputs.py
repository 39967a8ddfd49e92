"""Inputs of a Concat that are of very different size: which of them its scale loses, and which can have their own."""

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq._text import plural
from onnxq.facts import FittedRange, Plan, QuantizationPoint, Statistics
from onnxq.ir import Model, Node, Tensor, consumers
from onnxq.numerics.quantization_error import expected_sqnr
from onnxq.numerics.range_method import FitRange
from onnxq.numerics.scheme import Range, Scheme
from onnxq.numerics.sqnr import decibels
from onnxq.qdq.channel_statistics import channel_statistics
from onnxq.qdq.placement import groups_of, tied_inputs
from onnxq.targets import Role, Target
from onnxq.targets.rules import CARRIERS

LEAST_SQNR = 20.0
"""SQNR below which a tensor counts as lost if others of its scale fare better, dB. At 8 bits no input of a Concat of
YOLOv5n, YOLOX-Nano and the demo has less than 26 dB."""

MOST_LOST = 15.0
"""What a tensor may lose by a scale for greater values, dB: 2.5 bits. In these networks it is at most 11 dB, at any
width."""

_MOST_NAMED = 3
"""Concats that are warned of one by one; others are counted."""


def separated(plan: Plan, model: Model, target: Target, statistics: Statistics, fit: FitRange) -> Plan:
    """Return the plan in which inputs of Concats have scales of their own, if the scale of the Concat loses them.

    What reads the Concat has its scale in any case. So only tensors are separated that other nodes compute with.

    Args:
        plan: with groups by the rules of the target.
        model: the graph of the plan.
        target: its rules.
        statistics: of the tensors of the plan.
        fit: chooses a range from a histogram.
    """
    moving = {name for name in plan.integer if target.rules[plan.ops[name]].role is Role.CARRIER}
    tensors = [point.tensor for point in plan.points]
    apart: set[tuple[str, str]] = set()
    groups = groups_of(target, plan.integer, model, tensors)
    # From the last Concat on: inputs of an earlier one may be of the same size as each other.
    for node in reversed(model.graph.nodes):
        if node.op != "Concat" or node.name not in plan.integer or not target.rules[node.op].shared:
            continue
        for tensor in tied_inputs(target, node):
            tried = {*apart, (node.name, tensor.name)}
            after = groups_of(target, plan.integer, model, tensors, tried)
            if _saves_any(plan.points, groups, after, moving, statistics, fit):
                apart, groups = tried, after
    return replace(plan, points=tuple(replace(p, group=groups[p.tensor]) for p in plan.points)) if apart else plan


def _saves_any(
    points: Sequence[QuantizationPoint],
    before: Mapping[str, str],
    after: Mapping[str, str],
    moving: Collection[str],
    statistics: Statistics,
    fit: FitRange,
) -> bool:
    """Return whether a tensor that nodes compute with is lost in its group, and is not in the smaller one.

    Args:
        points: all tensors.
        before: the group of each.
        after: its group if it is made smaller.
        moving: names of the nodes that only move values.
        statistics: of the tensors.
        fit: chooses a range from a histogram.
    """
    split = {before[name] for name in before if before[name] != after[name]}
    for point in points:
        is_computed_with = any(user not in moving for user in point.users)
        if before[point.tensor] not in split or not point.sources or not is_computed_with:
            continue
        values = statistics.of(point.sources)
        together, alone = (
            fit(statistics.of_points(p for p in points if groups[p.tensor] == groups[point.tensor]), point.scheme)
            for groups in (before, after)
        )
        left = expected_sqnr(values, point.scheme, together)
        if left < LEAST_SQNR and expected_sqnr(values, point.scheme, alone) - left >= MOST_LOST:
            return True
    return False


@dataclass(frozen=True)
class _Input:
    """An input of a Concat.

    Attributes:
        name: of the tensor.
        greatest: its greatest value.
        sqnr: what the scale of the Concat leaves of it, dB; nan if it is always zero.
    """

    name: str
    greatest: float
    sqnr: float

    def __str__(self) -> str:
        return f"{self.name!r} (up to {self.greatest:.4g})"


def warnings(plan: Plan, model: Model, statistics: Statistics, ranges: Mapping[str, FittedRange]) -> tuple[str, ...]:
    """Return a sentence for each Concat with an input of which its scale leaves next to nothing, the worst first.

    Args:
        plan: the tensors.
        model: the graph of the plan.
        statistics: of the tensors of the plan.
        ranges: group -> range.
    """
    points = {point.tensor: point for point in plan.points}
    found = []
    for node in model.graph.nodes:
        point = _read_as(node.outputs[0], points) if node.op == "Concat" else None
        if point is None or point.known is not None:
            continue
        bounds = ranges[point.group].bounds
        inputs = [each for each in _inputs(node, points, statistics, point.scheme, bounds) if not math.isnan(each.sqnr)]
        best = max((each.sqnr for each in inputs), default=0.0)
        lost = [each for each in inputs if each.sqnr < LEAST_SQNR and best - each.sqnr >= MOST_LOST]
        if lost:
            others = ", ".join(str(each) for each in inputs if each not in lost)
            left = ", ".join(f"{each.sqnr:.1f} dB of {each}" for each in lost)
            remedy = shlex.join(["--exclude", *_readers(node, plan)])
            text = (
                f"Concat {node.name!r} joins values of very different size: one scale for {np.min(bounds.low):.4g} to "
                f"{np.max(bounds.high):.4g} leaves {left} beside {others}. Remedy, if they matter: {remedy}"
            )
            found.append((min(each.sqnr for each in lost), text))
    texts = [text for _, text in sorted(found)]
    more = len(texts) - _MOST_NAMED
    return (*texts[:_MOST_NAMED], *([f"{more} more Concat{plural(more)} with such inputs"] if more > 0 else []))


def _read_as(tensor: Tensor, points: Mapping[str, QuantizationPoint]) -> QuantizationPoint | None:
    """Return the tensor that passes through Q/DQ for a tensor that may have none: behind nodes that move values."""
    if tensor.name in points:
        return points[tensor.name]
    moved = (out for node in consumers(tensor) if node.op in CARRIERS for out in node.outputs)
    return next((point for out in moved if (point := _read_as(out, points)) is not None), None)


def _inputs(
    concat: Node, points: Mapping[str, QuantizationPoint], statistics: Statistics, scheme: Scheme, bounds: Range
) -> list[_Input]:
    """Return the inputs of a Concat of which the values are known, by channel or as a histogram.

    Args:
        concat: the node.
        points: tensor -> its point.
        statistics: of the tensors.
        scheme: of the output.
        bounds: of the output.
    """
    found = []
    sizes = [tensor.shape[1] for tensor in concat.inputs if len(tensor.shape or ()) > 1]
    counts = [size for size in sizes if isinstance(size, int)]
    channels = channel_statistics(concat.outputs[0], statistics.channels) if concat.attrs.get("axis") == 1 else None
    if channels is None or len(counts) < len(concat.inputs):
        known = [point for t in concat.inputs if (point := points.get(t.name)) is not None and point.sources]
        values = {point.tensor: statistics.of(point.sources) for point in known}
        return [_Input(name, each.high, expected_sqnr(each, scheme, bounds)) for name, each in values.items()]
    step, start = float(np.max(scheme.reach(bounds.low, bounds.high)[2])), 0
    energies = channels.variances + channels.means**2
    noises = np.minimum(energies, step**2 / 12)  # what is rounded to zero is the noise
    for tensor, count in zip(concat.inputs, counts, strict=True):
        part = slice(start, start + count)
        signal, noise = float(energies[part].sum()), float(noises[part].sum())
        start += count
        if signal > 0:  # not empty, nor always zero
            found.append(_Input(tensor.name, float(channels.peaks[part].max()), decibels(signal, noise)))
    return found


def _readers(node: Node, plan: Plan) -> list[str]:
    """Return the names of the integer nodes that compute with the outputs of a node, or with what moves them."""
    found: dict[str, None] = {}
    for reader in (reader for tensor in node.outputs for reader in consumers(tensor)):
        if reader.op in CARRIERS and reader.op != "Concat":
            found.update(dict.fromkeys(_readers(reader, plan)))
        elif reader.name in plan.integer:
            found[reader.name] = None
    return list(found)
