"""The float graph and the quantized graph, run layer by layer on the same samples."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from onnxq.calibration.feeds import Sample
from onnxq.facts import Plan, QuantizationParameters
from onnxq.ir import Model, Node, takes_bias
from onnxq.numerics.arrays import AnyArray, Float32Array
from onnxq.numerics.scheme import QParams
from onnxq.qdq.insertion import insert_qdq
from onnxq.reconstruction.im2col import Im2col, Positions
from onnxq.reconstruction.layer_fit import LayerFit, fit_range
from onnxq.reconstruction.layerwise import LayerwiseRunner
from onnxq.reconstruction.least_squares import Moments, Products
from onnxq.yolo.detected_objects import DetectedObjects

_POSITIONS = 300
"""Output positions per image that a layer is fitted on."""

_BATCH = 1 << 14
"""Positions whose products are summed at once."""

_LEAST_FOR_RANGE = 2048
"""Least number of positions on which ranges are compared; and three for each input."""


@dataclass(frozen=True)
class LayerTargets:
    """Output positions of a layer, and the float outputs there.

    Attributes:
        layer: the node, in the float graph.
        im2col: of the layer.
        positions: of each image of each sample.
        outputs: of each sample, float32 (groups, outputs of a group, n), its images one after the other.
    """

    layer: Node
    im2col: Im2col
    positions: tuple[Sequence[Positions], ...]
    outputs: tuple[Float32Array, ...]


class GraphPair:
    """Both graphs, advanced together from layer to layer.

    For each layer, in the order of the plan, `draw` returns its targets, `moments` takes these, `fit_layer` takes the
    moments, and `replace` takes the fit. Later layers then read the output of the replaced layer.

    Args:
        model: the float graph.
        plan: of the quantized graph.
        qparams: of the quantized graph.
        adjusted: layers whose input range is chosen by the error of the outputs.
        samples: the calibration data.
        objects: detected on each image of each sample; none for samples without detections.
        pool: computes several products of matrices at a time; None: one after the other. The result is the same.
        at_once: number of its threads.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        qparams: QuantizationParameters,
        adjusted: Sequence[str],
        samples: Sequence[Sample],
        objects: Sequence[Sequence[DetectedObjects]],
        pool: Executor | None = None,
        at_once: int = 1,
    ) -> None:
        self._pool = pool
        self._at_once = at_once
        quantized = Model(model.to_linked_proto())
        insert_qdq(quantized, plan, qparams)
        nodes = quantized.nodes
        self._objects = [
            [images[k] if k < len(images) else None for k in range(sample.valid)]
            for sample, images in zip(samples, objects, strict=True)
        ]
        self._qparams = qparams.activations
        self._inputs = {name: nodes[name].inputs[0] for name in plan.layers}
        self._adjusted = frozenset(adjusted)
        unrounded = [_quantize_of(self._inputs[name].inputs[0]).inputs[0].name for name in adjusted]
        wanted = [*(x.name for x in self._inputs.values()), *unrounded]
        self._float = LayerwiseRunner(
            model.to_linked_proto(), [layer.outputs[0].name for layer in map(model.nodes.__getitem__, plan.layers)]
        )
        self._quantized = LayerwiseRunner(quantized.to_linked_proto(), wanted)
        for runner in (self._float, self._quantized):
            # The runners alone hold the images, and free them after the last read.
            runner.start([sample.feed for sample in samples])

    def draw(self, number: int, layer: Node, im2col: Im2col) -> LayerTargets:
        """Draw output positions of a layer and compute the float outputs there.

        Args:
            number: of the layer; seeds the draw.
            layer: a node of the float graph.
            im2col: of the layer.
        """
        drawn: dict[int, tuple[list[Positions], Float32Array]] = {}

        def collect(sample: int, y: AnyArray) -> None:
            rng = np.random.default_rng((number, sample))
            objects = [None if im2col.rows else each for each in self._objects[sample]]
            positions = [draw_positions(rng, im2col.size(y.shape), each) for each in objects]
            outputs = [im2col.outputs(image, places) for image, places in zip(y, positions, strict=False)]
            drawn[sample] = positions, np.concatenate(outputs, axis=2)

        self._float.compute(layer.outputs[0].name, collect)
        positions, outputs = zip(*(drawn[sample] for sample in sorted(drawn)), strict=True)
        return LayerTargets(layer, im2col, positions, outputs)

    def moments(self, targets: LayerTargets, weight: Float32Array) -> tuple[Moments, QParams | None]:
        """Collect the moments of the layer's quantized inputs and its targets; first adjust the input's range.

        Args:
            targets: of the layer.
            weight: of the float layer.

        Returns:
            The moments, and the new scale and zero point of the input, None if they stay. The moments are centered,
            because the bias absorbs the means; those of a MatMul, which has no bias, are not.
        """
        adjusted = self._adjust(targets, weight) if targets.layer.name in self._adjusted else None
        x = self._inputs[targets.layer.name].name
        self._quantized.compute(x)
        groups, outputs = targets.outputs[0].shape[:2]
        moments = Moments.zeros(groups, outputs, targets.im2col.inputs)
        batches = self._batches(targets, x)
        while several := list(islice(batches, self._at_once)):
            in_parallel = map if self._pool is None else self._pool.map
            for products in in_parallel(lambda batch: Products.of(*batch), several):
                moments.add_products(products)
        return (moments.centered() if takes_bias(targets.layer) else moments), adjusted

    def replace(self, layer: Node, fit: LayerFit) -> None:
        """Give the layer of the quantized graph these parameters."""
        self._quantized.set_constant(layer.name, 1, fit.qparams.dequantize(fit.integers))
        if takes_bias(layer):
            self._quantized.set_constant(layer.name, 2, fit.bias)

    def _adjust(self, targets: LayerTargets, weight: Float32Array) -> QParams | None:
        """Set the input range with the least error after a refit, unless an earlier layer has read the tensor."""
        layer, im2col = targets.layer, targets.im2col
        dequantize = self._inputs[layer.name].inputs[0]
        quantize = _quantize_of(dequantize)
        if self._quantized.has_run(quantize.name):
            return None
        unrounded = quantize.inputs[0].name
        self._quantized.compute(unrounded)
        count = sum(outputs.shape[2] for outputs in targets.outputs)
        every = max(1, count // max(_LEAST_FOR_RANGE, 3 * im2col.inputs))
        thinned = [(a[:, :, ::every], t[:, :, ::every]) for a, t in self._columns(targets, unrounded)]
        inputs, outputs = (np.concatenate(parts, axis=2) for parts in zip(*thinned, strict=True))
        fitted = self._qparams[layer.inputs[0].name]
        found = fit_range(fitted, inputs, outputs, im2col.matrix(weight), takes_bias(layer), self._pool)
        for step in (quantize, dequantize):
            self._quantized.set_constant(step.name, 1, found.scale)
            self._quantized.set_constant(step.name, 2, found.zero_point)
        return found

    def _batches(self, targets: LayerTargets, tensor: str) -> Iterator[tuple[Float32Array, Float32Array]]:
        """Yield the inputs and the targets of `_columns`, some `_BATCH` positions at a time."""
        batch: list[tuple[Float32Array, Float32Array]] = []
        for sample, part in enumerate(self._columns(targets, tensor), start=1):
            batch.append(part)
            if sum(t.shape[2] for _, t in batch) >= _BATCH or sample == len(targets.outputs):
                inputs, outputs = zip(*batch, strict=True)
                yield np.concatenate(inputs, axis=2), np.concatenate(outputs, axis=2)
                batch = []

    def _columns(self, targets: LayerTargets, tensor: str) -> Iterator[tuple[Float32Array, Float32Array]]:
        """Yield, sample by sample, the inputs (groups, inputs, n) at the positions and the targets there."""
        for sample, (positions, outputs) in enumerate(zip(targets.positions, targets.outputs, strict=True)):
            x = np.asarray(self._quantized.read(tensor, sample), np.float32)
            inputs = [targets.im2col.columns(image, places) for image, places in zip(x, positions, strict=False)]
            yield np.asarray(np.concatenate(inputs, axis=2)), outputs


def draw_positions(rng: np.random.Generator, size: tuple[int, int], objects: DetectedObjects | None) -> Positions:
    """Draw rows and columns of an image of this height and width, int64 (2, n); half of them on its objects."""
    count = min(size[0] * size[1], _POSITIONS)
    on_objects = np.zeros(0, np.int64) if objects is None else objects.draw(rng, size, count // 2)
    anywhere = rng.choice(size[0] * size[1], count - len(on_objects), replace=False)
    return np.stack(np.divmod(np.sort(np.concatenate([on_objects, anywhere])), size[1]))


def _quantize_of(dequantize: Node) -> Node:
    """Return the QuantizeLinear of a DequantizeLinear; a Clip may stand between them."""
    before = dequantize.inputs[0].inputs[0]
    return before if before.op == "QuantizeLinear" else before.inputs[0].inputs[0]
