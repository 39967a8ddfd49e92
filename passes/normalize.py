"""normalize: brings graphs of all exporters into a common form."""

import logging
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, version_converter

from onnxq.errors import ModelError
from onnxq.ir import (
    DEFAULT_DOMAINS,
    INTEGER_OPS,
    QDQ_OPS,
    Builder,
    Constant,
    Graph,
    InferenceError,
    Model,
    Node,
    ProtoIndex,
    Variable,
    opset_of,
    remove,
    replace_uses,
    restore_weights,
    values_of,
    with_weight_inputs,
)
from onnxq.pipeline import Facts, Rewrite
from onnxq.runtime.same_function import find_difference, noise_feed
from onnxq.yolo.detector import Detector

log = logging.getLogger(__name__)

MIN_OPSET = 13
"""QuantizeLinear takes a scale per channel since this version."""

_RESIZE_OF_MODES = 11
"""Resize has attributes for its coordinates and its rounding since this version."""

_HARDMAX_OF_ONE_AXIS = 13
"""Hardmax takes one axis since this version."""

_DEPRECATED_GROUP_NORM = range(18, 21)
"""Operator sets in which GroupNormalization has a scale for each group; ONNX deprecated it for that of opset 21."""

_PLAIN_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class Normalize(Rewrite):
    """Brings a model into the form that the other passes expect.

    - GroupNormalization of opset 18 to 20, which onnx.checker refuses and the converter breaks, becomes
      InstanceNormalization (opset 6) between Reshapes: both have a scale and a bias for each group
    - a model with an older operator set is converted by onnx, which changes the function of two operators unless what
      they leave unsaid is written out: a Resize or Upsample before opset 11 has asymmetric coordinates, and a Hardmax
      before opset 13 takes the axes from its own to the last as one. onnxruntime compares both models on noise, if the
      original runs there
    - Constant nodes become initializers, and initializers are not inputs
    - Identity and inference-mode Dropout (opset 7) are removed
    - optional inputs at the end that are left out by an empty name are removed: OpenVINO does not load a ConvTranspose,
      Gemm or ReduceSum with them
    - every node has a unique name

    Args:
        least_opset: least version of the operator set after the pass.
        quantized: accept a model that is quantized already.
        detector: the size of images in a model of dynamic size, for the comparison.

    Raises:
        ModelError: the model is quantized already, or cannot be converted, or an operator would compute otherwise.
    """

    name = "normalize"

    def __init__(
        self, least_opset: int = MIN_OPSET, *, quantized: bool = False, detector: Detector | None = None
    ) -> None:
        self._least_opset = least_opset
        self._quantized = quantized
        self._detector = detector

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of edits."""
        if not self._quantized:
            _refuse_quantized(model.graph)
        return (
            _initializers_are_no_inputs(model.graph)
            + _expand_group_norms(model)
            + _convert(model, self._least_opset, self._detector)
            + _constants_to_initializers(model.graph)
            + _bypass_identities(model.graph)
            + _drop_empty_inputs(model.graph)
            + _name_nodes(model.graph)
        )


def _refuse_quantized(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op in QDQ_OPS | INTEGER_OPS:
            raise ModelError(
                f"the model is already quantized: node {node.name!r} is a {node.op}; "
                "give the float model from which it was made, or add --requantize"
            )


def _expand_group_norms(model: Model) -> int:
    if model.opset not in _DEPRECATED_GROUP_NORM:
        return 0
    builder, nodes, edits = Builder(model), list[Node](), 0
    for node in model.graph.nodes:
        if node.op != "GroupNormalization" or node.domain not in (None, *DEFAULT_DOMAINS):
            nodes.append(node)
            continue
        nodes += _group_norm(node, builder)
        edits += 1
    model.graph.nodes = nodes
    return edits


def _group_norm(node: Node, builder: Builder) -> list[Node]:
    """Return the nodes that replace a GroupNormalization, the last of which has its name and its output."""
    x, scale, bias = node.inputs
    [y] = node.outputs
    node.inputs.clear()
    node.outputs.clear()
    shape = builder.constant(f"{node.name}_groups", np.array([0, node.attrs["num_groups"], -1], np.int64))
    grouped, normal = (builder.variable(f"{node.name}_{name}", x.dtype) for name in ("grouped", "normal"))
    size = builder.variable(f"{node.name}_size", np.dtype(np.int64))
    return [
        builder.node("Reshape", f"{node.name}_Reshape", [x, shape], [grouped]),
        builder.node(
            "InstanceNormalization",
            f"{node.name}_InstanceNormalization",
            [grouped, scale, bias],
            [normal],
            epsilon=node.attrs.get("epsilon", 1e-5),
        ),
        builder.node("Shape", f"{node.name}_Shape", [x], [size]),
        Node("Reshape", node.name, {}, [normal, size], [y]),
    ]


def _convert(model: Model, least_opset: int, detector: Detector | None) -> int:
    if model.opset >= least_opset:
        return 0
    before = model.to_linked_proto()
    after = _converted(before, least_opset)
    _check_function(before, after, detector)
    model.replace(after)
    return 1


def _converted(before: onnx.ModelProto, least_opset: int) -> onnx.ModelProto:
    opset, sketch = opset_of(before), with_weight_inputs(before)
    if opset < _HARDMAX_OF_ONE_AXIS <= least_opset:
        _flatten_for_hardmax(sketch.graph)
    try:
        converted = version_converter.convert_version(sketch, least_opset)
    except (RuntimeError, InferenceError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ModelError(
            f"the model cannot be converted from opset {opset} to {least_opset} ({cause}); {_remedy(least_opset)}"
        ) from None
    if opset < _RESIZE_OF_MODES <= least_opset:
        _write_modes(converted.graph, {})
    # The converter loses metadata: only the graph and the operator set of its result are used.
    after = with_weight_inputs(before)
    after.graph.CopyFrom(restore_weights(converted, before).graph)
    for entry in after.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            entry.version = least_opset
    after.ir_version = max(after.ir_version, helper.find_min_ir_version_for(after.opset_import, ignore_unknown=True))
    return after


def _remedy(least_opset: int) -> str:
    return f"export it again with opset {max(least_opset, 17)}"


def _flatten_for_hardmax(graph: onnx.GraphProto, outer: Collection[str] = ()) -> None:
    """Put each Hardmax behind a Flatten, which makes one axis of those that it takes.

    Args:
        graph: of a model of an old operator set; edited in place.
        outer: names of the tensors of the graphs around it.
    """
    taken, nodes = {*outer, *_tensors(graph)}, list[onnx.NodeProto]()
    for node in graph.node:
        for inner in _graphs_in(node):
            _flatten_for_hardmax(inner, taken)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if node.op_type != "Hardmax" or node.domain not in DEFAULT_DOMAINS or axis == -1:
            nodes.append(node)
            continue
        [x], [y] = node.input, node.output
        shape, flat, found = (_unused(f"{y}_{kind}", taken) for kind in ("shape", "flat", "found"))
        nodes += [
            helper.make_node("Shape", [x], [shape]),
            helper.make_node("Flatten", [x], [flat], axis=axis),
            helper.make_node("Hardmax", [flat], [found], node.name, axis=1),
            helper.make_node("Reshape", [found, shape], [y]),
        ]
    copied = onnx.GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(copied.node)


def _tensors(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of the tensors of a graph and of the graphs inside it."""
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _graphs_in(node):
            yield from _tensors(inner)


