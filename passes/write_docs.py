"""write-docs: writes doc strings with the range of each Q and the reason of each float node, for viewers."""

import math
from collections.abc import Collection

import numpy as np

from onnxq.facts import FittedRange, FittedRanges, Migration, Plan, QuantizationParameters, Reconstruction, Statistics
from onnxq.ir import Model, Node, consumers
from onnxq.pipeline import EVERYTHING, Facts, Rewrite
from onnxq.qdq.tensor_result import final_migration, tensor_results


class WriteDocs(Rewrite):
    """Writes doc strings (ONNX, NodeProto), which Netron shows as the description of a node.

    - a QuantizeLinear on a planned tensor: its range, the method, the expected signal-to-noise ratio and the share of
      clipped values
    - a node that stays float: the reason
    - a Mul that `migrate-scales` added: its factors
    - a later pass that replaces a node copies the doc string to the new nodes
    - doc strings that an earlier run wrote on other nodes are removed; those of exporters stay
    """

    name = "write-docs"
    needs = (Plan, FittedRanges, QuantizationParameters, Statistics)
    uses = (Reconstruction, Migration)
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the doc strings and return how many changed."""
        fits = {outcome.point.tensor: outcome.own for outcome in tensor_results(facts)}
        docs = {name: f"float ({reason})" for name, reason in facts[Plan].skipped.items()}
        scales = final_migration(facts).scales
        for node in model.graph.nodes:
            if node.op == "Mul" and node.inputs[0].name in scales and node.outputs[0].name in fits:
                factors = 1 / scales[node.inputs[0].name]
                bounds = f"{factors.min():.3g} to {factors.max():.3g}"
                docs[node.name] = f"channels times {bounds}, divided out again in the weights that read them"
            tensor = _quantized_tensor(node, fits) if node.op == "QuantizeLinear" else None
            if tensor is not None:
                docs[node.name] = _describe(fits[tensor])
        return sum(model.set_doc(node.name, docs.get(node.name, "")) for node in model.graph.nodes)


def _quantized_tensor(quantize: Node, planned: Collection[str]) -> str | None:
    """Return the name of the planned tensor of a QuantizeLinear.

    The QuantizeLinear reads that tensor. If it is an output of the model, the DequantizeLinear behind produces it.
    """
    behind = consumers(quantize.outputs[0])
    behind = consumers(behind[0].outputs[0]) if behind[0].op == "Clip" else behind
    names = (quantize.inputs[0].name, behind[0].outputs[0].name)
    return next((name for name in names if name in planned), None)


def _describe(fit: FittedRange) -> str:
    """Return `-0.2785 to 16.66, uh, 40.9 dB, 0.001 % clipped`; without data, only the bounds and the method."""
    low, high = float(np.min(fit.bounds.low)), float(np.max(fit.bounds.high))
    text = f"{low:.4g} to {high:.4g}, {fit.method}"
    return text if math.isnan(fit.sqnr) else f"{text}, {fit.sqnr:.1f} dB, {100 * fit.clipped:.3f} % clipped"
