"""own-dequantize: float nodes read a DequantizeLinear of their own."""

from onnxq.facts import Plan
from onnxq.ir import QDQ_OPS, Builder, Constant, Model, Node, consumers, replace_uses
from onnxq.pipeline import EVERYTHING, Facts, Rewrite


class OwnDequantize(Rewrite):
    """Gives the float nodes that read a dequantized activation a DequantizeLinear apart from that of integer nodes.

    The numbers stay. rknn-toolkit2 2.5 runs a Conv between Q and DQ in float16 if a float node reads the output of the
    DequantizeLinear in front of it, too: a last layer whose output is an output of the model, a product in attention,
    an Add in front of a batch normalization.
    """

    name = "own-dequantize"
    needs = (Plan,)
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes inserted."""
        builder, integer = Builder(model), facts[Plan].integer
        nodes: list[Node] = []
        for node in model.graph.nodes:
            nodes.append(node)
            readers = consumers(node.outputs[0]) if _dequantizes_activation(node) else []
            floats = [reader for reader in readers if reader.name not in integer and reader.op not in QDQ_OPS]
            if 0 < len(floats) < len(readers):
                nodes.append(_copy(node, floats, builder))
        inserted = len(nodes) - len(model.graph.nodes)
        model.graph.nodes = nodes
        return inserted


def _dequantizes_activation(node: Node) -> bool:
    return node.op == "DequantizeLinear" and not isinstance(node.inputs[0], Constant)


def _copy(node: Node, readers: list[Node], builder: Builder) -> Node:
    """Return a copy of a DequantizeLinear from which these nodes read."""
    old = node.outputs[0]
    new = builder.variable(f"{old.name}_float", old.dtype, old.shape)
    replace_uses(old, new, readers)
    return builder.node(node.op, f"{node.name}_float", node.inputs, [new], **node.attrs)
