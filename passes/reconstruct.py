"""reconstruct: fits each layer so that it reproduces its float output on its quantized input."""

import logging
import math
from collections.abc import Collection, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from onnxq.calibration.feeds import Loader
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.facts import Migration, Plan, QuantizationParameters, Reconstruction, Statistics
from onnxq.ir import Model, Node, Tensor, constant, has_plain_bias, takes_bias
from onnxq.numerics.arrays import AnyArray, Float32Array, Float64Array
from onnxq.numerics.scheme import QParams, Scheme
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.migration import divided_inputs, multiplied_weight
from onnxq.qdq.pair_limit import PairLimit, PairLimits
from onnxq.qdq.weight_qparams import minimum_scale, weight_qparams
from onnxq.reconstruction import RECONSTRUCT_BELOW
from onnxq.reconstruction.float_targets import collect_targets
from onnxq.reconstruction.graph_pair import GraphPair
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.layer_fit import fit_layer
from onnxq.reconstruction.limited_weight import limit_weight
from onnxq.runtime.session import Feed, cores
from onnxq.yolo.detector import Detector

log = logging.getLogger(__name__)

_LEAST_TOLD = 0.05
"""Share of all weights that layers have which are told of if they are not fitted."""

_MOST_THREADS = 8
"""Most matrix products at a time: each has its own sums."""


