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
from onnxq.ir import Model, Node, before_selection, consumers, ending_at, feeds_only_silu, segment_behind
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.insertion import insert_qdq
from onnxq.runtime.pool import IN_PROCESS, Finished, Pool
from onnxq.runtime.session import Feed, cores, open_session, run_named
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
        feeds: its inputs for each sample.
    """

    model: onnx.ModelProto
    feeds: Sequence[Feed]


class MeasureSensitivity(Analysis[Sensitivities]):
    """Quantizes the pieces of the network one at a time, and compares the outputs with those of the float model.

    A piece is a layer with its activation function, or any other node that computes on integers. Its inputs and weights
    get the scales, integers and biases of the final model; everything else stays float. What stands before some pieces
    computes the same for all of them, and runs once.

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
        self._in_a_stage = max(1, math.isqrt(len(pieces)))
        self._latest: tuple[int, _Stage] | None = None

    def __call__(self, chunk: slice, finished: Finished) -> Sensitivities:
        """Return the sensitivity of each piece of the chunk."""
        measured = []
        first = chunk.start or 0
        pieces = list(enumerate(self._pieces[chunk], first))
        with ThreadPoolExecutor(self._at_once) as pool:
            for number, group in groupby(pieces, lambda piece: piece[0] // self._in_a_stage):
                stage = self._stage(number)
                for sensitivity in pool.map(partial(self._measure, stage), [piece for _, piece in group]):
                    measured.append(sensitivity)
                    finished(len(measured))
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
        session = open_session(ending_at(self._plain, self._ends), threads=self._share or cores(), exact=True)
        outputs = ((feed, run_named(session, feed)) for feed in feeds)
        return [_Expected(feed, found, read_objects(found, self._detector)) for feed, found in outputs]

    def _stage(self, number: int) -> _Stage:
        """Return the network behind the pieces of a number; the latest one is kept."""
        latest = self._latest
        if latest is None or latest[0] != number:
            latest = self._latest = None  # its memory is freed first
            latest = self._latest = number, self._made_stage(number)
        return latest[1]

    @cached_property
    def _whole(self) -> _Stage:
        return _Stage(ending_at(self._plain, self._ends), [expected.feed for expected in self._expected])

    def _made_stage(self, number: int) -> _Stage:
        first = number * self._in_a_stage
        names = {name for piece in self._pieces[first : first + self._in_a_stage] for name in piece}
        part = segment_behind(self._plain.graph, names, self._ends)
        feeds = self._whole.feeds
        inner = [name for name in part.inputs if name not in feeds[0]]
        if not (inner and part.outputs and _fits(self._expected[0].outputs, 1)):
            return self._whole
        session = open_session(ending_at(self._plain, inner), threads=self._share or cores(), exact=True)
        inputs: list[Feed] = []
        for feed in feeds:
            found = {**feed, **run_named(session, feed)}
            inputs.append({name: found[name] for name in part.inputs})
            if not _fits(inputs[0], len(feeds)):
                return self._whole
        runs = [{**each, **expected.outputs} for each, expected in zip(inputs, self._expected, strict=True)]
        return _Stage(part.model(self._plain, runs), inputs)

    def _measure(self, stage: _Stage, piece: tuple[str, ...]) -> LayerSensitivity:
        quantized = Model(stage.model)
        reconstruction = self._reconstruction.only(piece)
        insert_qdq(quantized, self._plan.only(piece), self._qparams, self._biases.only(piece), reconstruction)
        session = open_worker_session(quantized.to_linked_proto(), self._at_once, self._share)
        meter, matched, total = SqnrMeter(), 0.0, 0.0
        for expected, feed in zip(self._expected, stage.feeds, strict=True):
            outputs = {**expected.outputs, **run_named(session, feed)}
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
