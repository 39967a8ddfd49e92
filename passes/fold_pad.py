"""fold-pad: moves zero padding from a Pad into the Conv behind it."""

import numpy as np
from numpy.typing import NDArray

from onnxq.ir import Model, Node, constant, producer, remove
from onnxq.pipeline import Facts, Rewrite


class FoldPad(Rewrite):
    """Folds Pad(x) into the `pads` of the Convs that read it; TensorFlow's converters separate the two.

    - Pad of constant zeros, not negative, around height and width (ONNX Pad, opset 13; with `axes`, opset 18)
    - in front of a Conv with padding of its own, or with `auto_pad` VALID

    A Pad stays if another node reads it too, or if it makes an output of the model. ConvTranspose crops by its `pads`,
    and pools do not pad with zeros: a Pad in front of them stays.
    """

    name = "fold-pad"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of Pads folded into Convs."""
        edits = 0
        for conv in model.graph.nodes:
            while conv.op == "Conv" and (pad := producer(conv.inputs[0])) and _fold(pad, conv):
                edits += 1
                if not pad.outputs[0].outputs and pad.outputs[0].name not in model.output_names:
                    remove(model.graph, [pad])
        return edits


def _fold(pad: Node, conv: Node) -> bool:
    """Fold a Pad into a Conv that reads it, if possible; return whether it is folded."""
    margins = _margins(pad)
    if margins is None or conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    conv.attrs.pop("auto_pad", None)
    conv.attrs["pads"] = (margins + np.asarray(conv.attrs.get("pads", [0] * len(margins)))).tolist()
    conv.inputs[0] = pad.inputs[0]
    return True


def _margins(node: Node) -> NDArray[np.int64] | None:
    """Return the zeros before and after each spatial axis in the order of `pads`, int64 (2 * axes,), or None."""
    if node.op != "Pad" or node.attrs.get("mode", "constant") != "constant" or node.inputs[0].shape is None:
        return None
    rank = len(node.inputs[0].shape)
    amounts, value, axes = (
        constant(node.inputs[k]) if len(node.inputs) > k and node.inputs[k].name else default
        for k, default in ((1, None), (2, np.zeros(1)), (3, np.arange(rank)))
    )
    if amounts is None or value is None or axes is None or np.any(value):
        return None
    around = np.zeros((2, rank), np.int64)
    around[:, np.asarray(axes, np.int64)] = np.reshape(amounts, (2, -1))
    return None if around[:, :2].any() or around.min() < 0 else around[:, 2:].ravel()
