"""measure-sensitivity: measures the effect on the outputs of quantizing each piece of the network alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calibration.feeds import Loader
from onnxq.calibration.samples import Samples, spread
from onnxq.errors import DataError
from onnxq.facts import CorrectedBiases, LayerSensitivity, Plan, QuantizationParameters, Reconstruction, Sensitivities
from onnxq.ir import (
    Model,
    Node,
    before_selection,
    consumers,
    ending_at,
    feeds_only_silu,
    read_from,
    segment_behind,
    segment_from,
)
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.insertion import insert_qdq
from onnxq.runtime.pool import IN_PROCESS, Finished, Pool
from onnxq.runtime.session import Feed, run_named
from onnxq.runtime.streaming import open_worker_session, workers
from onnxq.targets import Role, Target
from onnxq.yolo.detected_objects import DetectedObjects, matched_score, read_objects
from onnxq.yolo.detector import Detector

_SAMPLES = 16
"""Samples to measure on, evenly spaced among all."""

_MOST_BYTES = 1 << 28
"""Most memory of what pieces read on all samples; if it is more, they are measured in the whole network."""


class _Expected(NamedTuple):
    """A sample, and what the float model gives for it.

    Attributes:
        feed: its inputs.
        outputs: the outputs and the tensors to measure at.
        objects: those of each image.
    """

    feed: Feed
    outputs: Mapping[str, NDArray[np.generic]]
    objects: Sequence[DetectedObjects]


class _Stage(NamedTuple):
    """The network behind consecutive pieces, which no earlier piece changes.

    Attributes:
        model: the float model of it.
        inputs: their names.
        values: of each sample; its inputs are among them.
    """

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    values: Sequence[Feed]


class _Latest(NamedTuple):
    """The latest stage of a thread, and where the next one starts from.

    Attributes:
        number: of the stage.
        stage: the stage.
        values: of each sample, from which all that later stages read is computed.
    """

    number: int
    stage: _Stage
    values: list[Feed]


class MeasureSensitivity(Analysis[Sensitivities]):
    """Quantizes the pieces of the network one at a time, and compares the outputs with those of the float model.

    A piece is a layer with its activation function, or any other node that computes on integers. Its inputs and weights
    get the scales, integers and biases of the final model; everything else stays float. What stands before a few pieces
    computes the same for all of them, and continues from what stands before the last few: it runs once for all pieces.

    Args:
        samples: the data; it is read again.
        target: its rules define which operators compute and which only move values.
        detector: reads objects from the outputs; if None, or of no known family, only the SQNR is measured.
        progress: called after each piece.
        pool: where the pieces run; the result does not depend on it.

    Raises:
        DataError: there are no samples, or none that can be read again.
    """

    name = "measure-sensitivity"
    gives = Sensitivities
    needs = (Plan, QuantizationParameters)
    uses = (CorrectedBiases, Reconstruction)

    def __init__(
        self,
        samples: Samples | None,
        target: Target,
        detector: Detector | None = None,
        progress: Progress = silent,
        pool: Pool = IN_PROCESS,
    ) -> None:
        self._samples = samples
        self._target = target
        self._detector = detector
        self._progress = progress
        self._pool = pool

    def run(self, model: Model, facts: Facts) -> Sensitivities:
        """Return the sensitivity of each piece."""
        plan = facts[Plan]
        pieces = list(_pieces(model, plan, self._target))
        self._progress("sensitivity", 0, len(pieces))
        work = _Measuring(
            model.to_proto() if self._pool.is_remote else model.to_linked_proto(),
            pieces,
            plan,
            facts[QuantizationParameters],
            facts.get(CorrectedBiases) or CorrectedBiases({}),
            facts.get(Reconstruction) or Reconstruction({}, {}, {}),
            self._loaders(),
            self._detector,
            self._pool.cores,
        )
        chunks = self._pool.chunks(len(pieces), _SAMPLES)
        found = self._pool.in_order(work, chunks, lambda done: self._progress("sensitivity", done, len(pieces)))
        measured = [sensitivity for of_chunk in found for sensitivity in of_chunk.pieces]
        return Sensitivities(tuple(measured), max((of_chunk.samples for of_chunk in found), default=0))

    def _loaders(self) -> list[Loader]:
        if self._samples is None:
            return []
        return list(spread(list(self._samples.loaders), _SAMPLES))


class _Measuring:
    """Measures a chunk of the pieces; what the float model gives is computed for the first one, and kept.

    Args:
        plain: the float model.
        pieces: names of the nodes of each piece.
        plan, qparams, biases, reconstruction: of the quantized model.
        loaders: of the samples to measure on.
        detector: as in the pass.
        share: cores to use; 0: those of the machine.
    """

    def __init__(
        self,
        plain: onnx.ModelProto,
        pieces: Sequence[tuple[str, ...]],
        plan: Plan,
        qparams: QuantizationParameters,
        biases: CorrectedBiases,
        reconstruction: Reconstruction,
        loaders: Sequence[Loader],
        detector: Detector | None,
        share: int,
    ) -> None:
        self._plain = plain
        self._pieces = pieces
        self._plan = plan
        self._qparams = qparams
        self._biases = biases
        self._reconstruction = reconstruction
        self._loaders = loaders
        self._detector = detector
        self._share = share
        self._at_once = workers(plain, share)
        self._tensors = before_selection(plain.graph)
        self._ends = [*(output.name for output in plain.graph.output), *self._tensors]
        # A stage costs a session, and a piece what stands between both; it is an even number, as two run at once.
        self._in_a_stage = 2 * -(-math.isqrt(len(pieces)) // 4)
        self._idle: list[_Latest] = []

    def __call__(self, chunk: slice, finished: Finished) -> Sensitivities:
        """Return the sensitivity of each piece of the chunk."""
        measured = []
        first = chunk.start or 0
        pieces = list(enumerate(self._pieces[chunk], first))
        with ThreadPoolExecutor(self._at_once) as pool:
            for number, group in groupby(pieces, lambda piece: piece[0] // self._in_a_stage):
                latest = self._at_stage(number)
                for sensitivity in pool.map(partial(self._measure, latest.stage), [piece for _, piece in group]):
                    measured.append(sensitivity)
                    finished(len(measured))
                self._idle.append(latest)
        return Sensitivities(tuple(measured), len(self._expected))

    @cached_property
    def _expected(self) -> list[_Expected]:
        """What the float model gives for each sample."""
        feeds = [sample.feed for load in self._loaders if (sample := load()) is not None]
        if not feeds:
            raise DataError(
                "sensitivity runs the model on calibration data, of which there is none that can be read again; "
                "give --calib a folder or a list"
            )
        session = open_worker_session(ending_at(self._plain, self._ends), self._at_once, self._share)

        def run(feed: Feed) -> _Expected:
            found = run_named(session, feed)
            return _Expected(feed, found, read_objects(found, self._detector))

        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(run, feeds))

    def _at_stage(self, number: int) -> _Latest:
        """Return the network behind the pieces of a number, to which a stage that is idle leads.

        Its values change on the way to the next stage, so each thread has a stage of its own.
        """
        try:
            latest = self._idle.pop()
        except IndexError:
            latest = None
        if latest is None or latest.number > number:
            latest = _Latest(-1, self._whole, list(self._whole.values))
        while latest.number < number:
            latest = self._next(latest.number + 1, latest.values)
        return latest

    @cached_property
    def _whole(self) -> _Stage:
        feeds = [expected.feed for expected in self._expected]
        return _Stage(ending_at(self._plain, self._ends), tuple(feeds[0]), feeds)

    def _next(self, number: int, values: list[Feed]) -> _Latest:
        """Return the stage of a number, computed from the values of an earlier one, which it replaces."""
        first, graph = number * self._in_a_stage, self._plain.graph
        names = {name for piece in self._pieces[first : first + self._in_a_stage] for name in piece}
        part = segment_behind(graph, names, self._ends)
        inner = [name for name in part.inputs if name not in self._expected[0].feed]
        if not (inner and part.outputs and _fits(self._expected[0].outputs, 1)):
            return _Latest(number, self._whole, values)
        place = next(place for place, node in enumerate(graph.node) if node.name in names)
        kept = dict.fromkeys([*part.inputs, *read_from(graph, place)])
        lead = segment_from(graph, values[0].keys(), kept)
        model = lead.model(self._plain, values)
        session = open_worker_session(model, self._at_once, self._share) if lead.outputs else None

        def advanced(feed: Feed) -> Feed:
            found = dict(feed)
            if session is not None:
                found.update(run_named(session, {name: feed[name] for name in lead.inputs}))
            return {name: found[name] for name in kept}

        def advance(sample: int) -> None:
            values[sample] = advanced(values[sample])  # the memory of the earlier values is freed

        one = advanced(values[0])
        if not _fits(one, len(values)):
            return _Latest(number, self._whole, values)
        values[0] = one
        with ThreadPoolExecutor(self._at_once) as pool:
            list(pool.map(advance, range(1, len(values))))
        runs = [{**each, **expected.outputs} for each, expected in zip(values, self._expected, strict=True)]
        return _Latest(number, _Stage(part.model(self._plain, runs), part.inputs, values), values)

    def _measure(self, stage: _Stage, piece: tuple[str, ...]) -> LayerSensitivity:
        quantized = Model(stage.model)
        reconstruction = self._reconstruction.only(piece)
        insert_qdq(quantized, self._plan.only(piece), self._qparams, self._biases.only(piece), reconstruction)
        session = open_worker_session(quantized.to_linked_proto(), self._at_once, self._share)
        meter, matched, total = SqnrMeter(), 0.0, 0.0
        for expected, values in zip(self._expected, stage.values, strict=True):
            found = run_named(session, {name: values[name] for name in stage.inputs})
            outputs = {**expected.outputs, **found}
            meter.add({name: expected.outputs[name] for name in self._tensors}, outputs)
            for a, b in zip(expected.objects, read_objects(outputs, self._detector), strict=True):
                score, whole = matched_score(a, b)
                matched, total = matched + score, total + whole
        sqnr = min(meter.decibels().values(), default=math.inf)
        return LayerSensitivity(piece, sqnr, 1 - matched / total if total else math.nan)


def _fits(values: Mapping[str, object], count: int) -> bool:
    """Return whether so many times these values are tensors, and no sequences of some, that may be held in memory."""
    arrays = [each for each in values.values() if isinstance(each, np.ndarray)]
    return len(arrays) == len(values) and count * sum(each.nbytes for each in arrays) <= _MOST_BYTES


def _pieces(model: Model, plan: Plan, target: Target) -> Iterator[tuple[str, ...]]:
    """Yield the names of the nodes of each piece, in the graph's order."""
    layers, taken = set(plan.layers), set[str]()
    for node in model.graph.nodes:
        if node.name not in plan.integer or node.name in taken or target.rules[node.op].role is Role.CARRIER:
            continue
        piece = [node.name]
        if node.name in layers:
            piece += [n.name for n in _activation(node, target) if n.name in plan.integer]
        taken.update(piece)
        yield tuple(piece)


def _activation(layer: Node, target: Target) -> list[Node]:
    """Return the only readers of a layer's output that run fused with it: a SiLU, or another activation function."""
    [output] = layer.outputs
    readers = consumers(output)
    if feeds_only_silu(output):
        return readers
    return readers if len(readers) == 1 and readers[0].op in target.fused_activations else []
