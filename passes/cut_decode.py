"""cut-decode: ends the model at its last layers, for toolchains with a quantizer of their own."""

from onnxq.facts import DecodeBoundary
from onnxq.ir import Model
from onnxq.pipeline import Facts, Rewrite


class CutDecode(Rewrite):
    """Makes the outputs of the last layers the outputs of the model, and removes the decode.

    The outputs are in graph order and keep the names of their tensors.
    """

    name = "cut-decode"
    needs = (DecodeBoundary,)

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes removed."""
        nodes, before = model.nodes, len(model.graph.nodes)
        model.graph.outputs = [nodes[name].outputs[0] for name in facts[DecodeBoundary].last]
        model.graph.cleanup()
        return before - len(model.graph.nodes)
