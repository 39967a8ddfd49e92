"""insert-qdq: inserts the planned Q/DQ pairs and integer weights into the graph."""

from onnxq.facts import CorrectedBiases, Plan, QuantizationParameters, Reconstruction
from onnxq.ir import Model
from onnxq.pipeline import EVERYTHING, Facts, Rewrite
from onnxq.qdq.insertion import insert_qdq


class InsertQdq(Rewrite):
    """Inserts one QuantizeLinear and one DequantizeLinear (ONNX, opset 13; 16 bits: 21) on every planned tensor.

    - the planned users read the dequantized tensor; an output of the model stays float unless it is planned, in which
      case the DequantizeLinear produces it under its name
    - weights are stored as integers behind one DequantizeLinear; biases stay float, with their corrections
    - points of one group share one scale and one zero point, named after the group's first tensor
    - if the integers have fewer bits than their container, weights use a part of its levels, and activations pass
      through a Clip between Q and DQ, which every runtime computes exactly
    - new nodes stand next to the nodes that need them, so that the graph stays in topological order
    """

    name = "insert-qdq"
    needs = (Plan, QuantizationParameters)
    uses = (CorrectedBiases, Reconstruction)
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes inserted."""
        return insert_qdq(
            model, facts[Plan], facts[QuantizationParameters], facts.get(CorrectedBiases), facts.get(Reconstruction)
        )
