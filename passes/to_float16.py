"""to-float16: operators that are not quantized compute in float16, up to the decode."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from onnxq.facts import DecodeBoundary
from onnxq.ir import (
    Builder,
    Constant,
    Graph,
    Model,
    Node,
    Tensor,
    Variable,
    consumers,
    dtype_of,
    is_float,
    producer,
    replace_uses,
)
from onnxq.pipeline import EVERYTHING, Facts, Rewrite

MIN_OPSET = 19
"""QuantizeLinear and DequantizeLinear take float16 since this version."""

_HALF = "tensor(float16)"

_LARGEST = float(np.finfo(np.float16).max)


class ToFloat16(Rewrite):
    """Turns float32 into float16 for runtimes that take each tensor's type from the file (TensorRT: strongly typed).

    - scales of Q and DQ become float16 too (ONNX, opset 19), so that integer layers give float16 without a Cast
    - the decode stays float32: float16 has steps of half a pixel above 512
    - inputs and outputs of the model keep their types; one Cast per tensor stands at each border, none after an input
      that is float16 already
    - nodes stay float32 if their operator does not take float16 (ONNX schemas), is of another domain or has subgraphs,
      or if they read a constant beyond the range of float16
    """

    name = "to-float16"
    needs = (DecodeBoundary,)
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes that compute in float16."""
        tail = facts[DecodeBoundary].tail
        halves = {id(n): k for n in model.graph.nodes if n.name not in tail and (k := _halved(n, model.opset))}
        if halves:
            _Halving(model, halves).run()
        return len(halves)


def _halved(node: Node, opset: int) -> list[int]:
    """Return the inputs of a node that become float16, as do all its float outputs; [] if it stays float32."""
    schema = _schema(node, opset)
    if schema is None:
        return []
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    kind_of = dict(_formal(schema.inputs, node.inputs))
    inputs = [k for k, kind in kind_of.items() if _has_values(node.inputs[k]) and _HALF in allowed.get(kind, ())]
    output_kinds = {kind for k, kind in _formal(schema.outputs, node.outputs) if is_float(node.outputs[k])}
    fits = all(_fits(node.inputs[k]) for k in inputs)
    return inputs if fits and output_kinds <= {kind_of[k] for k in inputs} else []


def _schema(node: Node, opset: int) -> onnx.defs.OpSchema | None:
    """Return the schema of a node, or None if its type must stay: a Cast, another domain, subgraphs."""
    is_foreign = node.domain not in (None, "", "ai.onnx")
    if node.op == "Cast" or is_foreign or any(isinstance(a, Graph) for a in node.attrs.values()):
        return None
    try:
        return onnx.defs.get_schema(node.op, opset)
    except onnx.defs.SchemaError:
        return None


def _formal(
    formal: Sequence[onnx.defs.OpSchema.FormalParameter], actual: Iterable[Tensor]
) -> Iterator[tuple[int, str]]:
    """Yield index and type parameter of each input or output present; the last formal one may be variadic."""
    for index, tensor in enumerate(actual):
        if tensor.name and formal:
            yield index, formal[min(index, len(formal) - 1)].type_str


def _has_values(tensor: Tensor) -> bool:
    return is_float(tensor) and not (isinstance(tensor, Constant) and tensor.values.size == 0)


def _fits(tensor: Tensor) -> bool:
    """Return whether float16 can hold the values of a constant; True for any other tensor."""
    if not isinstance(tensor, Constant):
        return True
    return bool(np.all(np.abs(tensor.values[np.isfinite(tensor.values)]) <= _LARGEST))


class _Halving:
    """Changes the types of a graph; `halves` maps id() of a node to the inputs that become float16."""

    def __init__(self, model: Model, halves: Mapping[int, list[int]]) -> None:
        self._model = model
        self._halves = halves
        self._builder = Builder(model)

    def run(self) -> None:
        behind: dict[int, list[Node]] = {}
        nodes: list[Node] = []
        for tensor in self._model.graph.tensors().values():
            if not is_float(tensor):
                continue
            half = [node for node in consumers(tensor) if self._reads_half(node, tensor)]
            if isinstance(tensor, Constant):
                self._halve_constant(tensor, half)
                continue
            cast = self._halve(tensor, half)
            if cast is not None:
                source = producer(cast.inputs[0])
                (behind.setdefault(id(source), []) if source is not None else nodes).append(cast)
        for node in self._model.graph.nodes:
            nodes += [node, *behind.get(id(node), [])]
        self._model.graph.nodes = nodes

    def _reads_half(self, node: Node, tensor: Tensor) -> bool:
        return any(node.inputs[k] is tensor for k in self._halves.get(id(node), ()))

    def _halve_constant(self, tensor: Constant, half: Sequence[Node]) -> None:
        if half:
            replace_uses(tensor, self._builder.constant(f"{tensor.name}_half", tensor.values.astype(np.float16)), half)

    def _halve(self, tensor: Variable, half: Sequence[Node]) -> Node | None:
        """Make nodes read a tensor as float16, and return the Cast to the other type if both are needed."""
        source = producer(tensor)
        if half and source is not None and source.op == "Cast" and dtype_of(source.inputs[0]) == np.float16:
            replace_uses(tensor, source.inputs[0], half)
            return None
        if source is None or id(source) not in self._halves:
            return self._builder.cast(tensor, self._half(tensor, half), TensorProto.FLOAT16) if half else None
        if len(half) == len(consumers(tensor)) and tensor.name not in self._model.output_names:
            tensor.dtype = np.dtype(np.float16)
            return None
        half_output = self._half(tensor, half)
        source.outputs[next(k for k, t in enumerate(source.outputs) if t is tensor)] = half_output
        return self._builder.cast(half_output, tensor, TensorProto.FLOAT)

    def _half(self, tensor: Variable, readers: Sequence[Node]) -> Variable:
        half = self._builder.variable(f"{tensor.name}_half", np.dtype(np.float16), tensor.shape)
        replace_uses(tensor, half, readers)
        return half
