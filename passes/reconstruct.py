"""reconstruct: fits each layer so that it reproduces its float output on its quantized input."""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import chain

import numpy as np
from threadpoolctl import threadpool_limits

from onnxq.calibration.feeds import Loader
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.facts import Migration, Plan, QuantizationParameters, QuantizedWeight, Reconstruction, Statistics
from onnxq.ir import Model, Node, Tensor, constant, takes_bias
from onnxq.numerics.arrays import AnyArray, Float32Array, Float64Array
from onnxq.numerics.scheme import QParams, Scheme
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.migration import DividedInput, divided_inputs, multiplied_weight
from onnxq.qdq.pair_limit import PairLimit, PairLimits
from onnxq.qdq.weight_qparams import minimum_scale, weight_qparams
from onnxq.reconstruction import RECONSTRUCT_BELOW
from onnxq.reconstruction.float_targets import LayerTargets, collect_targets
from onnxq.reconstruction.graph_pair import GraphPair
from onnxq.reconstruction.layer_fit import fit_weight
from onnxq.reconstruction.least_squares import JoinedMoments
from onnxq.reconstruction.limited_weight import limit_weight
from onnxq.reconstruction.walk import products_of, steps
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

    Layers that share a weight are fitted together, once, on the sums over the positions of all, before any of them
    runs: they come out of the graph's order (`onnxq.reconstruction.walk`). If one of them reads what another has
    computed, the weight is fitted anew at each, on all that were reached; earlier ones have run with an earlier fit.
    Each has a bias of its own.

    The float graph runs once over all samples, then the quantized one layer by layer. Layers whose bias is computed,
    and those that share a weight with one, keep their rounded weights; a warning tells of them if they are many. In a
    Gemm or MatMul each row is a position; a MatMul has no bias.

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
        plan, nodes = facts[Plan], model.nodes
        self._progress("reconstructing", 0, len(plan.layers))
        of_weight = {weight: products for weight in plan.weights if (products := products_of(weight, nodes))}
        products = {name: im2col for of_users in of_weight.values() for name, im2col in of_users.items()}
        _tell_of_others(plan, model.graph.tensors(), products)
        if not products:
            return Reconstruction({}, {}, {})
        loaders = tuple(self._samples.loaders)
        layers = [(nodes[name], im2col) for name, im2col in products.items()]
        targets = collect_targets(model.to_linked_proto(), layers, loaders, self._detector)
        if not targets.samples:
            raise DataError("the data can be read only once, reconstruction reads it again; give a list or a folder")
        loads = [partial(_feed, loaders[number]) for number in targets.samples]
        order = steps(model, plan.layers, of_weight)
        migration = (facts.get(Migration) if self._scales else None) or Migration({})
        statistics = facts.get(Statistics) or Statistics({})
        divided = {
            each.layers[0]: each
            for each in divided_inputs(model, plan, migration.scales)
            if products.keys() >= {*each.layers} and each.quotient in statistics.channels
        }
        first = _adjusted(plan, nodes, chain.from_iterable(order)) if self._ranges else []
        adjusted = [name for name in first if name not in divided]
        inputs = list(divided.values())
        graphs = GraphPair(model, plan, facts[QuantizationParameters], adjusted, loads, pool, at_once, inputs)
        walk = _Walk(model, facts, graphs, targets.of_layer, divided, limited=self._limited, ranges=self._ranges)
        done = 0
        for step in order:
            walk.fit(step)
            done += len(step)
            self._progress("reconstructing", done, len(plan.layers))
        return walk.found


