"""normalize: brings graphs of all exporters into a common form."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from onnx import helper, version_converter

from onnxq.errors import ModelError
from onnxq.ir import (
    INTEGER_OPS,
    QDQ_OPS,
    Constant,
    Graph,
    InferenceError,
    Model,
    Node,
    Variable,
    remove,
    replace_uses,
    restore_weights,
    with_weight_inputs,
)
from onnxq.pipeline import Facts, Rewrite

MIN_OPSET = 13
"""QuantizeLinear takes a scale per channel since this version."""

_PLAIN_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class Normalize(Rewrite):
    """Brings a model into the form that the other passes expect.

    - a model with an older operator set is converted
    - Constant nodes become initializers, and initializers are not inputs
    - Identity and inference-mode Dropout (opset 7) are removed
    - every node has a unique name

    Args:
        least_opset: least version of the operator set after the pass.
        quantized: accept a model that is quantized already.

    Raises:
        ModelError: the model is quantized already, or cannot be converted.
    """

    name = "normalize"

    def __init__(self, least_opset: int = MIN_OPSET, *, quantized: bool = False) -> None:
        self._least_opset = least_opset
        self._quantized = quantized

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of edits."""
        if not self._quantized:
            _refuse_quantized(model.graph)
        return (
            _convert(model, self._least_opset)
            + _initializers_are_no_inputs(model.graph)
            + _constants_to_initializers(model.graph)
            + _bypass_identities(model.graph)
            + _name_nodes(model.graph)
        )


def _refuse_quantized(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op in QDQ_OPS | INTEGER_OPS:
            raise ModelError(
                f"the model is already quantized: node {node.name!r} is a {node.op}; "
                "give the float model from which it was made, or add --requantize"
            )


def _convert(model: Model, least_opset: int) -> int:
    if model.opset >= least_opset:
        return 0
    proto = model.to_linked_proto()
    try:
        converted = restore_weights(version_converter.convert_version(with_weight_inputs(proto), least_opset), proto)
    except (RuntimeError, InferenceError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ModelError(
            f"the model cannot be converted from opset {model.opset} to {least_opset} ({cause}); "
            f"export it again with opset {max(least_opset, 17)}"
        ) from None
    # The converter loses metadata: only the graph and the operator set of its result are used.
    proto.graph.CopyFrom(converted.graph)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = least_opset
    proto.ir_version = max(proto.ir_version, helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True))
    model.replace(proto)
    return 1


def _initializers_are_no_inputs(graph: Graph) -> int:
    """Remove initializers from the inputs; IR versions below 4 require them there."""
    variables = [t for t in graph.inputs if isinstance(t, Variable)]
    edits = len(graph.inputs) - len(variables)
    graph.inputs = variables
    return edits


def _constants_to_initializers(graph: Graph) -> int:
    outputs = {id(t) for t in graph.outputs}
    folded = []
    for node in graph.nodes:
        values = _constant_values(node)
        if values is not None and id(node.outputs[0]) not in outputs:
            output = node.outputs[0]
            node.outputs.clear()
            output.to_constant(values)
            folded.append(node)
    return remove(graph, folded)


def _constant_values(node: Node) -> NDArray[np.generic] | None:
    if node.op != "Constant":
        return None
    value = node.attrs.get("value")
    if isinstance(value, Constant):
        return np.asarray(value.values)
    for attribute, dtype in _PLAIN_CONSTANTS.items():
        if attribute in node.attrs:
            return np.asarray(node.attrs[attribute], dtype)
    return None


def _bypass_identities(graph: Graph) -> int:
    outputs = {id(t) for t in graph.outputs}
    bypassed = []
    for node in graph.nodes:
        if _gives_its_input(node, outputs) and id(node.outputs[0]) not in outputs:
            replace_uses(node.outputs[0], node.inputs[0])
            bypassed.append(node)
    return remove(graph, bypassed)


def _gives_its_input(node: Node, outputs: Collection[int]) -> bool:
    """Return whether the node is an Identity, or a Dropout in inference mode whose mask is unused."""
    if node.op != "Dropout":
        return bool(node.op == "Identity")
    trains = node.inputs[2:] and not (isinstance(node.inputs[2], Constant) and not node.inputs[2].values.any())
    return not trains and not any(mask.outputs or id(mask) in outputs for mask in node.outputs[1:])


def _name_nodes(graph: Graph) -> int:
    """Name nodes without a name, or with the name of another node, after their operator and place."""
    taken = {node.name for node in graph.nodes}
    edits = 0
    kept: set[str] = set()
    for index, node in enumerate(graph.nodes):
        if node.name and node.name not in kept:
            kept.add(node.name)
            continue
        name = f"{node.name or node.op}_{index}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)
        edits += 1
    return edits
