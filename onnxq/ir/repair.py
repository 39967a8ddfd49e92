"""What exporters write that a runtime or a pass would stumble over, mended before anything looks at the model."""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from onnxq.errors import ModelError
from onnxq.ir.index import ProtoIndex
from onnxq.ir.proto import (
    DEFAULT_DOMAINS,
    IR_VERSION,
    names_read,
    opset_of,
    restore_weights,
    with_weight_inputs,
)
from onnxq.ir.shape_inference import inferred_graph

_LAYOUT_DOMAIN = "com.microsoft.nchwc"

_FUSED = frozenset({"FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv", "QuickGelu"})
"""Operators of onnxruntime that stand for several of ONNX."""


def repair(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that computes the same in a form that runtimes take; the given one is not changed.

    - functions of the model's own (ONNX FunctionProto) are inlined
    - a graph without a name gets one; of nodes with one name only the first keeps it
    - of metadata entries with one key, which onnx.checker refuses, only the last stays
    - an IR version newer than the operator sets need is lowered, so that older runtimes read the file too
    - operator domains that the nodes use and the model does not list are listed, in version 1
    - sparse initializers and sparse Constant nodes, in subgraphs too, are written out
    - nodes stand behind what they read
    - a size of -1, as paddle2onnx writes it, becomes one that is not known
    - outputs without a type or shape get those that follow from the inputs
    - of float16 models, inner tensors said to be of another type than they are are described no more

    Raises:
        ModelError: the model does not say which operator set it is written in, or says one that is not known; it is
            what onnxruntime made of one; or a node depends on itself.
    """
    _check_opset(model)
    _refuse_optimized(model.graph)
    made = with_weight_inputs(model)
    if made.functions:
        made = inliner.inline_local_functions(made)
    _name_graph(made.graph)
    _drop_second_names(made.graph)
    _drop_second_entries(made)
    _lower_ir_version(made)
    _list_domains(made)
    for graph in _graphs(made.graph):
        _write_out_sparse(graph)
    _sort(made.graph)
    _forget_negative_sizes(made.graph)
    _declare_outputs(made)
    _forget_wrong_types(made)
    return restore_weights(made, model) if made != with_weight_inputs(model) else model


def _check_opset(model: onnx.ModelProto) -> None:
    version = opset_of(model)
    newest = onnx.defs.onnx_opset_version()
    if version < 1:
        raise ModelError("the model does not say which operator set it is written in; export it again with opset 17")
    if version > newest:
        raise ModelError(
            f"the model is written in opset {version}, and the installed onnx knows those up to {newest}; "
            "export it with opset 17, or install a newer onnx"
        )


def _refuse_optimized(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.domain == _LAYOUT_DOMAIN or (node.domain == "com.microsoft" and node.op_type in _FUSED):
            raise ModelError(
                f"node {node.name or node.output[0]!r} is a {node.op_type} of {node.domain}: the graph was saved by "
                "onnxruntime after its optimization; give the one that it was made from"
            )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all graphs within."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _name_graph(graph: onnx.GraphProto) -> None:
    graph.name = graph.name or "graph"


def _drop_second_names(graph: onnx.GraphProto) -> None:
    """Nodes without a name may be many; onnxruntime refuses two of one name."""
    seen = set()
    for node in graph.node:
        if node.name in seen:
            node.name = ""
        seen.add(node.name)


def _drop_second_entries(model: onnx.ModelProto) -> None:
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if len(entries) < len(model.metadata_props):
        helper.set_model_props(model, entries)


def _lower_ir_version(model: onnx.ModelProto) -> None:
    needed = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = min(model.ir_version, max(IR_VERSION, needed))


def _list_domains(model: onnx.ModelProto) -> None:
    listed = {entry.domain for entry in model.opset_import}
    used = {node.domain for graph in _graphs(model.graph) for node in graph.node} - {*DEFAULT_DOMAINS, *listed}
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(used))


def _write_out_sparse(graph: onnx.GraphProto) -> None:
    graph.initializer.extend(map(_dense, graph.sparse_initializer))
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                values = _dense(attribute.sparse_tensor)
                attribute.CopyFrom(helper.make_attribute("value", values))


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in topological order, as ONNX wants them; those that are in order keep their places."""
    index = ProtoIndex(graph)
    needs = [{index.positions[name] for name in names_read(node) if name in index.positions} for node in index.nodes]
    if all(max(before, default=-1) < k for k, before in enumerate(needs)):
        return
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError as error:
        node = graph.node[error.args[1][0]]
        raise ModelError(f"node {node.name!r} ({node.op_type}) depends on itself; export the model again") from None
    made = onnx.GraphProto(node=[index.nodes[k] for k in order])
    del graph.node[:]
    graph.node.extend(made.node)


def _forget_negative_sizes(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()


def _declare_outputs(model: onnx.ModelProto) -> None:
    undeclared = [output for output in model.graph.output if not output.type.tensor_type.HasField("shape")]
    if undeclared:
        inferred = {output.name: output for output in inferred_graph(model, data_prop=False).output}
        for output in undeclared:
            output.CopyFrom(inferred[output.name])


def _forget_wrong_types(model: onnx.ModelProto) -> None:
    """Converters to float16 leave such descriptions behind, with which onnxruntime refuses the model."""
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


def _dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    """The tensor in full; indices are those of the flattened tensor, or one per axis (ONNX SparseTensorProto)."""
    stored = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    values = np.zeros(tuple(sparse.dims), stored.dtype)
    if indices.ndim == 1:
        values.ravel()[indices] = stored
    else:
        values[tuple(indices.T)] = stored
    return numpy_helper.from_array(values, sparse.values.name)
