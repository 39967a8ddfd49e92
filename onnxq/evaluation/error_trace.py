"""Where along a graph a quantized model departs from its float model: noise in every tensor that both compute."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from onnxq.ir import MOVES_VALUES, ProtoIndex, ending_at
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.runtime.session import Feed, iter_outputs
from onnxq.runtime.streaming import open_worker_session

_FLOATS = ("tensor(float)", "tensor(float16)")
"""Types of what is traced, as onnxruntime names them; there are integers and sequences of tensors too."""


@dataclass(frozen=True)
class TensorError:
    """Noise in one tensor.

    Attributes:
        tensor: its name.
        node: name of the float model's node that gives it.
        op: that node's operator.
        sqnr: signal-to-quantization-noise ratio, dB.
        drop: how much higher that of the node's worst input is, dB; infinite where its inputs are exact.
        added: by how much the noise's share of the signal's energy is larger than in the worst input.
    """

    tensor: str
    node: str
    op: str
    sqnr: float
    drop: float
    added: float

    @property
    def only_moves(self) -> bool:
        """Whether the node gives values that were there before, so that no error can enter in it."""
        return self.op in MOVES_VALUES


class ErrorTrace:
    """Both models with all the tensors that they share as outputs.

    A tensor is shared if both graphs compute one of its name from the image; what onnxq writes keeps the names. Of a
    quantized tensor this is what it holds before its QuantizeLinear: its own rounding shows in those that read it.

    Args:
        reference: the float model; its nodes are in topological order, as ONNX wants them.
        model: the quantized one.
        at_once: how many samples will be run at a time.

    Raises:
        ModelError: onnxruntime cannot load one of them.
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
        """Run both on one sample; a pair of tensors at a time is compared and forgotten.

        Raises:
            ModelError: one of them cannot be run.
        """
        noise = SqnrMeter()
        if not self._names:  # all outputs would be meant
            return noise
        streams = (iter_outputs(session, feed, self._names) for session in self._sessions)
        for (name, expected), (_, actual) in zip(*streams, strict=True):
            noise.add({name: expected}, {name: actual})
        return noise

    def result(self, noise: SqnrMeter) -> tuple[TensorError, ...]:
        """The tensors in the order of the float graph, by the noise of all samples."""
        ratios, decibels = noise.ratios(), noise.decibels()
        reached: dict[str, float] = {}  # the share of noise in each tensor; where it is not known, what its inputs have
        traced = []
        for node in self._nodes:
            worst = max((reached.get(name, 0.0) for name in node.input), default=0.0)
            for tensor in node.output:
                reached[tensor] = ratio = ratios.get(tensor, worst)
                if tensor in ratios:
                    added = ratio - worst if ratio != worst else 0.0
                    traced.append(
                        TensorError(tensor, node.name, node.op_type, decibels[tensor], _drop(ratio, worst), added)
                    )
        return tuple(traced)


def _drop(ratio: float, worst: float) -> float:
    """From one share of noise to another, dB."""
    if ratio == worst:
        return 0.0
    if min(ratio, worst) == 0 or max(ratio, worst) == math.inf:
        return math.copysign(math.inf, ratio - worst)
    return 10 * math.log10(ratio / worst)


def worst_first(traced: Iterable[TensorError]) -> list[TensorError]:
    """Those in which error enters, from the most added noise on."""
    return sorted((each for each in traced if each.added > 0 and not each.only_moves), key=lambda each: -each.added)


def _computed(graph: onnx.GraphProto) -> list[str]:
    """Names of the tensors that the graph computes from its inputs, in its order."""
    moving = {value.name for value in ProtoIndex(graph).inputs}
    names = []
    for node in graph.node:
        if moving & {*node.input} and node.op_type != "Shape":
            moving.update(node.output)
            names += [name for name in node.output if name]
    return names
