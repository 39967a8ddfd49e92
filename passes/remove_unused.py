"""remove-unused: removes nodes and constants that no output needs, and divisions by 1."""

import numpy as np

from onnxq.facts import Reconstruction
from onnxq.ir import Model, consumers, producer, replace_uses
from onnxq.pipeline import EVERYTHING, Facts, Rewrite
from onnxq.qdq.migration import divided_name


class RemoveUnused(Rewrite):
    """Removes nodes on which no output of the model depends, and constants without a reader.

    Inputs and outputs of the model stay, used or not. A Mul that `migrate-scales` added goes too if the reconstruction
    has found that its channels are best not divided.
    """

    name = "remove-unused"
    uses = (Reconstruction,)
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes removed."""
        before = len(model.graph.nodes)
        tensors = model.graph.tensors()
        for tensor, scales in (facts.get(Reconstruction) or Reconstruction({}, {}, {})).scales.items():
            quotient = tensors.get(divided_name(tensor))
            node = None if quotient is None else producer(quotient)
            if node is not None and node.op == "Mul" and np.all(scales == 1):
                replace_uses(node.outputs[0], node.inputs[0], consumers(node.outputs[0]))
        model.graph.cleanup()
        return before - len(model.graph.nodes)
