"""reconstruct: each layer gets the weights and the bias that give, from quantized inputs, what it gave in float."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.feeds import Sample
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.facts import Plan, QuantizationParameters, QuantizedWeight, Reconstruction
from onnxq.ir import Model, Node, Tensor, constant, has_plain_bias, takes_bias
from onnxq.numerics.scheme import QParams, Range
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.insertion import insert_qdq
from onnxq.qdq.weight_qparams import minimum_scale, weight_qparams
from onnxq.reconstruction import RECONSTRUCT_BELOW
from onnxq.reconstruction.im2col import Im2col, Positions
from onnxq.reconstruction.layerwise import LayerwiseRunner
from onnxq.reconstruction.least_squares import (
    Moments,
    best_scale,
    coordinate_descent,
    refit,
    regularized,
    round_with_feedback,
)
from onnxq.yolo.detected_objects import DetectedObjects, detect_objects
from onnxq.yolo.detector import Detector

_POSITIONS = 300
"""Output positions of one image that a layer is fitted at."""

_AT_ONCE = 1 << 14
"""Positions whose products are summed in one go."""

_PULL = 1.0
"""Towards the float weights, as a share of the inputs' mean energy. A fit to the rounded inputs alone has the least
squares, but gives too little where inputs are rare and large, as on objects: with a hundredth of this more AP is lost.
"""

_ROUNDS, _SWEEPS = 2, 3
"""How often scales are fitted to the integers, and how often before each time the integers to the scales."""

_HIGHS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 1.15, 1.3)

_LOWS = (1.0, 0.5, 0.0)
"""Shares of the fitted bounds that are tried where the range is to be found by the layer's outputs."""

_LEAST_FOR_RANGE = 2048
"""Positions that are looked at for this, and three for each input at least."""


class Reconstruct(Analysis[Reconstruction]):
    """Fits the layers one after the other, in the graph's order.

    Of each layer, at positions drawn at random, half of them where the float network sees objects (most of a picture is
    background, and precision hangs on the rest), the inputs A are what the graph quantized so far gives, and the
    outputs T what the float graph gives. Least squares find the weights that make T of A, pulled towards the float
    ones; they are rounded so that later inputs make up for the errors of earlier ones; the bias takes what is left of
    the mean. So each layer undoes what it can of the rounding before it (GPTQ: Frantar et al., arXiv 2210.17323; the
    targets are those of AdaRound's asymmetric reconstruction: Nagel et al., arXiv 2004.10568, section 3.4).

    Both graphs are walked once, all samples side by side. Layers whose weights others share, or whose bias is computed,
    keep their rounded weights. Of a Gemm or MatMul each row is a position; a MatMul has no bias to take what is left.

    Args:
        samples: the data, which is read a second time.
        detector: tells where the network sees objects; None, or of no known family: positions are drawn anywhere.
        ranges: the input of a layer, if it has fewer than 8 bits and a grid of its own, gets the range with which the
            layer's outputs can be had best, of some around the one that was fitted.
        progress: told after each layer.

    Raises:
        DataError: there are no samples, synthetic ones only, or none that can be read again.
    """

    name = "reconstruct"
    gives = Reconstruction
    needs = (Plan, QuantizationParameters)

    def __init__(
        self,
        samples: Samples | None,
        *,
        detector: Detector | None = None,
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
        self._ranges = ranges
        self._progress = progress

    def run(self, model: Model, facts: Facts) -> Reconstruction:
        """Find the fact; the graph is not touched."""
        plan, grid = facts[Plan], facts[QuantizationParameters]
        nodes, tensors = model.nodes, model.graph.tensors()
        weight_of = {w.users[0]: w for w in plan.weights if len(w.users) == 1}
        adjusting = _adjusting(plan, nodes) if self._ranges else set()
        self._progress("reconstructing", 0, len(plan.layers))
        samples = _load(self._samples)
        seen = detect_objects(model.to_proto(), self._detector, [sample.feed for sample in samples])
        walk = _Walk(model, plan, grid, adjusting, samples, seen)
        found = Reconstruction({}, {}, {})
        for number, name in enumerate(plan.layers):
            node, weight = nodes[name], weight_of.get(name)
            unfolding = Im2col.of(node)
            if weight is not None and unfolding is not None and has_plain_bias(node):
                values = np.asarray(constant(tensors[weight.tensor]), np.float32)
                walk.draw(number, node, unfolding)
                if name in adjusting:
                    found.activations[node.inputs[0].name] = walk.fit_range(node, unfolding, values)
                least = minimum_scale([node], {**grid.activations, **found.activations})
                moments, rounded = walk.moments(node, unfolding), grid.weights[weight.tensor]
                fitted, integers, bias = _fit_layer(weight, values, unfolding, moments, rounded, least)
                found.weights[weight.tensor] = fitted, integers
                if takes_bias(node):
                    found.biases[name] = bias
                walk.replace(node, fitted.dequantize(integers), bias)
            self._progress("reconstructing", number + 1, len(plan.layers))
        return found


def _adjusting(plan: Plan, nodes: Mapping[str, Node]) -> set[str]:
    """The first layer that reads each tensor of few levels whose grid is its own and not known without data."""
    groups = plan.groups().values()
    own = {p.tensor for p, *more in groups if not more and p.known is None and p.scheme.bits < RECONSTRUCT_BELOW}
    first: dict[str, str] = {}
    for name in plan.layers:
        first.setdefault(nodes[name].inputs[0].name, name)
    return {name for tensor, name in first.items() if tensor in own}


def _load(samples: Samples) -> list[Sample]:
    loaded = []
    for load in samples.loaders:
        sample = load()
        if sample is not None:
            feed = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in sample.feed.items()}
            loaded.append(Sample(feed, sample.valid))
    if not loaded:
        raise DataError("the data can be read only once, reconstruction reads it again; give a list or a folder")
    return loaded


