"""remove-unused: nothing stays in the graph that nothing needs."""

from onnxq.ir import Model
from onnxq.pipeline import EVERYTHING, Facts, Rewrite


class RemoveUnused(Rewrite):
    """Removes nodes on which no output of the model depends, and constants that no node reads any more.

    Inputs and outputs of the model stay as they are, used or not.
    """

    name = "remove-unused"
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes removed."""
        before = len(model.graph.nodes)
        model.graph.cleanup()
        return before - len(model.graph.nodes)
