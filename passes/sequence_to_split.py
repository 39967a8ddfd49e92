"""sequence-to-split: turns a SplitToSequence whose pieces are read one by one into a Split."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.ir import Builder, Model, Node, Tensor, constant, consumers, replace_nodes
from onnxq.pipeline import Facts, Rewrite


class SequenceToSplit(Rewrite):
    """Turns a SplitToSequence (ONNX, opset 11) whose pieces are read by SequenceAt into one Split.

    PyTorch's newer exporter writes `chunk` and `split` in this form. A sequence of floats cannot hold integers, and
    runtimes do not optimize through it.

    - the lengths of the pieces are constant; a single length needs an axis of known length
    - every reader is a SequenceAt with a constant index, and no two pick the same piece
    - a SplitToSequence without lengths stays: each piece has length one, and may lose its axis
    """

    name = "sequence-to-split"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of sequences replaced."""
        builder = Builder(model)
        # A reader that is missing here is inside a subgraph.
        here = {id(node) for node in model.graph.nodes}
        outputs = model.output_names
        found = [(n, sizes) for n in model.graph.nodes if (sizes := _pieces(n, outputs)) and _reads_in(here, n)]
        replacements: dict[int, list[Node]] = {}
        for node, sizes in found:
            picks = consumers(node.outputs[0])
            replacements |= {id(pick): [] for pick in picks} | {id(node): [_split(node, picks, sizes, builder)]}
        replace_nodes(model.graph, replacements)
        return len(found)


def _pieces(node: Node, outputs: frozenset[str]) -> list[int] | None:
    """Return the lengths of the pieces, or None if the node and its readers cannot be replaced."""
    if node.op != "SplitToSequence" or len(node.inputs) < 2 or node.outputs[0].name in outputs:
        return None
    sizes = _lengths(constant(node.inputs[1]), _length(node.inputs[0], node.attrs.get("axis", 0)))
    picks = consumers(node.outputs[0])
    if sizes is None or not picks or not all(_picks(pick, len(sizes)) for pick in picks):
        return None
    return sizes if len({_index(pick, len(sizes)) for pick in picks}) == len(picks) else None


def _reads_in(here: set[int], sequence: Node) -> bool:
    return all(id(reader) in here for reader in consumers(sequence.outputs[0]))


def _lengths(given: NDArray[np.generic] | None, whole: int | None) -> list[int] | None:
    if given is None:
        return None
    if given.ndim == 1:
        return [int(size) for size in given]
    size = int(given)
    return None if whole is None or size < 1 else [min(size, whole - start) for start in range(0, whole, size)]


def _length(tensor: Tensor, axis: int) -> int | None:
    """Return the length of an axis of a tensor, or None if it is unknown."""
    if tensor.shape is None or not -len(tensor.shape) <= axis < len(tensor.shape):
        return None
    return tensor.shape[axis] if isinstance(tensor.shape[axis], int) else None


def _picks(node: Node, count: int) -> bool:
    if node.op != "SequenceAt":
        return False
    index = constant(node.inputs[1])
    return index is not None and index.size == 1 and -count <= int(index.item()) < count


def _index(pick: Node, count: int) -> int:
    return int(np.asarray(constant(pick.inputs[1])).item()) % count


def _split(node: Node, picks: Sequence[Node], sizes: Sequence[int], builder: Builder) -> Node:
    """Return the Split (ONNX, opset 13) that produces the picked tensors, and disconnect the nodes that it replaces."""
    picked = {_index(pick, len(sizes)): pick.outputs[0] for pick in picks}
    for k in set(range(len(sizes))) - set(picked):
        picked[k] = builder.variable(f"{node.name}_piece{k}")
    pieces = [picked[k] for k in range(len(sizes))]
    lengths = builder.constant(f"{node.name}_lengths", np.array(sizes, np.int64))
    x, axis = node.inputs[0], node.attrs.get("axis", 0)
    for old in (node, *picks):
        old.inputs.clear()
        old.outputs.clear()
    return builder.node("Split", f"{node.name}_Split", [x, lengths], pieces, axis=axis)
