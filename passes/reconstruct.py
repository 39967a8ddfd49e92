"""reconstruct: fits each layer so that it reproduces its float output on its quantized input."""

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from onnxq.calibration.feeds import Loader
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.facts import Plan, QuantizationParameters, Reconstruction, Statistics
from onnxq.ir import Model, Node, constant, has_plain_bias, takes_bias
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.pair_limit import PairLimits
from onnxq.qdq.weight_qparams import minimum_scale
from onnxq.reconstruction import RECONSTRUCT_BELOW
from onnxq.reconstruction.float_targets import collect_targets
from onnxq.reconstruction.graph_pair import GraphPair
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.layer_fit import fit_layer
from onnxq.runtime.session import Feed, cores
from onnxq.yolo.detector import Detector

_MOST_THREADS = 8
"""Most matrix products at a time: each has its own sums."""


class Reconstruct(Analysis[Reconstruction]):
    """Fits the layers one after the other, in the graph's order.

    For each layer, sample output positions, half of them inside detected objects: most of an image is background, and
    AP depends on the rest. A: the layer's inputs in the partly quantized graph. T: its outputs in the float graph.
    Solve min ||WA - T||^2 + d ||W - W_float||^2, round with error feedback (GPTQ: Frantar et al., arXiv 2210.17323),
    and put the remaining mean error into the bias. So each layer compensates the rounding before it (AdaRound's
    asymmetric reconstruction: Nagel et al., arXiv 2004.10568, section 3.4).

    The float graph runs once over all samples, then the quantized one layer by layer. Layers that share their weights,
    or whose bias is computed, keep their rounded weights. In a Gemm or MatMul each row is a position; a MatMul has no
    bias.

    Args:
        samples: the data; it is read again, by each graph.
        detector: reads the objects that the float model detects; if None, or of no known family, positions are drawn
            anywhere.
        limited: no sum of two products exceeds 16 bits, as in `ComputeQparams`.
        ranges: also choose the range of a layer's input by the error of the layer's outputs, among ranges around the
            fitted one, if the input has fewer than 8 bits and shares its scale with no other tensor.
        progress: called after each layer.

    Raises:
        DataError: there are no samples, only synthetic ones, or none that can be read again.
    """

    name = "reconstruct"
    gives = Reconstruction
    needs = (Plan, QuantizationParameters)
    uses = (Statistics,)

    def __init__(
        self,
        samples: Samples | None,
        *,
        detector: Detector | None = None,
        limited: bool = True,
        ranges: bool = False,
        progress: Progress = silent,
    ) -> None:
        if samples is None or samples.synthetic:
            raise DataError(
                "reconstruction needs real images, which statistics and synthetic scenes cannot stand for: "
                "give --calib, or --no-reconstruct"
            )
        self._samples = samples
        self._detector = detector
        self._limited = limited
        self._ranges = ranges
        self._progress = progress

    def run(self, model: Model, facts: Facts) -> Reconstruction:
        """Return the fitted parameters.

        Each matrix product takes one thread, because its sums depend on the number of threads; several are computed at
        a time instead. So the result does not depend on the number of cores.
        """
        at_once = min(cores(), _MOST_THREADS)
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(at_once) as pool:
            return self._fitted(model, facts, pool, at_once)

    def _fitted(self, model: Model, facts: Facts, pool: Executor, at_once: int) -> Reconstruction:
        plan, qparams = facts[Plan], facts[QuantizationParameters]
        nodes, tensors = model.nodes, model.graph.tensors()
        weight_of = {weight.users[0]: weight for weight in plan.weights if len(weight.users) == 1}
        statistics = facts.get(Statistics) or Statistics({})
        limits = PairLimits(model, statistics.channels) if self._limited else None
        adjusted = _adjusted(plan, nodes) if self._ranges else []
        self._progress("reconstructing", 0, len(plan.layers))
        fitted = [(nodes[n], im2col) for n in weight_of if has_plain_bias(nodes[n]) and (im2col := Im2col.of(nodes[n]))]
        loaders = tuple(self._samples.loaders)
        targets = collect_targets(model.to_linked_proto(), fitted, loaders, self._detector)
        if not targets.samples:
            raise DataError("the data can be read only once, reconstruction reads it again; give a list or a folder")
        loads = [partial(_feed, loaders[number]) for number in targets.samples]
        graphs = GraphPair(model, plan, qparams, adjusted, loads, pool, at_once)
        found = Reconstruction({}, {}, {})
        for number, name in enumerate(plan.layers):
            node, weight = nodes[name], weight_of.get(name)
            if weight is not None and name in targets.of_layer:
                im2col = targets.of_layer[name].im2col
                values = np.asarray(constant(tensors[weight.tensor]), np.float32)
                # Targets take much of the memory: they go with their layer.
                moments, input_qparams = graphs.moments(targets.of_layer.pop(name), values)
                if input_qparams is not None:
                    found.activations[node.inputs[0].name] = input_qparams
                activations = {**qparams.activations, **found.activations}
                fit = fit_layer(
                    values,
                    weight.scheme,
                    im2col,
                    moments,
                    (qparams.weights[weight.tensor], qparams.quantized(weight.tensor, values)),
                    minimum_scale([node], activations),
                    limits.of([node], weight.scheme, activations) if limits else None,
                )
                found.weights[weight.tensor] = fit.qparams, fit.integers
                if takes_bias(node):
                    found.biases[name] = fit.bias
                graphs.replace(node, fit)
            self._progress("reconstructing", number + 1, len(plan.layers))
        return found


def _adjusted(plan: Plan, nodes: Mapping[str, Node]) -> list[str]:
    """Return the first reader of each tensor below 8 bits that has a scale of its own, found from data."""
    groups = plan.groups().values()
    own = {p.tensor for p, *more in groups if not more and p.known is None and p.scheme.bits < RECONSTRUCT_BELOW}
    first: dict[str, str] = {}
    for name in plan.layers:
        first.setdefault(nodes[name].inputs[0].name, name)
    return [name for tensor, name in first.items() if tensor in own]


def _feed(loader: Loader) -> Feed:
    """Load a sample that could be read before."""
    sample = loader()
    if sample is None:
        raise DataError("an image could not be read a second time; keep the images while this runs")
    return sample.feed
