"""Insertion of Q/DQ pairs and integer weights into a graph."""

import numpy as np
from numpy.typing import NDArray

from onnxq.facts import (
    CorrectedBiases,
    Plan,
    QuantizationParameters,
    QuantizationPoint,
    QuantizedWeight,
    Reconstruction,
)
from onnxq.ir import Builder, Constant, Model, Node, Tensor, bias_of, constant, replace_uses, set_bias
from onnxq.numerics.scheme import QParams
from onnxq.qdq.migration import divide_otherwise


def insert_qdq(
    model: Model,
    plan: Plan,
    qparams: QuantizationParameters,
    biases: CorrectedBiases | None = None,
    reconstruction: Reconstruction | None = None,
) -> int:
    """Insert the planned pairs and weights as the pass `insert-qdq` describes; return the number of new nodes.

    Args:
        model: edited in place.
        plan: the tensors and weights to quantize.
        qparams: scales and zero points.
        biases: replace the biases of layers.
        reconstruction: replaces rounded weights, all biases of layers, ranges, and what Muls divide channels by.
    """
    if reconstruction is not None:
        divide_otherwise(model, reconstruction.scales)
    return _Insertion(
        model, plan, qparams, biases or CorrectedBiases({}), reconstruction or Reconstruction({}, {}, {})
    ).run()


class _Insertion:
    def __init__(
        self,
        model: Model,
        plan: Plan,
        qparams: QuantizationParameters,
        biases: CorrectedBiases,
        reconstruction: Reconstruction,
    ) -> None:
        self._model = model
        self._plan = plan
        self._qparams = reconstruction.over(qparams)
        self._biases = {**biases.layers, **reconstruction.biases}
        self._tensors = model.graph.tensors()
        self._nodes = model.nodes
        self._builder = Builder(model)
        self._parameters_of: dict[str, list[Constant]] = {}
        self._limits_of: dict[str, list[Constant]] = {}

    def run(self) -> int:
        behind: dict[str, list[Node]] = {}
        for point in self._plan.points:
            producer = self._producer(point.tensor)
            pair = self._activation(point)
            if pair:
                behind.setdefault(producer, []).extend(pair)
        before: dict[str, list[Node]] = {}
        for weight in self._plan.weights:
            tensor = self._tensors.get(weight.tensor)
            if tensor is not None and any(_reads(self._nodes[name], tensor) for name in weight.users):
                before.setdefault(weight.users[0], []).append(self._weight(weight))

        for name, bias in self._biases.items():
            self._set_bias(self._nodes[name], bias)
        nodes = behind.pop("", [])
        for node in self._model.graph.nodes:
            nodes += [*before.get(node.name, []), node, *behind.get(node.name, [])]
        inserted = len(nodes) - len(self._model.graph.nodes)
        self._model.graph.nodes = nodes
        return inserted

    def _producer(self, tensor: str) -> str:
        """Return the name of the node that produces a tensor; "" for inputs and constants."""
        producers = self._tensors[tensor].inputs
        return producers[0].name if producers else ""

    def _activation(self, point: QuantizationPoint) -> list[Node]:
        tensor = self._tensors[point.tensor]
        users = [node for node in map(self._nodes.__getitem__, point.users) if _reads(node, tensor)]
        if not (self._is_float_output(tensor) if point.is_output else users):
            return []
        qparams = self._qparams.activations[point.tensor]
        name = point.tensor
        if point.is_output:
            tensor, dequantized = self._detach_from_producer(tensor, users), tensor
        else:
            dequantized = self._builder.variable(f"{name}_dequantized", np.dtype(np.float32), tensor.shape)
            replace_uses(tensor, dequantized, users)
        quantized = self._builder.variable(f"{name}_quantized", qparams.scheme.dtype, tensor.shape)
        parameters = self._parameters(point.group, qparams)
        nodes = [self._node("QuantizeLinear", name, [tensor, *parameters], quantized, qparams)]
        if not qparams.scheme.fills_container:
            clipped = self._builder.variable(f"{name}_clipped", qparams.scheme.dtype, tensor.shape)
            limits = self._limits(point.group, qparams)
            nodes.append(self._builder.node("Clip", f"{name}_Clip", [quantized, *limits], [clipped]))
            quantized = clipped
        nodes.append(self._node("DequantizeLinear", name, [quantized, *parameters], dequantized, qparams))
        return nodes

    @staticmethod
    def _is_float_output(output: Tensor) -> bool:
        """Return whether no DequantizeLinear makes the output: one does after a first run."""
        return all(node.op != "DequantizeLinear" for node in output.inputs)

    def _detach_from_producer(self, output: Tensor, users: list[Node]) -> Tensor:
        """Return a new tensor that replaces an output of the model as the output of its producer.

        A DequantizeLinear must produce the old tensor, under its name; consumers other than `users` read the new one.
        """
        floats = self._builder.variable(f"{output.name}_float", np.dtype(np.float32), output.shape)
        replace_uses(output, floats, [node for node in output.outputs if node not in users])
        producer = output.inputs[0]
        producer.outputs[next(k for k, t in enumerate(producer.outputs) if t is output)] = floats
        return floats

    def _weight(self, weight: QuantizedWeight) -> Node:
        tensor = self._tensors[weight.tensor]
        qparams = self._qparams.weights[weight.tensor]
        integers = self._qparams.quantized(weight.tensor, np.asarray(constant(tensor), np.float32))
        stored = self._builder.constant(f"{weight.tensor}_quantized", integers)
        dequantized = self._builder.variable(f"{weight.tensor}_dequantized", np.dtype(np.float32), list(integers.shape))
        replace_uses(tensor, dequantized, [self._nodes[name] for name in weight.users])
        return self._node(
            "DequantizeLinear", weight.tensor, [stored, *self._parameters(weight.tensor, qparams)], dequantized, qparams
        )

    def _set_bias(self, layer: Node, bias: NDArray[np.float32]) -> None:
        old = bias_of(layer)
        if old is not None and np.array_equal(old.values, bias):
            return
        name = f"{layer.name}_bias" if old is None else old.name
        set_bias(layer, self._builder.constant(f"{name}_corrected", bias))

    def _parameters(self, name: str, qparams: QParams) -> list[Constant]:
        if name not in self._parameters_of:
            self._parameters_of[name] = [
                self._builder.constant(f"{name}_scale", np.array(qparams.scale)),
                self._builder.constant(f"{name}_zero_point", np.array(qparams.zero_point)),
            ]
        return self._parameters_of[name]

    def _limits(self, name: str, qparams: QParams) -> list[Constant]:
        if name not in self._limits_of:
            self._limits_of[name] = [
                self._builder.constant(f"{name}_qmin", np.array(qparams.scheme.qmin, qparams.scheme.dtype)),
                self._builder.constant(f"{name}_qmax", np.array(qparams.scheme.qmax, qparams.scheme.dtype)),
            ]
        return self._limits_of[name]

    def _node(self, op: str, name: str, inputs: list[Tensor], output: Tensor, qparams: QParams) -> Node:
        attrs = {} if qparams.scheme.axis is None else {"axis": qparams.scheme.axis}
        return self._builder.node(op, f"{name}_{op}", inputs, [output], **attrs)


def _reads(node: Node, tensor: Tensor) -> bool:
    return any(t is tensor for t in node.inputs)
