"""reconstruct: each layer gets the weights and the bias that give, from quantized inputs, what it gave in float."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.data import Sample, Samples
from onnxq.errors import DataError
from onnxq.facts import Grid, Plan, Rebuilt, Weight
from onnxq.graph import Model, Node, bias_of, constant
from onnxq.least_squares import Moments, refit, round_with_feedback
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq import insert_qdq
from onnxq.scheme import QParams
from onnxq.sweep import Sweep
from onnxq.unfold import Positions, Unfolding
from onnxq.weights import fit_weight, least_scale

_POSITIONS = 300
"""Output positions of one image that a layer is fitted at."""

_AT_ONCE = 1 << 14
"""Positions whose products are summed in one go."""

_PULL = 0.01
"""Towards the float weights, as a share of the inputs' mean energy."""


class Reconstruct(Analysis[Rebuilt]):
    """Fits the layers one after the other, in the graph's order.

    Of each layer, at positions drawn at random, the inputs A are what the graph quantized so far gives, and the outputs
    T what the float graph gives. Least squares find the weights that make T of A, pulled towards the float ones; they
    are rounded so that later inputs make up for the errors of earlier ones; the bias takes what is left of the mean.
    So each layer undoes what it can of the rounding before it (GPTQ: Frantar et al., arXiv 2210.17323; the targets are
    those of AdaRound's asymmetric reconstruction: Nagel et al., arXiv 2004.10568, section 3.4).

    Both graphs are walked once, all samples side by side. Layers whose weights others share, or whose bias is computed,
    keep their rounded weights.

    Args:
        samples: the data, which is read a second time.
        progress: told after each layer.

    Raises:
        DataError: there are no samples, synthetic ones only, or none that can be read again.
    """

    name = "reconstruct"
    gives = Rebuilt
    needs = (Plan, Grid)

    def __init__(self, samples: Samples | None, progress: Progress = silent) -> None:
        self._samples = samples
        self._progress = progress

    def run(self, model: Model, facts: Facts) -> Rebuilt:
        """Find the fact; the graph is not touched."""
        plan, grid = facts[Plan], facts[Grid]
        walk = _Walk(model, plan, grid, _load(self._samples))
        nodes, tensors = model.nodes, model.graph.tensors()
        weight_of = {w.users[0]: w for w in plan.weights if len(w.users) == 1}
        weights: dict[str, tuple[QParams, NDArray[np.generic]]] = {}
        biases: dict[str, NDArray[np.float32]] = {}
        for number, name in enumerate(plan.layers):
            node, weight = nodes[name], weight_of.get(name)
            unfolding = Unfolding.of(node)
            if weight is not None and unfolding is not None and _has_plain_bias(node):
                values = np.asarray(constant(tensors[weight.tensor]), np.float32)
                moments = walk.moments(number, node, unfolding)
                rebuilt = _Layer(weight, values, unfolding, moments, grid, least_scale([node], grid.activations))
                made = rebuilt.grid.dequantize(rebuilt.integers)
                weights[weight.tensor], biases[name] = (rebuilt.grid, rebuilt.integers), rebuilt.bias
                walk.replace(name, made, rebuilt.bias)
            self._progress("reconstructing", number + 1, len(plan.layers))
        return Rebuilt(weights, biases)


def _load(samples: Samples | None) -> list[Sample]:
    if samples is None or samples.synthetic:
        raise DataError(
            "reconstruction needs real images, which statistics and synthetic scenes cannot stand for: give --calib, "
            "or --no-reconstruct"
        )
    loaded = []
    for load in samples.loaders:
        sample = load()
        if sample is not None:
            feed = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in sample.feed.items()}
            loaded.append(Sample(feed, sample.valid))
    if not loaded:
        raise DataError("the data can be read only once, reconstruction reads it again; give a list or a folder")
    return loaded


def _has_plain_bias(layer: Node) -> bool:
    bias = bias_of(layer)
    return bias is None or constant(bias) is not None


