"""Parts of models: cut at tensors, or a node alone."""

from collections.abc import Iterable, Mapping

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon import Constant, Node, Variable

from onnxq.ir.index import ProtoIndex
from onnxq.ir.proto import IR_VERSION, copy_fields, names_read


def ending_at(
    model: onnx.ModelProto, tensors: Iterable[str], types: Mapping[str, onnx.ValueInfoProto] | None = None
) -> onnx.ModelProto:
    """Return a copy of a model whose outputs are these tensors.

    The copy has only the nodes and initializers that the tensors depend on, in the same order; all inputs stay, so that
    it takes the same feeds. An output is described as in `types`, else as the model describes it, else only named:
    runtimes infer the rest.

    Args:
        model: not changed.
        tensors: names of tensors of the graph, in the order of the new outputs; each counts once.
        types: tensor -> description.
    """
    names, types = list(dict.fromkeys(tensors)), types or {}
    graph, index = model.graph, ProtoIndex(model.graph)
    nodes = [index.nodes[place] for place in sorted(index.ancestors(names))]
    produced = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in names_read(node)}.union(names)
    part = onnx.ModelProto()
    copy_fields(model, part, "graph")
    copy_fields(graph, part.graph, "node", "initializer", "output", "value_info")
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    part.graph.value_info.extend(v for v in graph.value_info if v.name in produced and v.name not in names)
    part.graph.output.extend(
        types.get(name) or index.declared.get(name) or onnx.ValueInfoProto(name=name) for name in names
    )
    return part


def node_alone(node: Node, opset: int) -> onnx.ModelProto:
    """Return a model of one node whose inputs are all constant; the graph of the node stays as it is.

    Args:
        node: of a graph.
        opset: version of the default operator set that it is written in.
    """
    inputs = [Constant(t.name, t.values) if t.name else Variable.empty() for t in node.inputs]
    alone = Node(node.op, node.name, dict(node.attrs), inputs, [Variable(t.name) for t in node.outputs])
    graph = gs.Graph([alone], outputs=[t for t in alone.outputs if t.name], opset=opset)
    exported: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    exported.ir_version = IR_VERSION
    return exported
