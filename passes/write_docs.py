"""write-docs: viewers show beside each node what became of it, and why."""

import math

import numpy as np

from onnxq.facts import FittedRange, FittedRanges, Plan, QuantizationParameters, Reconstruction, Statistics
from onnxq.ir import Model
from onnxq.pipeline import EVERYTHING, Facts, Rewrite
from onnxq.qdq.tensor_result import tensor_results


class WriteDocs(Rewrite):
    """Writes doc strings (ONNX, NodeProto), which Netron shows as the description of a node.

    - of a QuantizeLinear on a planned tensor: its range, how that was chosen, the expected signal-to-noise ratio and
      the share of the values outside
    - of a node that stays float: the reason
    - a pass behind this one that replaces a node says the same of what takes its place
    - what an earlier run wrote of any other node goes; what exporters wrote stays
    """

    name = "write-docs"
    needs = (Plan, FittedRanges, QuantizationParameters, Statistics)
    uses = (Reconstruction,)
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the doc strings and return how many changed."""
        fits = {outcome.point.tensor: outcome.fit for outcome in tensor_results(facts)}
        said = {name: f"float, {reason}" for name, reason in facts[Plan].skipped.items()}
        for node in model.graph.nodes:
            if node.op == "QuantizeLinear" and node.inputs[0].name in fits:
                said[node.name] = _words(fits[node.inputs[0].name])
        return sum(model.set_doc(node.name, said.get(node.name, "")) for node in model.graph.nodes)


def _words(fit: FittedRange) -> str:
    """`-0.2785 to 16.66, uh, 40.9 dB, 0.001 % clipped`; only the bounds of a range that is known without data."""
    low, high = float(np.min(fit.bounds.low)), float(np.max(fit.bounds.high))
    said = f"{low:.4g} to {high:.4g}, {fit.method}"
    return said if math.isnan(fit.sqnr) else f"{said}, {fit.sqnr:.1f} dB, {100 * fit.clipped:.3f} % clipped"
