"""Repairs of exported models: faults of exporters that make a runtime or a pass fail."""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from onnxq.errors import ModelError
from onnxq.ir.checks.functions import calls_of, check_functions
from onnxq.ir.checks.layers import check_layers
from onnxq.ir.checks.nodes import check_nodes, check_tensor_values, check_texts, check_values
from onnxq.ir.checks.tensors import check_sparse, check_tensors, node_text
from onnxq.ir.index import ProtoIndex
from onnxq.ir.proto import (
    DEFAULT_DOMAINS,
    IR_VERSION,
    clear_negative_dims,
    graphs_of,
    names_read,
    opset_of,
    restore_weights,
    with_weight_inputs,
)
from onnxq.ir.shape_inference import inferred_graph

_LAYOUT_DOMAIN = "com.microsoft.nchwc"

_FUSED = frozenset({"FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv", "QuickGelu"})
"""Operators of onnxruntime that combine several ONNX operators."""

_LISTS = {
    onnx.AttributeProto.INTS: "ints",
    onnx.AttributeProto.FLOATS: "floats",
    onnx.AttributeProto.STRINGS: "strings",
}
"""Type of an attribute with several values -> the field that holds them."""


def repair(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that computes the same in a form that runtimes accept; the given model is not changed.

    - local functions (ONNX FunctionProto) are inlined
    - a graph without a name gets one; nodes with the same name lose it, except the first
    - duplicate metadata keys, which onnx.checker refuses, keep their last value
    - an IR version newer than the operator sets need is lowered, so that older runtimes read the file
    - operator domains that nodes use and the model does not import are imported, in version 1
    - sparse initializers and sparse Constant nodes become dense, also in subgraphs
    - attributes that are empty lists, which graphsurgeon does not take, are left out; an empty Constant has a tensor
    - nodes are sorted topologically
    - a dimension of -1, which paddle2onnx writes, becomes unknown
    - outputs without a type or shape get the inferred ones
    - wrong type descriptions of inner tensors are removed from float16 models

    Raises:
        ModelError: the model states no operator set or an unknown one; onnxruntime saved it after optimizing it; a
            tensor or a node is malformed; a node depends on itself.
    """
    _check_opset(model)
    _refuse_optimized(model.graph)
    check_texts(model)
    check_tensors(model)
    repaired = with_weight_inputs(model)
    if repaired.functions:
        repaired = inlined(repaired)
    _name_graph(repaired.graph)
    _remove_duplicate_names(repaired.graph)
    _remove_duplicate_metadata(repaired)
    _lower_ir_version(repaired)
    _import_domains(repaired)
    for graph in _graphs(repaired.graph):
        _densify(graph)
    check_values(repaired.graph)
    for graph in _graphs(repaired.graph):
        _remove_empty_lists(graph)
    check_nodes(repaired)
    _sort(repaired.graph)
    clear_negative_dims(repaired.graph)
    _declare_outputs(repaired)
    check_tensor_values(repaired.graph)
    _remove_wrong_types(repaired)
    mended = restore_weights(repaired, model) if repaired != with_weight_inputs(model) else model
    check_layers(mended.graph)
    return mended


def _check_opset(model: onnx.ModelProto) -> None:
    version = opset_of(model)
    newest = onnx.defs.onnx_opset_version()
    if version < 1:
        raise ModelError("the model states no operator set; export it again with opset 17")
    if version > newest:
        raise ModelError(
            f"the model has opset {version}, and the installed onnx knows opsets up to {newest}; "
            "export it with opset 17, or install a newer onnx"
        )


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the nodes of its local functions (ONNX FunctionProto) in place of the calls.

    Raises:
        ModelError: the functions are too large, or cannot be inlined.
    """
    check_functions(model)
    try:
        made = inliner.inline_local_functions(with_weight_inputs(model))
    except (onnx.checker.ValidationError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(f"its local functions cannot be inlined ({cause}); export the model again") from error
    left = next(calls_of(made), None)
    if left is not None:
        raise ModelError(f"{node_text(left)} calls a local function of another opset; export the model again with one")
    return restore_weights(made, model)


def _refuse_optimized(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.domain == _LAYOUT_DOMAIN or (node.domain == "com.microsoft" and node.op_type in _FUSED):
            raise ModelError(
                f"node {node.name or node.output[0]!r} is a {node.op_type} of {node.domain}: onnxruntime saved this "
                "graph after optimizing it; give the model from which it was made"
            )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in graphs_of(attribute):
                yield from _graphs(inner)


def _name_graph(graph: onnx.GraphProto) -> None:
    graph.name = graph.name or "graph"


def _remove_duplicate_names(graph: onnx.GraphProto) -> None:
    """Remove duplicate names of nodes, which onnxruntime refuses; many nodes may have no name."""
    seen = set()
    for node in graph.node:
        if node.name in seen:
            node.name = ""
        seen.add(node.name)


def _remove_duplicate_metadata(model: onnx.ModelProto) -> None:
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if len(entries) < len(model.metadata_props):
        helper.set_model_props(model, entries)


def _lower_ir_version(model: onnx.ModelProto) -> None:
    needed = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = min(model.ir_version, max(IR_VERSION, needed))


def _import_domains(model: onnx.ModelProto) -> None:
    listed = {entry.domain for entry in model.opset_import}
    used = {node.domain for graph in _graphs(model.graph) for node in graph.node} - {*DEFAULT_DOMAINS, *listed}
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(used))


def _densify(graph: onnx.GraphProto) -> None:
    graph.initializer.extend(_dense(f"sparse initializer {s.values.name!r}", s) for s in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                where = f"attribute {attribute.name!r} of {node_text(node)}"
                values = _dense(where, attribute.sparse_tensor)
                attribute.CopyFrom(helper.make_attribute("value", values))


def _remove_empty_lists(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for attribute in list(node.attribute):
            if attribute.type not in _LISTS or getattr(attribute, _LISTS[attribute.type]):
                continue
            node.attribute.remove(attribute)
            if node.op_type == "Constant":
                dtype = np.float32 if attribute.name == "value_floats" else np.int64
                node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(0, dtype))))


def _sort(graph: onnx.GraphProto) -> None:
    """Sort the nodes topologically, as ONNX requires; a sorted graph keeps its order."""
    index = ProtoIndex(graph)
    needs = [{index.positions[name] for name in names_read(node) if name in index.positions} for node in index.nodes]
    if all(max(before, default=-1) < k for k, before in enumerate(needs)):
        return
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError as error:
        node = graph.node[error.args[1][0]]
        raise ModelError(f"node {node.name!r} ({node.op_type}) depends on itself; export the model again") from None
    sorted_nodes = onnx.GraphProto(node=[index.nodes[k] for k in order])
    del graph.node[:]
    graph.node.extend(sorted_nodes.node)


def _declare_outputs(model: onnx.ModelProto) -> None:
    undeclared = [output for output in model.graph.output if not output.type.tensor_type.HasField("shape")]
    if undeclared:
        inferred = {output.name: output for output in inferred_graph(model, data_prop=False).output}
        for output in undeclared:
            output.CopyFrom(inferred[output.name])


def _remove_wrong_types(model: onnx.ModelProto) -> None:
    """Remove wrong type descriptions, which converters to float16 leave and which onnxruntime refuses."""
    graph = model.graph
    if not any(value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in graph.value_info):
        return
    inferred = inferred_graph(model, data_prop=False).value_info
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred, *graph.input, *graph.output)}
    right = [v for v in graph.value_info if types.get(v.name, 0) in (0, v.type.tensor_type.elem_type)]
    if len(right) < len(graph.value_info):
        kept = onnx.GraphProto(value_info=right)
        del graph.value_info[:]
        graph.value_info.extend(kept.value_info)


def _dense(where: str, sparse: onnx.SparseTensorProto) -> TensorProto:
    """Return the dense tensor; indices are into the flattened tensor, or one per axis (ONNX SparseTensorProto)."""
    check_sparse(where, sparse)
    stored = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    values = np.zeros(tuple(sparse.dims), stored.dtype)
    if indices.ndim == 1:
        values.ravel()[indices] = stored
    else:
        values[tuple(indices.T)] = stored
    return numpy_helper.from_array(values, sparse.values.name)
