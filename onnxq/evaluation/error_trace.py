"""Error along the graph: noise of a quantized model in every tensor that the float model computes too."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from onnxq.ir import MOVES_VALUES, ProtoIndex, ending_at
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.runtime.session import Feed, iter_outputs
from onnxq.runtime.streaming import open_worker_session

_FLOATS = ("tensor(float)", "tensor(float16)")
"""Types of the traced tensors in onnxruntime's words; integers and sequences are left out."""


@dataclass(frozen=True)
class TensorError:
    """Noise in one tensor.

    Attributes:
        tensor: name of the tensor.
        node: name of the node of the float model that computes it.
        op: operator of this node.
        sqnr: signal-to-quantization-noise ratio, dB.
        drop: SQNR of the node's noisiest input minus `sqnr`, dB; infinite if the inputs have no noise.
        added: noise-to-signal ratio of energies minus that of the node's noisiest input.
    """

    tensor: str
    node: str
    op: str
    sqnr: float
    drop: float
    added: float

    @property
    def only_moves(self) -> bool:
        """Whether the node only moves values, so that it adds no error of its own."""
        return self.op in MOVES_VALUES


class ErrorTrace:
    """Runs both models with all their shared tensors as outputs.

    A tensor is shared if both graphs compute a tensor of its name from the inputs; onnxq keeps names. A quantized
    tensor is compared before its QuantizeLinear, so its own rounding shows in its consumers.

    Args:
        reference: the float model, with nodes in topological order.
        model: the quantized model.
        at_once: number of samples that run at a time.

    Raises:
        ModelError: onnxruntime cannot load a model.
    """

    def __init__(self, reference: onnx.ModelProto, model: onnx.ModelProto, at_once: int) -> None:
        self._nodes = reference.graph.node
        own = ProtoIndex(model.graph).producers
        shared = [name for name in _computed(reference.graph) if name in own]
        models = [ending_at(each, shared) for each in (reference, model)] if shared else []
        self._sessions = [open_worker_session(each, at_once) for each in models]
        kinds = [{value.name: value.type for value in session.get_outputs()} for session in self._sessions]
        self._names = [name for name in shared if all(kind[name] in _FLOATS for kind in kinds)]

    def __call__(self, feed: Feed) -> SqnrMeter:
        """Run both models on one sample, and compare one pair of tensors at a time to save memory.

        Raises:
            ModelError: a model cannot be run.
        """
        meter = SqnrMeter()
        if not self._names:  # an empty list would select all outputs
            return meter
        streams = (iter_outputs(session, feed, self._names) for session in self._sessions)
        for (name, expected), (_, actual) in zip(*streams, strict=True):
            meter.add({name: expected}, {name: actual})
        return meter

    def result(self, meter: SqnrMeter) -> tuple[TensorError, ...]:
        """Return the errors of all tensors in the order of the float graph, from the noise of all samples."""
        ratios, decibels = meter.ratios(), meter.decibels()
        reached: dict[str, float] = {}  # noise-to-signal ratio of each tensor; if not measured, that of its inputs
        errors = []
        for node in self._nodes:
            worst = max((reached.get(name, 0.0) for name in node.input), default=0.0)
            for tensor in node.output:
                reached[tensor] = ratio = ratios.get(tensor, worst)
                if tensor in ratios:
                    added = ratio - worst if ratio != worst else 0.0
                    errors.append(
                        TensorError(tensor, node.name, node.op_type, decibels[tensor], _drop(ratio, worst), added)
                    )
        return tuple(errors)


def _drop(ratio: float, worst: float) -> float:
    """Return the ratio of two noise-to-signal ratios, dB."""
    if ratio == worst:
        return 0.0
    if min(ratio, worst) == 0 or max(ratio, worst) == math.inf:
        return math.copysign(math.inf, ratio - worst)
    return 10 * math.log10(ratio / worst)


def worst_first(errors: Iterable[TensorError]) -> list[TensorError]:
    """Return the tensors whose node adds error, the most added noise first."""
    return sorted((each for each in errors if each.added > 0 and not each.only_moves), key=lambda each: -each.added)


def _computed(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the tensors that the graph computes from its inputs, in the order of the graph."""
    variable = {value.name for value in ProtoIndex(graph).inputs}
    names = []
    for node in graph.node:
        if variable & {*node.input} and node.op_type != "Shape":
            variable.update(node.output)
            names += [name for name in node.output if name]
    return names
