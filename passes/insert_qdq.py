"""insert-qdq: the planned Q/DQ pairs and the integer weights go into the graph."""

from onnxq.facts import CorrectedBiases, Plan, QuantizationParameters, Reconstruction
from onnxq.ir import Model
from onnxq.pipeline import EVERYTHING, Facts, Rewrite
from onnxq.qdq.insertion import insert_qdq


class InsertQdq(Rewrite):
    """Puts one QuantizeLinear and one DequantizeLinear (ONNX, opset 13) on every planned tensor.

    - the planned users read the dequantized tensor; outputs of the model stay what they are
    - weights are stored as int8 behind one DequantizeLinear, biases stay float, corrected or rebuilt ones
    - points of one group share one scale and one zero point, named after the group's first tensor
    - grids narrower than 8 bits live in 8-bit integers: weights use the levels that they have, activations pass
      through a Clip between Q and DQ, which every runtime computes exactly
    - nodes are put where they belong, so that the graph stays in topological order
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
