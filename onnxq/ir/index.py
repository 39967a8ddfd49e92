"""Index of a graph message: who produces and who consumes each tensor, constants and element types."""

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxq.ir.proto import names_read
from onnxq.ir.weights.links import values_of


class ProtoIndex:
    """Looks up nodes and tensors of a graph by name.

    Each table is built at its first use; the graph must not change afterwards. Nodes inside subgraphs are not indexed,
    but a node with a subgraph consumes the tensors that the subgraph reads.

    Args:
        graph: of a model.

    Attributes:
        nodes: in graph order.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self.nodes = list(graph.node)

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Tensor -> place in `nodes` of the node that produces it."""
        return {name: place for place, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def producers(self) -> Mapping[str, NodeProto]:
        """Tensor -> the node that produces it; inputs and initializers have none."""
        return {name: self.nodes[place] for name, place in self.positions.items()}

    @cached_property
    def consumers(self) -> Mapping[str, list[NodeProto]]:
        """Tensor -> the nodes that read it, each once, in graph order; unread tensors are missing."""
        consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(names_read(node)):
                consumers.setdefault(name, []).append(node)
        return consumers

    @cached_property
    def initializers(self) -> Mapping[str, TensorProto]:
        """The initializers by name."""
        return {tensor.name: tensor for tensor in self._graph.initializer}

    @cached_property
    def constants(self) -> Mapping[str, TensorProto]:
        """The initializers, and the tensors that Constant nodes hold as their attribute `value`."""
        nodes = [node for node in self.nodes if node.op_type == "Constant"]
        held = {node.output[0]: a.t for node in nodes for a in node.attribute if a.name == "value"}
        return {**held, **self.initializers}

    @cached_property
    def declared(self) -> Mapping[str, onnx.ValueInfoProto]:
        """The tensors that the graph describes: inputs, outputs and inner ones."""
        graph = self._graph
        return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}

    @cached_property
    def types(self) -> Mapping[str, int]:
        """Tensor -> element type (ONNX TensorProto.DataType), as far as the graph states it; 0 if unknown."""
        declared = {name: value.type.tensor_type.elem_type for name, value in self.declared.items()}
        return declared | {name: tensor.data_type for name, tensor in self.constants.items()}

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The inputs that a run must be given: those that no initializer has a value for."""
        return [value for value in self._graph.input if value.name not in self.initializers]

    def values(self, name: str) -> NDArray[np.generic] | None:
        """Return the values of a constant, or None for any other tensor."""
        return values_of(self.constants[name]) if name in self.constants else None

    def ancestors(self, tensors: Iterable[str], given: Collection[str] = ()) -> set[int]:
        """Return the places in `nodes` of all nodes that must run to compute tensors.

        Args:
            tensors: names of the tensors.
            given: names of tensors that need not be computed.
        """
        found: set[int] = set()
        pending = list(tensors)
        while pending:
            name = pending.pop()
            place = self.positions.get(name)
            if name in given or place is None or place in found:
                continue
            found.add(place)
            pending.extend(names_read(self.nodes[place]))
        return found
