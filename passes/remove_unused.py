"""remove-unused: removes nodes and constants that no output needs."""

from onnxq.ir import Model
from onnxq.pipeline import EVERYTHING, Facts, Rewrite


class RemoveUnused(Rewrite):
    """Removes nodes on which no output of the model depends, and constants without a reader.

    Inputs and outputs of the model stay, used or not.
    """

    name = "remove-unused"
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes removed."""
        before = len(model.graph.nodes)
        model.graph.cleanup()
        return before - len(model.graph.nodes)
