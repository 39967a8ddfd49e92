"""fold-constants: computes everything that does not depend on the inputs."""

import logging
import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq import memory
from onnxq.errors import ModelError
from onnxq.ir import (
    CONVS,
    Constant,
    Graph,
    Model,
    Node,
    Variable,
    infer_shapes,
    inferred_graph,
    layer_fault,
    node_alone,
    remove,
)
from onnxq.pipeline import Facts, Rewrite
from onnxq.runtime.session import open_session, run

log = logging.getLogger(__name__)

_LARGEST = 1 << 22
"""Greatest number of elements of a stored result: anchors and grids have far fewer, an expanded constant may not."""

_FLOAT = 4
"""Bytes of an element."""

_MOST_GROWTH = 1 << 26
"""Greatest number of elements that all results together may have beyond those that they were computed from."""

_MOST_PRODUCTS = 1 << 34
"""Greatest number of products that one node may add."""

_NEVER = frozenset({
    "Constant", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli",
})  # fmt: skip

_GROWING = frozenset({
    "ConstantOfShape", "Einsum", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample",
})  # fmt: skip
"""Operators whose result may have any number of elements; it is not computed if inference does not find its shape."""


class FoldConstants(Rewrite):
    """Replaces nodes whose inputs are all constant by their results, and Shape nodes by known shapes.

    - anchors, grids and shape arithmetic of the decode become initializers
    - shapes that become known in this way, as from the bounds of a Slice, are used to fold further: PyTorch exports
      `chunk` like this
    - a CastLike of a constant is folded if the type of its second input is known
    - onnxruntime computes the results; a node that it refuses stays, with all that depends on it
    - nodes with subgraphs, random nodes and nodes of other domains stay
    - nodes that make an output of the model stay, and so do results of over four million elements; what a result takes
      is known from its inferred shape before it is computed, and one that no memory should hold is refused
    - unused nodes and constants are removed
    """

    name = "fold-constants"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes removed."""
        before = len(model.graph.nodes)
        budget = _Budget(_MOST_GROWTH)
        while remove(model.graph, _folded(model, budget)):
            model.graph.cleanup()
            infer_shapes(model)
        model.graph.cleanup()
        _check_layers(model)
        return before - len(model.graph.nodes)


class _TooLargeError(ModelError):
    """A result would not fit into memory."""


def _check_layers(model: Model) -> None:
    """Refuse layers whose weights turned out to contradict them."""
    for node in model.graph.nodes:
        shapes = [tuple(t.shape) if isinstance(t, Constant) else None for t in node.inputs]
        data = node.inputs[0].shape if node.inputs else None
        wrong = layer_fault(node.op, shapes, node.attrs, data)
        if wrong:
            raise ModelError(f"node {node.name!r} ({node.op}) {wrong}; export the model again")


@dataclass
class _Budget:
    """How many more elements the results may have than what they are computed from."""

    left: int


def _folded(model: Model, budget: _Budget) -> list[Node]:
    """Fold nodes, and return those whose outputs became constants."""
    outputs = model.output_names
    return [node for node in model.graph.nodes if _fold(node, model, outputs, budget)]


def _fold(node: Node, model: Model, outputs: frozenset[str], budget: _Budget) -> bool:
    """Turn the outputs of a node into constants if they are known; return whether they are."""
    if any(t.name in outputs for t in node.outputs):
        return False
    values = _known_shape(node) or _known_type(node) or _computed(node, model, budget)
    if values is None or sum(v.size for v in values) > _LARGEST:
        return False
    budget.left -= max(0, sum(v.size for v in values) - _size_of_inputs(node))
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


def _computed(node: Node, model: Model, budget: _Budget) -> list[NDArray[np.generic]] | None:
    given = [t for t in node.inputs if t.name]
    if (
        node.op in _NEVER
        or node.domain not in (None, "", "ai.onnx")
        or not all(isinstance(t, Constant) for t in given)
        or any(isinstance(value, Graph) for value in node.attrs.values())
    ):
        return None
    try:
        alone = node_alone(node, model.opset)
        if not _is_small(node, alone, budget):
            return None
        return list(run(open_session(alone, threads=1), {}))
    except _TooLargeError:
        raise
    except ModelError as error:
        log.info("%s %s is not folded: %s", node.op, node.name, error)
        return None


def _is_small(node: Node, alone: onnx.ModelProto, budget: _Budget) -> bool:
    """Return whether the results of a node on constants may be computed; they are small, or larger by little.

    Args:
        node: its inputs are all constant.
        alone: a model of it.
        budget: what is left for results that grow.

    Raises:
        ModelError: the results would not fit into memory.
    """
    given = _size_of_inputs(node)
    sizes = [_size(value) for value in inferred_graph(alone).output]
    known = sum(size for size in sizes if size is not None)
    memory.require(  # whether it is stored or not: a runtime would compute it too
        _FLOAT * known,
        f"node {node.name!r} ({node.op}) makes a constant of {known} elements from {given}, which",
        "export the model again",
        _TooLargeError,
        memory.CONSTANT,
    )
    if None in sizes and node.op in _GROWING:
        return False
    return known <= _LARGEST and known - given <= budget.left and known * _terms(node) <= _MOST_PRODUCTS


def _size_of_inputs(node: Node) -> int:
    return sum(math.prod(t.shape) for t in node.inputs if isinstance(t, Constant))


def _size(value: onnx.ValueInfoProto) -> int | None:
    """Return the number of elements of a tensor; None if its shape is not known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return math.prod(int(dim.dim_value) for dim in tensor.shape.dim)


def _terms(node: Node) -> int:
    """Return how many products one element of the result is the sum of, at most."""
    shapes = [t.shape for t in node.inputs if isinstance(t, Constant) and t.shape]
    if node.op in CONVS:
        return math.prod(shapes[1]) if len(shapes) > 1 else 1
    return max(max(shape) for shape in shapes) if node.op in ("MatMul", "Gemm", "Einsum") and shapes else 1