class Reconstruct(Analysis[Reconstruction]):
    """Fits the layers one after the other, in the graph's order.

    For each layer, sample output positions, half of them inside detected objects: most of an image is background, and
    AP depends on the rest. A: the layer's inputs in the partly quantized graph. T: its outputs in the float graph.
    Solve min ||WA - T||^2 + d ||W - W_float||^2, round with error feedback (GPTQ: Frantar et al., arXiv 2210.17323),
    and put the remaining mean error into the bias. So each layer compensates the rounding before it (AdaRound's
    asymmetric reconstruction: Nagel et al., arXiv 2004.10568, section 3.4).

    With `scales`, where a Mul divides channels of a layer's input (`migrate-scales`), its scales are chosen again
    before the first layer that reads the quotients is fitted, with their range, by the error of the outputs of all that
    do so, with fitted and rounded weights. Channels that were divided at their source keep their scales.

    The float graph runs once over all samples, then the quantized one layer by layer. Layers that share their weights,
    or whose bias is computed, keep their rounded weights; a warning tells of them if they are many. In a Gemm or MatMul
    each row is a position; a MatMul has no bias.

    Args:
        samples: the data; it is read again, by each graph.
        detector: reads the objects that the float model detects; if None, or of no known family, positions are drawn
            anywhere.
        limited: no sum of two products exceeds 16 bits, as in `ComputeQparams`.
        ranges: also choose the range of a layer's input by the error of the layer's outputs, among ranges around the
            fitted one, if the input has fewer than 8 bits and shares its scale with no other tensor.
        scales: also choose scales again. It gains if weights have fewer bits than activations.
        progress: called after each layer.

    Raises:
        DataError: there are no samples, only synthetic ones, or none that can be read again.
    """

    name = "reconstruct"
    gives = Reconstruction
    needs = (Plan, QuantizationParameters)
    uses = (Statistics, Migration)

    def __init__(
        self,
        samples: Samples | None,
        *,
        detector: Detector | None = None,
        limited: bool = True,
        ranges: bool = False,
        scales: bool = False,
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
        self._scales = scales
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
        channels = dict(statistics.channels)
        limits = PairLimits(model, channels) if self._limited else None
        self._progress("reconstructing", 0, len(plan.layers))
        fitted = [(nodes[n], im2col) for n in weight_of if has_plain_bias(nodes[n]) and (im2col := Im2col.of(nodes[n]))]
        _tell_of_others(plan, tensors, {node.name for node, _ in fitted})
        if not fitted:
            return Reconstruction({}, {}, {})
        loaders = tuple(self._samples.loaders)
        targets = collect_targets(model.to_linked_proto(), fitted, loaders, self._detector)
        if not targets.samples:
            raise DataError("the data can be read only once, reconstruction reads it again; give a list or a folder")
        loads = [partial(_feed, loaders[number]) for number in targets.samples]
        fitted_layers = weight_of.keys() & targets.of_layer.keys()
        migration = (facts.get(Migration) if self._scales else None) or Migration({})
        divided = {
            each.layers[0]: each
            for each in divided_inputs(model, plan, migration.scales)
            if fitted_layers.issuperset(each.layers) and each.quotient in channels
        }
        adjusted = [name for name in (_adjusted(plan, nodes) if self._ranges else []) if name not in divided]
        graphs = GraphPair(model, plan, qparams, adjusted, loads, pool, at_once, list(divided.values()))
        ratios: dict[str, Float32Array] = {}

        def float_weight(layer: str) -> Float32Array:
            values = np.asarray(constant(tensors[weight_of[layer].tensor]), np.float32)
            ratio = ratios.get(nodes[layer].inputs[0].name)
            return values if ratio is None else multiplied_weight(nodes[layer], ratio)

        found = Reconstruction({}, {}, {})
        for number, name in enumerate(plan.layers):
            node, weight = nodes[name], weight_of.get(name)
            if weight is not None and name in targets.of_layer:
                im2col = targets.of_layer[name].im2col
                each = divided.get(name)
                if each is not None:
                    readers = [(targets.of_layer[n], weight_of[n].scheme, float_weight(n)) for n in each.layers]
                    is_narrow = qparams.activations[each.quotient].scheme.bits < RECONSTRUCT_BELOW
                    peaks = channels[each.quotient].peaks
                    chosen = graphs.choose_scales(each, readers, peaks, ranges=self._ranges and is_narrow)
                    found.scales[each.tensor], found.activations[each.quotient] = chosen.scales, chosen.qparams
                    ratios[each.quotient] = ratio = chosen.scales * np.reciprocal(each.scales)
                    channels[each.quotient] = channels[each.quotient].divided(ratio)
                values = float_weight(name)
                # Targets take much of the memory: they go with their layer.
                moments, input_qparams = graphs.moments(targets.of_layer.pop(name), values)
                if input_qparams is not None:
                    found.activations[node.inputs[0].name] = input_qparams
                activations = {**qparams.activations, **found.activations}
                least_scale = minimum_scale([node], activations)
                limit = limits.of([node], weight.scheme, activations) if limits else None
                if node.inputs[0].name in ratios:
                    rounded = _rounded(values, weight.scheme, least_scale, limit)
                else:
                    rounded = qparams.weights[weight.tensor], qparams.quantized(weight.tensor, values)
                fit = fit_layer(values, weight.scheme, im2col, moments, rounded, least_scale, limit)
                found.weights[weight.tensor] = fit.qparams, fit.integers
                if takes_bias(node):
                    found.biases[name] = fit.bias
                graphs.replace(node, fit)
            self._progress("reconstructing", number + 1, len(plan.layers))
        return found


def _tell_of_others(plan: Plan, tensors: Mapping[str, Tensor], fitted: Collection[str]) -> None:
    """Warn of layers that are not fitted, if they have a share of the weights that shows in the outputs."""
    sizes = {user: math.prod(tensors[weight.tensor].shape) for weight in plan.weights for user in weight.users}
    others = [name for name in plan.layers if name not in fitted]
    if sum(sizes[name] for name in others) < _LEAST_TOLD * sum(sizes.values()):
        return
    log.warning(
        "%s of %d layers cannot be reconstructed, as they share weights, have a computed bias or are of a kind that is "
        "not fitted: their weights are rounded to nearest. The first is %s; --bits gives layers more bits",
        len(others) if fitted else "all", len(plan.layers), others[0],
    )  # fmt: skip


def _rounded(
    weight: Float32Array, scheme: Scheme, least_scale: Float64Array, limit: PairLimit | None
) -> tuple[QParams, AnyArray]:
    """Return scales and integers of a weight that is rounded to nearest, within the limit."""
    nearest = weight_qparams(scheme, weight, least_scale=least_scale)
    limited = None if limit is None else limit_weight(weight, nearest, limit)
    return (nearest, nearest.quantize(weight)) if limited is None else (limited.qparams, limited.integers)


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
