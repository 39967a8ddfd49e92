"""float-lost-channels: keeps layers float that amplify channels of which the scale of their input leaves nothing."""

import logging

from onnxq.facts import DecodeBoundary, Plan, Statistics
from onnxq.ir import Model
from onnxq.numerics.range_methods import method_for
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.channel_statistics import check_statistics
from onnxq.qdq.lost_channels import lost_layers
from onnxq.qdq.unequal_inputs import separated
from onnxq.targets import Target
from onnxq.targets.sizes import ImageSizes

log = logging.getLogger(__name__)


class FloatLostChannels(Analysis[Plan]):
    """Plans again, with the observed values: layers that amplify lost channels stay float.

    `onnxq.qdq.lost_channels` has the criterion. Such a layer reads the float tensor, also if others read integers. It
    stays on integers, and a warning names it, by `include`, or if the new plan needs values that were not observed.

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
        fit = method_for(self._method, silu_output=False)
        if next(lost_layers(plan, model, self._target, statistics, fit), None) is None:
            return plan
        apart = separated(plan, model, self._target, statistics, fit)  # may save some of them
        kept: dict[str, str] = {}
        for tensor, layers in lost_layers(apart, model, self._target, statistics, fit):
            tried = self._planning.plan(model, facts[DecodeBoundary], facts[ImageSizes], kept | layers)
            readers = {user for point in tried.points if point.tensor == tensor for user in point.users}
            if readers.isdisjoint(layers) and tried.observed().keys() <= statistics.histograms.keys():
                kept, plan = kept | layers, tried
            else:
                for name, text in layers.items():
                    log.warning("%s %r stays on integers although %s", model.nodes[name].op, name, text)
        return plan
