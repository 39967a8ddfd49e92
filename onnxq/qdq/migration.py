"""Migration of scales: which tensors can have their channels divided in front of the layers that read them."""

from onnxq.facts import Plan
from onnxq.ir import Constant, Model, Node, is_float

LEAST_SAMPLES = 50
"""Samples below which migration loses more than it gains: with 10 images YOLOv5n loses twice as much, with 100 less."""


def migratable(model: Model, plan: Plan) -> dict[str, list[Node]]:
    """Return the tensors whose scales can go into the weights that read them, and the layers on integers that do.

    Each of these layers is a Conv of one group with a constant float32 weight that no other node reads. A tensor that
    another kind of layer on integers reads too is left out, and so are the inputs of the model.

    Args:
        model: the float model.
        plan: its layers on integers.
    """
    nodes = model.nodes
    readers: dict[str, list[Node]] = {}
    for name in plan.layers:
        readers.setdefault(nodes[name].inputs[0].name, []).append(nodes[name])
    return {
        tensor: layers
        for tensor, layers in readers.items()
        if layers[0].inputs[0].inputs and all(_is_plain(layer) for layer in layers)
    }


def _is_plain(layer: Node) -> bool:
    weight = layer.inputs[1]
    return (
        layer.op == "Conv"
        and layer.attrs.get("group", 1) == 1
        and isinstance(weight, Constant)
        and len(weight.outputs) == 1
        and is_float(weight)
    )