class _Walk:
    """The float graph and the quantized one, side by side."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        grid: QuantizationParameters,
        adjusting: Collection[str],
        samples: Sequence[Sample],
        seen: Sequence[Sequence[DetectedObjects]],
    ) -> None:
        quantized = Model(model.to_proto())
        insert_qdq(quantized, plan, grid)
        now = quantized.nodes
        # The pictures themselves are for the sweeps alone, which forget them.
        self._seen = [
            [pictures[k] if k < len(pictures) else None for k in range(sample.valid)]
            for sample, pictures in zip(samples, seen, strict=True)
        ]
        self._grids = grid.activations
        self._inputs = {name: now[name].inputs[0] for name in plan.layers}
        looks = [x.name for x in self._inputs.values()] + [_unrounded(self._inputs[name]) for name in adjusting]
        self._float = LayerwiseRunner(model.to_proto(), [model.nodes[name].outputs[0].name for name in plan.layers])
        self._quantized = LayerwiseRunner(quantized.to_proto(), looks)
        for sweep in (self._float, self._quantized):
            sweep.start([sample.feed for sample in samples])

    def draw(self, number: int, node: Node, unfolding: Im2col) -> None:
        """Draw positions of a layer's output, and take what the float layer gives there."""
        self._drawn: dict[int, tuple[list[Positions], NDArray[np.float32]]] = {}

        def look(index: int, y: NDArray[np.generic]) -> None:
            rng = np.random.default_rng((number, index))
            pictures = [None if unfolding.rows else picture for picture in self._seen[index]]
            positions = [_draw(rng, unfolding.size(y.shape), picture) for picture in pictures]
            found = [unfolding.outputs(image, places) for image, places in zip(y, positions, strict=False)]
            self._drawn[index] = positions, np.concatenate(found, axis=2)

        self._float.compute(node.outputs[0].name, look)

    def fit_range(self, node: Node, unfolding: Im2col, weight: NDArray[np.float32]) -> QParams:
        """The grid of the layer's input with which a refit errs least; it holds from now on."""
        unrounded = _unrounded(self._inputs[node.name])
        self._quantized.compute(unrounded)
        count = sum(target.shape[2] for _, target in self._drawn.values())
        every = max(1, count // max(_LEAST_FOR_RANGE, 3 * unfolding.inputs))
        looked_at = [(a[:, :, ::every], t[:, :, ::every]) for a, t in self._columns(unfolding, unrounded)]
        columns, targets = (np.concatenate(parts, axis=2) for parts in zip(*looked_at, strict=True))
        fitted = self._grids[node.inputs[0].name]

        def grid_of(low: float, high: float) -> QParams:
            return fitted.scheme.qparams(Range(fitted.low * low, fitted.high * high))

        @cache
        def cost(low: float, high: float) -> float:
            grid = grid_of(low, high)
            moments = Moments.zeros(len(columns), targets.shape[1], columns.shape[1])
            moments.add(grid.dequantize(grid.quantize(columns)), targets)
            moments = moments.centred() if takes_bias(node) else moments
            return float(moments.error(refit(regularized(moments, unfolding.matrix(weight), _PULL))).sum())

        high = min(_HIGHS, key=lambda share: cost(1.0, share))
        low = min(_LOWS if fitted.low < 0 and not fitted.scheme.symmetric else _LOWS[:1], key=lambda s: cost(s, high))
        found = grid_of(low, high)
        dequantize = self._inputs[node.name].inputs[0]
        for step in (_quantizes(dequantize), dequantize):
            self._quantized.set_constant(step.name, 1, found.scale)
            self._quantized.set_constant(step.name, 2, found.zero_point)
        return found

    def moments(self, node: Node, unfolding: Im2col) -> Moments:
        """What the float layer gives at the positions drawn, and what the quantized one reads there.

        Centred, as the bias makes up for the means; but for a MatMul, which has none.
        """
        x = self._inputs[node.name].name
        self._quantized.compute(x)
        groups, outputs = self._drawn[0][1].shape[:2]
        moments = Moments.zeros(groups, outputs, unfolding.inputs)
        gathered: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        for index, part in enumerate(self._columns(unfolding, x)):
            gathered.append(part)
            if sum(t.shape[2] for _, t in gathered) >= _AT_ONCE or index == len(self._drawn) - 1:
                moments.add(*(np.concatenate(parts, axis=2) for parts in zip(*gathered, strict=True)))
                gathered = []
        return moments.centred() if takes_bias(node) else moments

    def _columns(self, unfolding: Im2col, tensor: str) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Of each sample the layer's inputs, of this tensor, and the float layer's outputs at the positions drawn."""
        for index, (positions, target) in sorted(self._drawn.items()):
            x = np.asarray(self._quantized.read(tensor, index), np.float32)
            found = [unfolding.columns(image, places) for image, places in zip(x, positions, strict=False)]
            yield np.asarray(np.concatenate(found, axis=2)), target

    def replace(self, layer: Node, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        """Let a layer of the quantized graph have these parameters from now on."""
        self._quantized.set_constant(layer.name, 1, weight)
        if takes_bias(layer):
            self._quantized.set_constant(layer.name, 2, bias)


def _quantizes(dequantize: Node) -> Node:
    """The QuantizeLinear of a DequantizeLinear; a Clip may stand between them."""
    before = dequantize.inputs[0].inputs[0]
    return before if before.op == "QuantizeLinear" else before.inputs[0].inputs[0]


def _unrounded(dequantized: Tensor) -> str:
    """Name of the tensor that a dequantized one was before."""
    return str(_quantizes(dequantized.inputs[0]).inputs[0].name)


def _draw(rng: np.random.Generator, size: tuple[int, int], seen: DetectedObjects | None) -> Positions:
    """Some rows and columns of a picture of this height and width, int64 (2, n); half of them on its objects."""
    count = min(size[0] * size[1], _POSITIONS)
    on_objects = np.zeros(0, np.int64) if seen is None else seen.draw(rng, size, count // 2)
    anywhere = rng.choice(size[0] * size[1], count - len(on_objects), replace=False)
    return np.stack(np.divmod(np.sort(np.concatenate([on_objects, anywhere])), size[1]))


def _fit_layer(
    weight: QuantizedWeight,
    values: NDArray[np.float32],
    unfolding: Im2col,
    moments: Moments,
    rounded: QParams,
    least: NDArray[np.float64],
) -> tuple[QParams, NDArray[np.generic], NDArray[np.float32]]:
    """Grid and integers of a layer's weight, and its bias, float32 (output channels,).

    Args:
        weight: its scheme is what the integers are of.
        values: the float weight.
        unfolding: of the layer.
        moments: of what it reads and should give.
        rounded: the grid on which the nearest integers are taken, where they err less.
        least: scales of the channels that the new grid must not fall below.
    """
    exact = unfolding.matrix(values)
    towards = regularized(moments, exact, _PULL)
    aimed = refit(towards)
    energy = np.diagonal(moments.hessian, axis1=1, axis2=2)[:, None, :]
    grid = weight_qparams(
        weight.scheme,
        unfolding.weight(aimed).astype(np.float32),
        least_scale=least,
        shrink=True,
        importance=np.asarray(unfolding.weight(np.broadcast_to(energy, aimed.shape)), np.float64),
    )
    scale = np.asarray(unfolding.per_output(grid.scale), np.float64)
    integers = round_with_feedback(aimed, moments.hessian, scale, weight.scheme.qmax, _PULL)
    for _ in range(_ROUNDS):
        integers = coordinate_descent(integers, scale, towards, weight.scheme.qmax, _SWEEPS)
        if unfolding.transposed:  # several outputs share a scale
            break
        grid = grid.rescaled(np.maximum(unfolding.per_channel(best_scale(integers, towards, scale)), least))
        scale = np.asarray(unfolding.per_output(grid.scale), np.float64)
    stored = unfolding.weight(integers).astype(weight.scheme.dtype)
    nearest = rounded.quantize(values)
    candidates = [(grid, stored), (rounded, nearest)]
    matrices = [unfolding.matrix(g.dequantize(q)) for g, q in candidates]
    best = int(np.argmin([moments.error(matrix).sum() for matrix in matrices]))
    means = moments.t - (matrices[best] @ moments.a[:, :, None])[:, :, 0]
    return *candidates[best], np.asarray(unfolding.per_channel(means), np.float32)
