"""measure-sensitivity: how much each piece of the network costs when it alone is quantized."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from onnxq.calibration.samples import Samples, spread
from onnxq.errors import DataError
from onnxq.facts import CorrectedBiases, LayerSensitivity, Plan, QuantizationParameters, Reconstruction, Sensitivities
from onnxq.ir import Model, Node, consumers, feeds_only_silu
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
"""Looked at, evenly spaced ones of all."""


class MeasureSensitivity(Analysis[Sensitivities]):
    """Quantizes the pieces of the network one at a time, and compares the outputs with the float ones.

    A piece is a layer with the activation behind it, or any other node that computes on integers. Its inputs and
    weights get the grids, integers and biases that they will have in the end, all else stays float.

    Args:
        samples: the data, which is read again.
        target: tells what computes and what only moves values.
        detector: tells what the outputs mean; None, or of no known family: signal and noise are all there is.
        progress: told after each piece.

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
        """Find the fact; the graph is not touched."""
        plan, grid = facts[Plan], facts[QuantizationParameters]
        biases, rebuilt = (
            facts.get(CorrectedBiases) or CorrectedBiases({}),
            facts.get(Reconstruction) or Reconstruction({}, {}, {}),
        )
        pieces = list(_pieces(model, plan, self._target))
        self._progress("sensitivity", 0, len(pieces))
        feeds = self._feeds()
        plain = model.to_proto()
        at_once = workers(plain)
        session = open_session(plain, threads=cores(), exact=True)
        expected = [run_named(session, feed) for feed in feeds]
        seen = [read_objects(outputs, self._detector) for outputs in expected]
        del session

        def damage(piece: tuple[str, ...]) -> LayerSensitivity:
            alone = Model(plain)
            insert_qdq(alone, plan.only(piece), grid, biases.only(piece), rebuilt.only(piece))
            session = open_worker_session(alone.to_proto(), at_once)
            noise, covered, scores = SqnrMeter(), 0.0, 0.0
            for feed, wanted, objects in zip(feeds, expected, seen, strict=True):
                found = run_named(session, feed)
                noise.add(wanted, found)
                for a, b in zip(objects, read_objects(found, self._detector), strict=True):
                    share, whole = matched_score(a, b)
                    covered, scores = covered + share, scores + whole
            sqnr = min(noise.decibels().values(), default=math.inf)
            return LayerSensitivity(piece, sqnr, 1 - covered / scores if scores else math.nan)

        found = []
        with ThreadPoolExecutor(at_once) as pool:
            for number, one in enumerate(pool.map(damage, pieces), start=1):
                found.append(one)
                self._progress("sensitivity", number, len(pieces))
        return Sensitivities(tuple(found), len(feeds))

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
    """Names of the nodes of each piece, in the graph's order."""
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
    """What reads a layer's output and nothing else does: a SiLU, or an operator that is one with it."""
    [output] = layer.outputs
    behind = consumers(output)
    if feeds_only_silu(output):
        return behind
    return behind if len(behind) == 1 and behind[0].op in target.fused_activations else []
