"""float-lost-channels: keeps layers float that amplify channels of which the scale of their input leaves nothing."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from onnxq._text import plural
from onnxq.facts import DecodeBoundary, Plan, QuantizationPoint, Statistics
from onnxq.ir import Model, producer
from onnxq.numerics.range_methods import method_for
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.channel_statistics import check_statistics
from onnxq.qdq.lost_channels import lost_layers
from onnxq.qdq.network import operands
from onnxq.qdq.unequal_inputs import separated
from onnxq.targets import Target
from onnxq.targets.rules import CARRIERS
from onnxq.targets.sizes import ImageSizes

log = logging.getLogger(__name__)

_MOST_NAMED = 3
"""Layers that are warned of one by one; others are counted."""


class FloatLostChannels(Analysis[Plan]):
    """Plans again, with the observed values: layers that amplify lost channels stay float.

    `onnxq.qdq.lost_channels` has the criterion. Such a layer reads the float tensor, also if others read integers. It
    stays on integers, and a warning names it, by `include`. All of them do if nothing else would be on integers, or if
    the new plan needs values that were not observed.

    Args:
        planning: plans without values, by the same options.
        target: its rules.
        method: a key of `range_methods.METHODS`, as in `FitRanges`.

    Raises:
        DataError: the statistics were given and belong to another model, or lack a tensor.
    """

    name = "float-lost-channels"
    gives = Plan
    needs = (Plan, Statistics, DecodeBoundary, ImageSizes)

    def __init__(self, planning: PlanQuantization, target: Target, method: str = "uh") -> None:
        self._planning = planning
        self._target = target
        self._method = method

    def run(self, model: Model, facts: Facts) -> Plan:
        """Return the plan."""
        plan, statistics = facts[Plan], facts[Statistics]
        if facts.is_pinned(Statistics):
            check_statistics(statistics, model)
        boundary, sizes = facts[DecodeBoundary], facts[ImageSizes]
        fit = method_for(self._method, silu_output=False)
        if next(lost_layers(plan, model, self._target, statistics, fit), None) is None:
            return plan
        apart = separated(plan, model, self._target, statistics, fit)  # may save some of them
        found = dict(lost_layers(apart, model, self._target, statistics, fit))
        lost = {name: text for layers in found.values() for name, text in layers.items()}
        if not lost.keys() >= set(plan.layers):
            tried = self._planning.plan(model, boundary, sizes, lost)
            tried = replace(tried, points=tuple(observed(tried.points, model, statistics)))
            if tried.observed().keys() <= statistics.histograms.keys():
                plan = tried
        left = [name for name in lost if name in plan.layers]
        for name in left[:_MOST_NAMED]:
            log.warning("%s %r stays on integers although %s", model.nodes[name].op, name, lost[name])
        if len(left) > _MOST_NAMED:
            others = len(left) - _MOST_NAMED
            log.warning("%d more such layer%s on integers", others, plural(others))
        return plan


def observed(points: Sequence[QuantizationPoint], model: Model, statistics: Statistics) -> Iterator[QuantizationPoint]:
    """Yield points; a source that was not observed is replaced by those from which operators take its values.

    Of a Concat on integers the inputs were observed. If it is float now, its output is the source.
    """
    tensors = model.graph.tensors()

    def sources_of(name: str) -> Iterator[str]:
        stack, seen = [name], set[str]()
        while stack:
            each = stack.pop()
            if each in seen:
                continue
            seen.add(each)
            source = producer(tensors[each]) if each in tensors and each not in statistics.histograms else None
            if source is None or source.op not in CARRIERS:
                yield each
            else:
                stack += [tensor.name for tensor in reversed(operands(source))]

    for point in points:
        yield replace(point, sources=tuple(dict.fromkeys(s for name in point.sources for s in sources_of(name))))
