"""measure-sensitivity: measures the effect on the outputs of quantizing each piece of the network alone."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from onnxq.calibration.samples import Samples, spread
from onnxq.errors import DataError
from onnxq.facts import CorrectedBiases, LayerSensitivity, Plan, QuantizationParameters, Reconstruction, Sensitivities
from onnxq.ir import Model, Node, before_selection, consumers, ending_at, feeds_only_silu
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.insertion import insert_qdq
from onnxq.runtime.session import Feed, cores, open_session, run_named
from onnxq.runtime.streaming import open_worker_session, workers
from onnxq.targets import Role, Target
from onnxq.yolo.detected_objects import matched_score, read_objects
from onnxq.yolo.detector import Detector

_SAMPLES = 16
"""Samples to measure on, evenly spaced among all."""


class MeasureSensitivity(Analysis[Sensitivities]):
    """Quantizes the pieces of the network one at a time, and compares the outputs with those of the float model.

    A piece is a layer with its activation function, or any other node that computes on integers. Its inputs and weights
    get the scales, integers and biases of the final model; everything else stays float.

    Args:
        samples: the data; it is read again.
        target: its rules define which operators compute and which only move values.
        detector: reads objects from the outputs; if None, or of no known family, only the SQNR is measured.
        progress: called after each piece.

    Raises:
        DataError: there are no samples, or none that can be read again.
    """

    name = "measure-sensitivity"
    gives = Sensitivities
    needs = (Plan, QuantizationParameters)
    uses = (CorrectedBiases, Reconstruction)

    def __init__(
        self, samples: Samples | None, target: Target, detector: Detector | None = None, progress: Progress = silent
    ) -> None:
        self._samples = samples
        self._target = target
        self._detector = detector
        self._progress = progress

    def run(self, model: Model, facts: Facts) -> Sensitivities:
        """Return the sensitivity of each piece."""
        plan, qparams = facts[Plan], facts[QuantizationParameters]
        biases = facts.get(CorrectedBiases) or CorrectedBiases({})
        reconstruction = facts.get(Reconstruction) or Reconstruction({}, {}, {})
        pieces = list(_pieces(model, plan, self._target))
        self._progress("sensitivity", 0, len(pieces))
        feeds = self._feeds()
        plain = model.to_proto()
        at_once = workers(plain)
        tensors = before_selection(plain.graph)
        ends = [*(output.name for output in plain.graph.output), *tensors]
        session = open_session(ending_at(plain, ends), threads=cores(), exact=True)
        expected = [run_named(session, feed) for feed in feeds]
        objects = [read_objects(outputs, self._detector) for outputs in expected]
        del session

        def measure(piece: tuple[str, ...]) -> LayerSensitivity:
            quantized = Model(plain)
            insert_qdq(quantized, plan.only(piece), qparams, biases.only(piece), reconstruction.only(piece))
            session = open_worker_session(ending_at(quantized.to_proto(), ends), at_once)
            meter, matched, total = SqnrMeter(), 0.0, 0.0
            for feed, wanted, float_objects in zip(feeds, expected, objects, strict=True):
                outputs = run_named(session, feed)
                meter.add({name: wanted[name] for name in tensors}, outputs)
                for a, b in zip(float_objects, read_objects(outputs, self._detector), strict=True):
                    score, whole = matched_score(a, b)
                    matched, total = matched + score, total + whole
            sqnr = min(meter.decibels().values(), default=math.inf)
            return LayerSensitivity(piece, sqnr, 1 - matched / total if total else math.nan)

        measured = []
        with ThreadPoolExecutor(at_once) as pool:
            for number, sensitivity in enumerate(pool.map(measure, pieces), start=1):
                measured.append(sensitivity)
                self._progress("sensitivity", number, len(pieces))
        return Sensitivities(tuple(measured), len(feeds))

    def _feeds(self) -> list[Feed]:
        loaders = list(self._samples.loaders) if self._samples else []
        loaded = [load() for load in spread(loaders, _SAMPLES)]
        feeds: list[Feed] = [sample.feed for sample in loaded if sample is not None]
        if not feeds:
            raise DataError(
                "sensitivity runs the model on calibration data, of which there is none that can be read again; "
                "give --calib a folder or a list"
            )
        return feeds


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