def _graphs_in(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _write_modes(graph: onnx.GraphProto, outer: Mapping[str, onnx.TensorProto]) -> None:
    """Give each Resize the modes that the operator had before opset 11, when it had no attributes for them.

    onnxruntime rounds coordinates up along axes that shrink, and down along others; ONNX does not say. Axes whose
    scales are computed are taken for ones that do not shrink.

    Args:
        graph: converted from an older operator set; edited in place.
        outer: constants of the graphs around it.
    """
    constants = {**outer, **ProtoIndex(graph).constants}
    for node in graph.node:
        if node.op_type == "Resize" and node.domain in DEFAULT_DOMAINS:
            scales = values_of(constants[node.input[2]]) if node.input[2] in constants else np.ones(1)
            shrinks = scales.min(initial=1) < 1 and scales.max(initial=1) == 1
            modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if shrinks else "floor"}
            stated = {attribute.name for attribute in node.attribute}
            node.attribute.extend(helper.make_attribute(k, v) for k, v in modes.items() if k not in stated)
        for inner in _graphs_in(node):
            _write_modes(inner, constants)


def _check_function(before: onnx.ModelProto, after: onnx.ModelProto, detector: Detector | None) -> None:
    """Refuse a converted model that does not compute what it computed before."""
    shapes = {} if detector is None else {detector.input_name: detector.preprocess.shape(detector.size)}
    feed = noise_feed(before, shapes)
    if detector is not None and detector.input_name in feed:
        feed |= detector.feed(feed[detector.input_name])
    converted = f"converted from opset {opset_of(before)} to {opset_of(after)} by onnx"
    try:
        found = find_difference(before, after, feed)
    except ModelError as error:
        log.warning("%s, the model does not run: %s; %s", converted, error, _remedy(opset_of(after)))
        return
    if found is None:
        return
    if found.node is None:
        noise = f"the model gives other outputs, {found.sqnr:.1f} dB"
        log.warning("%s, %s; %s", converted, noise, _remedy(opset_of(after)))
        return
    name = found.node.name or found.node.output[0]
    raise ModelError(
        f"{converted}, node {name!r} ({found.node.op_type}) gives other numbers than before, {found.sqnr:.1f} dB on "
        f"the same inputs; {_remedy(opset_of(after))}"
    )


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


def _drop_empty_inputs(graph: Graph) -> int:
    edits = 0
    for node in graph.nodes:
        while node.domain in (None, *DEFAULT_DOMAINS) and node.inputs and not node.inputs[-1].name:
            node.inputs.pop()
            edits += 1
    return edits


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
