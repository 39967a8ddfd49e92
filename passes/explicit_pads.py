"""explicit-pads: writes the padding that `auto_pad` stands for into Convs and pools."""

from collections.abc import Sequence

from onnxq.ir import Model, Node
from onnxq.pipeline import Facts, Rewrite


class ExplicitPads(Rewrite):
    """Replaces `auto_pad` by the `pads` that it stands for; TensorFlow's converters write it.

    - Conv, MaxPool and AveragePool (ONNX opset 11 and later) with VALID, SAME_UPPER or SAME_LOWER
    - for SAME, a stride above 1 needs a known length of the axis; without it the node stays as it is, and so does one
      with dilations, which onnxruntime refuses

    A pool with `ceil_mode` stays too, and so does a ConvTranspose, whose `auto_pad` sets the size of its output.
    """

    name = "explicit-pads"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes whose padding was written."""
        edits = 0
        for node in model.graph.nodes:
            if node.op in ("Conv", "MaxPool", "AveragePool") and not node.attrs.get("ceil_mode", 0):
                pads = _pads(node)
                if pads is not None:
                    node.attrs["pads"] = pads
                    del node.attrs["auto_pad"]
                    edits += 1
        return edits


def _pads(node: Node) -> list[int] | None:
    """Return the padding of a node with `auto_pad`, in the order of `pads`; None if it has none or it is not known."""
    mode = node.attrs.get("auto_pad", "NOTSET")
    kernel = node.attrs.get("kernel_shape") or (node.inputs[1].shape or ())[2:]
    if mode == "NOTSET" or not kernel:
        return None
    if mode == "VALID":
        return [0] * (2 * len(kernel))
    ones = [1] * len(kernel)
    lengths: Sequence[object] = (node.inputs[0].shape or [None] * (2 + len(kernel)))[2:]
    if list(node.attrs.get("dilations", ones)) != ones:
        return None
    before, after = [], []
    for axis in zip(lengths, kernel, node.attrs.get("strides", ones), strict=True):
        total = _total(*axis)
        if total is None:
            return None
        less, more = total // 2, total - total // 2
        before.append(more if mode == "SAME_LOWER" else less)
        after.append(less if mode == "SAME_LOWER" else more)
    return [*before, *after]


def _total(length: object, kernel: int, stride: int) -> int | None:
    """Return the padding of an axis on both sides, so that its output has `length / stride` values, rounded up."""
    if stride == 1:
        return kernel - 1
    return max(0, (-(-length // stride) - 1) * stride + kernel - length) if isinstance(length, int) else None
