"""fold-constants: computes everything that does not depend on the inputs."""

import logging

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.ir import Constant, Graph, Model, Node, Variable, infer_shapes, node_alone, remove
from onnxq.pipeline import Facts, Rewrite
from onnxq.runtime.session import open_session, run

log = logging.getLogger(__name__)

_LARGEST = 1 << 22
"""Greatest number of elements of a stored result: anchors and grids have far fewer, an expanded constant may not."""

_NEVER = frozenset({
    "Constant", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli",
})  # fmt: skip


class FoldConstants(Rewrite):
    """Replaces nodes whose inputs are all constant by their results, and Shape nodes by known shapes.

    - anchors, grids and shape arithmetic of the decode become initializers
    - shapes that become known in this way, as from the bounds of a Slice, are used to fold further: PyTorch exports
      `chunk` like this
    - a CastLike of a constant is folded if the type of its second input is known
    - onnxruntime computes the results; a node that it refuses stays, with all that depends on it
    - nodes with subgraphs, random nodes and nodes of other domains stay
    - nodes that make an output of the model stay, and so do results of over four million elements
    - unused nodes and constants are removed
    """

    name = "fold-constants"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes removed."""
        before = len(model.graph.nodes)
        while remove(model.graph, _folded(model)):
            model.graph.cleanup()
            infer_shapes(model)
        model.graph.cleanup()
        return before - len(model.graph.nodes)


def _folded(model: Model) -> list[Node]:
    """Fold nodes, and return those whose outputs became constants."""
    outputs = model.output_names
    return [node for node in model.graph.nodes if _fold(node, model, outputs)]


def _fold(node: Node, model: Model, outputs: frozenset[str]) -> bool:
    """Turn the outputs of a node into constants if they are known; return whether they are."""
    if any(t.name in outputs for t in node.outputs):
        return False
    values = _known_shape(node) or _known_type(node) or _computed(node, model)
    if values is None or sum(v.size for v in values) > _LARGEST:
        return False
    results = [t for t in node.outputs if t.name]
    node.outputs.clear()
    for tensor, array in zip(results, values, strict=True):
        tensor.to_constant(array)
    return True


def _known_shape(node: Node) -> list[NDArray[np.generic]] | None:
    """Return the result of a Shape node (ONNX, opset 1; `start` and `end` since 15) on a tensor of static shape."""
    if node.op != "Shape" or not isinstance(node.inputs[0], Variable):
        return None
    shape = node.inputs[0].shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    return [np.asarray(shape[node.attrs.get("start", 0) : node.attrs.get("end")], np.int64)]


def _known_type(node: Node) -> list[NDArray[np.generic]] | None:
    """Return the result of a CastLike node (ONNX, opset 15) from a constant to the float type of a tensor."""
    if node.op != "CastLike" or not isinstance(node.inputs[0], Constant):
        return None
    kind = node.inputs[1].dtype
    if kind is None or np.dtype(kind) not in (np.float16, np.float32, np.float64):
        return None
    return [node.inputs[0].values.astype(kind)]


def _computed(node: Node, model: Model) -> list[NDArray[np.generic]] | None:
    given = [t for t in node.inputs if t.name]
    if (
        node.op in _NEVER
        or node.domain not in (None, "", "ai.onnx")
        or not all(isinstance(t, Constant) for t in given)
        or any(isinstance(value, Graph) for value in node.attrs.values())
    ):
        return None
    try:
        return list(run(open_session(node_alone(node, model.opset), threads=1), {}))
    except ModelError as error:
        log.info("%s %s is not folded: %s", node.op, node.name, error)
        return None