class _Walk:
    """The float graph and the quantized one, side by side."""

    def __init__(self, model: Model, plan: Plan, grid: Grid, samples: Sequence[Sample]) -> None:
        quantized = Model(model.to_proto())
        insert_qdq(quantized, plan, grid)
        now = quantized.nodes
        self._samples = samples
        self._inputs = {name: now[name].inputs[0].name for name in plan.layers}
        self._float = Sweep(model.to_proto(), [model.nodes[name].outputs[0].name for name in plan.layers])
        self._quantized = Sweep(quantized.to_proto(), self._inputs.values())
        for sweep in (self._float, self._quantized):
            sweep.start([sample.feed for sample in samples])

    def moments(self, number: int, node: Node, unfolding: Unfolding) -> Moments:
        """What the float layer gives at some positions, and what it reads there in the quantized graph; centred."""
        wanted: dict[int, tuple[list[Positions], NDArray[np.float32]]] = {}

        def draw(index: int, y: NDArray[np.generic]) -> None:
            rng = np.random.default_rng((number, index))
            positions = [_draw(rng, unfolding.size(y.shape)) for _ in range(self._samples[index].valid)]
            found = [unfolding.outputs(image, places) for image, places in zip(y, positions, strict=False)]
            wanted[index] = positions, np.concatenate(found, axis=2)

        self._float.compute(node.outputs[0].name, draw)
        self._quantized.compute(self._inputs[node.name])
        groups, outputs = wanted[0][1].shape[:2]
        moments = Moments.zeros(groups, outputs, unfolding.inputs)
        columns: list[NDArray[np.generic]] = []
        targets: list[NDArray[np.float32]] = []
        for index in range(len(self._samples)):
            positions, target = wanted.pop(index)
            x = self._quantized.read(self._inputs[node.name], index)
            columns += [unfolding.columns(image, places) for image, places in zip(x, positions, strict=False)]
            targets.append(target)
            if sum(t.shape[2] for t in targets) >= _AT_ONCE or not wanted:
                moments.add(np.concatenate(columns, axis=2), np.concatenate(targets, axis=2))
                columns, targets = [], []
        return moments.centred()

    def replace(self, layer: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        """Let a layer of the quantized graph have these parameters from now on."""
        self._quantized.set_constant(layer, 1, weight)
        self._quantized.set_constant(layer, 2, bias)


def _draw(rng: np.random.Generator, size: tuple[int, int]) -> Positions:
    """Some rows and columns of an image of this height and width, int64 (2, n), each position at most once."""
    count = size[0] * size[1]
    flat = np.sort(rng.choice(count, min(count, _POSITIONS), replace=False))
    return np.stack(np.divmod(flat, size[1]))


class _Layer:
    """The parameters found for one layer.

    Attributes:
        grid, integers: of the weight.
        bias: float32 (output channels,).
    """

    def __init__(
        self,
        weight: Weight,
        values: NDArray[np.float32],
        unfolding: Unfolding,
        moments: Moments,
        grid: Grid,
        least: NDArray[np.float64],
    ) -> None:
        aimed = refit(moments, unfolding.matrix(values), _PULL)
        energy = np.diagonal(moments.aa, axis1=1, axis2=2)[:, None, :]
        importance = unfolding.weight(np.broadcast_to(energy, aimed.shape))
        found = fit_weight(
            weight.scheme,
            unfolding.weight(aimed).astype(np.float32),
            least_scale=least,
            shrink=True,
            importance=np.asarray(importance, np.float64),
        )
        scale = np.asarray(unfolding.per_output(found.scale), np.float64)
        integers = round_with_feedback(aimed, moments.aa, scale, weight.scheme.qmax, _PULL)
        matrix = integers * scale[:, :, None]
        self.grid, self.integers = found, unfolding.weight(integers).astype(weight.scheme.dtype)
        nearest = grid.weights[weight.tensor]
        rounded = unfolding.matrix(nearest.dequantize(nearest.quantize(values)))
        if moments.error(rounded).sum() <= moments.error(matrix).sum():
            self.grid, self.integers, matrix = nearest, nearest.quantize(values), rounded
        means = moments.t - (matrix @ moments.a[:, :, None])[:, :, 0]
        self.bias = np.asarray(unfolding.per_channel(means), np.float32)
