"""separate-scales: gives inputs of a Concat scales of their own if the scale of the Concat would lose them."""

from onnxq.facts import Plan, Statistics
from onnxq.ir import Model
from onnxq.numerics.range_methods import method_for
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.channel_statistics import check_statistics
from onnxq.qdq.unequal_inputs import separated
from onnxq.targets import Target


class SeparateScales(Analysis[Plan]):
    """Plans again, with the observed values: an input of a Concat does not share its scale if the scale would lose it.

    - It is lost if less than `unequal_inputs.LEAST_SQNR` is left of it, and `unequal_inputs.MOST_LOST` less than with a
      scale of its own.
    - Other nodes compute with it, or with what it was moved from: what reads the Concat has its scale in any case.

    Concats of float nodes, and inputs that the rules of the target leave a scale of their own, are not concerned.

    Args:
        target: its rules.
        method: a key of `range_methods.METHODS`, as in `FitRanges`.

    Raises:
        DataError: the statistics were given and belong to another model, or lack a tensor.
    """

    name = "separate-scales"
    gives = Plan
    needs = (Plan, Statistics)

    def __init__(self, target: Target, method: str = "uh") -> None:
        self._target = target
        self._method = method

    def run(self, model: Model, facts: Facts) -> Plan:
        """Return the plan."""
        if facts.is_pinned(Statistics):
            check_statistics(facts[Statistics], model)
        fit = method_for(self._method, silu_output=False)
        return separated(facts[Plan], model, self._target, facts[Statistics], fit)
