"""The quantized graph, run layer by layer, against the float graph on the same samples."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import islice, pairwise
from typing import TypeVar

import numpy as np

from onnxq.facts import Plan, QuantizationParameters
from onnxq.ir import Model, Node, takes_bias
from onnxq.numerics.arrays import Float32Array, Float64Array
from onnxq.numerics.scheme import QParams, Scheme
from onnxq.qdq.insertion import insert_qdq
from onnxq.qdq.migration import DividedInput
from onnxq.reconstruction.float_targets import LayerTargets
from onnxq.reconstruction.layer_fit import WeightFit, fit_range
from onnxq.reconstruction.layerwise import LayerwiseRunner
from onnxq.reconstruction.least_squares import Moments, Products
from onnxq.reconstruction.scale_fit import FittedScales, Reader, fit_scales
from onnxq.runtime.session import Feed

_BATCH = 1 << 12
"""Positions whose products are summed at once."""

_LEAST_FOR_RANGE = 2048
"""Least number of positions on which ranges are compared; and three for each input."""


T = TypeVar("T")

_Columns = tuple[Float32Array, Float32Array, Float32Array]
"""Inputs (groups, inputs, n) and targets (groups, outputs, n) at positions, and the roots of their counts, (n,)."""


class GraphPair:
    """The quantized graph, advanced from layer to layer, and what the float graph gives.

    For each layer, in the order of the walk, `moments` takes its targets, `fit_weight` takes the moments of all layers
    of a step, and `replace` takes the fit. Later layers then read the outputs of the replaced layers.

    Args:
        model: the float graph.
        plan: of the quantized graph.
        qparams: of the quantized graph.
        adjusted: layers whose input range is chosen by the error of the outputs.
        loads: load the samples of the targets, each time that a layer reads them.
        pool: computes several products of matrices at a time; None: one after the other. The result is the same.
        at_once: number of its threads.
        divided: inputs whose scales are chosen by the error of the outputs; none of an adjusted layer.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        qparams: QuantizationParameters,
        adjusted: Sequence[str],
        loads: Sequence[Callable[[], Feed]],
        pool: Executor | None = None,
        at_once: int = 1,
        divided: Sequence[DividedInput] = (),
    ) -> None:
        self._pool = pool
        self._at_once = at_once
        quantized = Model(model.to_linked_proto())
        insert_qdq(quantized, plan, qparams)
        nodes = quantized.nodes
        self._qparams = qparams.activations
        self._inputs = {name: nodes[name].inputs[0] for name in plan.layers}
        self._adjusted = frozenset(adjusted)
        unrounded = [_quantize_of(self._inputs[name].inputs[0]).inputs[0].name for name in adjusted]
        wanted = [*(x.name for x in self._inputs.values()), *unrounded, *(each.tensor for each in divided)]
        self._quantized = LayerwiseRunner(quantized.to_linked_proto(), wanted)
        self._quantized.start(loads)

    def choose_scales(
        self,
        divided: DividedInput,
        readers: Sequence[tuple[LayerTargets, Scheme, Float32Array]],
        peaks: Float64Array,
        *,
        ranges: bool,
    ) -> FittedScales:
        """Set and return the scales and the range of an input with the least error of its readers' outputs.

        Nothing else reads the quotient, so call it before the moments of the first reader are collected.

        Args:
            divided: the input.
            readers: targets of all layers that read it, and schemes and values of their float weights.
            peaks: greatest value of each channel of the quotient, float64 (channels,).
            ranges: choose the range too.
        """
        dequantize = self._inputs[divided.layers[0]].inputs[0]
        self._quantized.compute(divided.tensor)
        fitted = self._qparams[divided.quotient]
        columns = [self._reader(divided, *each) for each in readers]
        found = fit_scales(divided.scales, fitted, peaks, columns, ranges=ranges, pool=self._pool)
        factors = np.reciprocal(found.scales).reshape(1, -1, 1, 1)
        self._quantized.set_constant(divided.node, 1, factors)
        self._set_range(_quantize_of(dequantize), dequantize, found.qparams)
        return found

    def _reader(self, divided: DividedInput, targets: LayerTargets, scheme: Scheme, weight: Float32Array) -> Reader:
        im2col, inputs, outputs, roots = targets.im2col, *self._some_columns(targets, divided.tensor)
        reader = Reader(im2col, scheme, im2col.matrix(weight), takes_bias(targets.layer), inputs, outputs, roots)
        return replace(reader, weight=reader.weight / reader.spread(divided.scales)[:, None])

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
        batches = iter(_batches(targets))
        while several := list(islice(batches, self._at_once)):
            for products in self._in_parallel(lambda batch: Products.of(*self._columns(targets, x, batch)), several):
                moments.add_products(products)
        return (moments.centered() if takes_bias(targets.layer) else moments), adjusted

    def replace(self, layer: str, fit: WeightFit, bias: Float32Array | None) -> None:
        """Give a layer of the quantized graph this weight, and this bias if it takes any; unless it has run."""
        if self._quantized.has_run(layer):
            return
        self._quantized.set_constant(layer, 1, fit.qparams.dequantize(fit.integers))
        if bias is not None:
            self._quantized.set_constant(layer, 2, bias)

    def _adjust(self, targets: LayerTargets, weight: Float32Array) -> QParams | None:
        """Set the input range with the least error after a refit, unless an earlier layer has read the tensor."""
        layer, im2col = targets.layer, targets.im2col
        dequantize = self._inputs[layer.name].inputs[0]
        quantize = _quantize_of(dequantize)
        if self._quantized.has_run(quantize.name):
            return None
        unrounded = quantize.inputs[0].name
        self._quantized.compute(unrounded)
        inputs, outputs, roots = self._some_columns(targets, unrounded)
        fitted = self._qparams[layer.inputs[0].name]
        found = fit_range(fitted, inputs, outputs, im2col.matrix(weight), takes_bias(layer), roots, self._pool)
        self._set_range(quantize, dequantize, found)
        return found

    def _set_range(self, quantize: Node, dequantize: Node, qparams: QParams) -> None:
        for step in (quantize, dequantize):
            self._quantized.set_constant(step.name, 1, qparams.scale)
            self._quantized.set_constant(step.name, 2, qparams.zero_point)

    def _some_columns(self, targets: LayerTargets, tensor: str) -> _Columns:
        """Return the inputs and targets of a layer at as many of its positions as a comparison needs."""
        count = sum(outputs.shape[2] for outputs in targets.outputs)
        every = max(1, count // max(_LEAST_FOR_RANGE, 3 * targets.im2col.inputs))
        parts = self._in_parallel(lambda batch: self._columns(targets, tensor, batch, every), _batches(targets))
        inputs, outputs, roots = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
        return inputs, outputs, roots

    def _in_parallel(self, work: Callable[[range], T], batches: Iterable[range]) -> Iterable[T]:
        return map(work, batches) if self._pool is None else self._pool.map(work, batches)

    def _columns(self, targets: LayerTargets, tensor: str, samples: Iterable[int], every: int = 1) -> _Columns:
        """Return the inputs and targets of a layer at the positions of some samples.

        Args:
            targets: of the layer.
            tensor: that it reads.
            samples: their numbers.
            every: take every n-th position of a field.
        """
        inputs, outputs, roots = [], [], []
        zero = self._quantized.zero(tensor)
        for sample in samples:
            x, places = self._quantized.stored(tensor, sample), targets.places[sample]
            for field, each in zip(targets.im2col.fields(x), places, strict=False):
                taken = each.thinned(every)
                inputs.append(targets.im2col.columns(field, taken.positions, zero))
                roots.append(taken.roots)
            outputs.append(_thinned(targets.floats(sample), [each.roots.size for each in places], every))
        floats = self._quantized.decoded(tensor, np.concatenate(inputs, axis=2)).astype(np.float32, copy=False)
        return floats, np.concatenate(outputs, axis=2), np.concatenate(roots)


def _batches(targets: LayerTargets) -> list[range]:
    """Return the samples, cut where they have about `_BATCH` positions."""
    ends = np.cumsum([outputs.shape[2] for outputs in targets.outputs]) // _BATCH
    cuts = [0, *(np.flatnonzero(np.diff(ends)) + 1), len(ends)]
    return [range(a, b) for a, b in pairwise(cuts)]


def _thinned(outputs: Float32Array, counts: Sequence[int], every: int) -> Float32Array:
    """Return every n-th of the outputs (groups, outputs, positions) of each image, which has so many positions."""
    starts = np.cumsum([0, *counts])
    return outputs if every == 1 else np.concatenate([outputs[:, :, a:b:every] for a, b in pairwise(starts)], axis=2)


def _quantize_of(dequantize: Node) -> Node:
    """Return the QuantizeLinear of a DequantizeLinear; a Clip may stand between them."""
    before = dequantize.inputs[0].inputs[0]
    return before if before.op == "QuantizeLinear" else before.inputs[0].inputs[0]