class _Walk:
    """Fits the weights, step by step.

    Attributes:
        found: what was fitted so far.

    Args:
        model: the float graph.
        facts: of it.
        graphs: the quantized graph beside it.
        targets: of the layers to fit; they take much of the memory, so each goes with its layer.
        divided: first layer that reads an input whose scales are chosen again -> the input.
        limited, ranges: as for `Reconstruct`.
    """

    def __init__(
        self,
        model: Model,
        facts: Facts,
        graphs: GraphPair,
        targets: dict[str, LayerTargets],
        divided: Mapping[str, DividedInput],
        *,
        limited: bool,
        ranges: bool,
    ) -> None:
        self.found = Reconstruction({}, {}, {})
        self._nodes, self._tensors = model.nodes, model.graph.tensors()
        self._qparams = facts[QuantizationParameters]
        self._weights = {name: weight for weight in facts[Plan].weights for name in weight.users}
        self._channels = dict((facts.get(Statistics) or Statistics({})).channels)
        self._limits = PairLimits(model, self._channels) if limited else None
        self._graphs = graphs
        self._targets = targets
        self._divided = divided
        self._ranges = ranges
        self._ratios: dict[str, Float32Array] = {}
        self._joined: dict[str, JoinedMoments] = {}

    def fit(self, layers: Sequence[str]) -> None:
        """Fit a weight to layers that share it, and to those of earlier steps; nothing if they have no targets."""
        if layers[0] not in self._targets:
            return
        weight, im2col = self._weights[layers[0]], self._targets[layers[0]].im2col
        for name in layers:
            self._collect(weight, name)
        values, joined = self._float_weight(layers[0]), self._joined[weight.tensor]
        users = [self._nodes[name] for name in weight.users]
        activations = {**self._qparams.activations, **self.found.activations}
        least_scale = minimum_scale(users, activations)
        limit = self._limits.of(users, weight.scheme, activations) if self._limits else None
        if users[0].inputs[0].name in self._ratios:
            rounded = _rounded(values, weight.scheme, least_scale, limit)
        else:
            rounded = self._qparams.weights[weight.tensor], self._qparams.quantized(weight.tensor, values)
        fit = fit_weight(values, weight.scheme, im2col, joined.moments, rounded, least_scale, limit)
        self.found.weights[weight.tensor] = fit.qparams, fit.integers
        reached = [user for user in users if user.name not in self._targets]
        for user in reached:
            bias = fit.bias(im2col, joined.means[user.name]) if takes_bias(user) else None
            if bias is not None:
                self.found.biases[user.name] = bias
            self._graphs.replace(user.name, fit, bias)
        if len(reached) == len(users):
            del self._joined[weight.tensor]

    def _collect(self, weight: QuantizedWeight, layer: str) -> None:
        """Join the moments of a layer to those of its weight; first choose what divides its input, and its range."""
        if layer in self._divided:
            self._choose_scales(self._divided[layer])
        moments, qparams = self._graphs.moments(self._targets.pop(layer), self._float_weight(layer))
        if qparams is not None:
            self.found.activations[self._nodes[layer].inputs[0].name] = qparams
        if weight.tensor in self._joined:
            self._joined[weight.tensor].add(layer, moments)
        else:
            self._joined[weight.tensor] = JoinedMoments.of(layer, moments)

    def _choose_scales(self, divided: DividedInput) -> None:
        readers = [(self._targets[n], self._weights[n].scheme, self._float_weight(n)) for n in divided.layers]
        quotient = divided.quotient
        is_narrow = self._qparams.activations[quotient].scheme.bits < RECONSTRUCT_BELOW
        peaks = self._channels[quotient].peaks
        chosen = self._graphs.choose_scales(divided, readers, peaks, ranges=self._ranges and is_narrow)
        self.found.scales[divided.tensor], self.found.activations[quotient] = chosen.scales, chosen.qparams
        self._ratios[quotient] = ratio = chosen.scales * np.reciprocal(divided.scales)
        self._channels[quotient] = self._channels[quotient].divided(ratio)

    def _float_weight(self, layer: str) -> Float32Array:
        """Return the float weight of a layer, for the input as it is divided now."""
        values = np.asarray(constant(self._tensors[self._weights[layer].tensor]), np.float32)
        ratio = self._ratios.get(self._nodes[layer].inputs[0].name)
        return values if ratio is None else multiplied_weight(self._nodes[layer], ratio)


def _tell_of_others(plan: Plan, tensors: Mapping[str, Tensor], fitted: Collection[str]) -> None:
    """Warn of layers that are not fitted, if they have a share of the weights that shows in the outputs."""
    sizes = {user: math.prod(tensors[weight.tensor].shape) for weight in plan.weights for user in weight.users}
    others = [name for name in plan.layers if name not in fitted]
    if sum(sizes[name] for name in others) < _LEAST_TOLD * sum(sizes.values()):
        return
    log.warning(
        "%s of %d layers cannot be reconstructed: they have a computed bias, are of a kind that is not fitted, or "
        "share a weight with one that is not. Their weights are rounded to nearest. The first is %s; --bits gives "
        "layers more bits",
        len(others) if fitted else "all", len(plan.layers), others[0],
    )  # fmt: skip


def _rounded(
    weight: Float32Array, scheme: Scheme, least_scale: Float64Array, limit: PairLimit | None
) -> tuple[QParams, AnyArray]:
    """Return scales and integers of a weight that is rounded to nearest, within the limit."""
    nearest = weight_qparams(scheme, weight, least_scale=least_scale)
    limited = None if limit is None else limit_weight(weight, nearest, limit)
    return (nearest, nearest.quantize(weight)) if limited is None else (limited.qparams, limited.integers)


def _adjusted(plan: Plan, nodes: Mapping[str, Node], layers: Iterable[str]) -> list[str]:
    """Return the first of the layers that reads each tensor below 8 bits with a scale of its own, found from data."""
    groups = plan.groups().values()
    own = {p.tensor for p, *more in groups if not more and p.known is None and p.scheme.bits < RECONSTRUCT_BELOW}
    first: dict[str, str] = {}
    for name in layers:
        first.setdefault(nodes[name].inputs[0].name, name)
    return [name for tensor, name in first.items() if tensor in own]


def _feed(loader: Loader) -> Feed:
    """Load a sample that could be read before."""
    sample = loader()
    if sample is None:
        raise DataError("an image could not be read a second time; keep the images while this runs")
    return sample.feed
