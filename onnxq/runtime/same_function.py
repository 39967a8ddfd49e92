"""Whether a model that was made of another computes the same, on noise; if not, the first node that does not."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.ir import ProtoIndex, Segment, copy_message, ending_at, segment_from
from onnxq.numerics.arrays import NamedArrays
from onnxq.numerics.sqnr import decibels
from onnxq.runtime.joined import joined_outputs, with_parts
from onnxq.runtime.session import Feed, open_session, run_named

SAME = 60.0
"""SQNR in dB above which values differ by rounding alone: float32 leaves 100 dB and more, float16 some 70 a node.
Other coordinates of a Resize leave less than 20 dB."""

_LENGTH = 64
"""Length of an axis that nobody knows."""

_AT_ONCE = 16
"""Nodes whose tensors are held in memory at once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """How a model computes otherwise than the one that it was made of.

    Attributes:
        node: the first node of the original that is computed otherwise; None if none is by itself. Of one that was
            replaced under other names and the node behind it, it is the former.
        sqnr: of the node's outputs against the original's, on the same inputs, dB; without a node, of the model's.
    """

    node: onnx.NodeProto | None
    sqnr: float


def noise_feed(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, NDArray[np.generic]]:
    """Return inputs for one run, the same in each call.

    Floats are from 0 to 1, uint8 values from 0 to 255; other integers, which may be places, are 1.

    Args:
        model: states the types of its inputs, and the lengths of their axes.
        shapes: lengths of axes that the model leaves open, by the name of the input. Others are 1 for the first axis of
            an input, and 64 for the rest.
    """
    generator = np.random.default_rng(0)
    feed: dict[str, NDArray[np.generic]] = {}
    for value in ProtoIndex(model.graph).inputs:
        declared = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        open_axes = (shapes or {}).get(value.name, (1, *[_LENGTH] * len(declared)))
        shape = [length or other for length, other in zip(declared, open_axes, strict=False)]
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        if dtype == np.uint8:
            feed[value.name] = generator.integers(0, 256, shape, np.uint8)
        elif np.issubdtype(dtype, np.floating):
            feed[value.name] = generator.random(shape, np.float32).astype(dtype)
        else:
            feed[value.name] = np.ones(shape, dtype)
    return feed


def find_difference(before: onnx.ModelProto, after: onnx.ModelProto, feed: Feed) -> Difference | None:
    """Return how a model computes otherwise than the one that it was made of; None if it computes the same.

    Both run in onnxruntime without optimizations. Where their outputs differ, nodes run alone, on the inputs that they
    have in the original: what selects objects makes large differences of rounding, and what draws numbers draws others.

    Args:
        before: the original. If it does not run on this feed, nothing is known.
        after: a model of the same inputs and outputs. Other tensors that both have by name mean the same.
        feed: the inputs.

    Raises:
        ModelError: the original runs, and the other model does not.
    """
    joined = joined_outputs(before)
    try:
        expected = with_parts(_outputs(before, feed), joined)
    except ModelError as error:
        log.info("%s: it is not known whether the converted model computes the same", error)
        return None
    sqnr = _sqnr(expected, with_parts(_outputs(after, feed), joined))
    if sqnr >= SAME:
        return None
    try:
        return _first_node(before, after, feed)
    except ModelError as error:
        log.info("the node that is computed otherwise is not found: %s", error)
        return Difference(None, sqnr)


def _first_node(before: onnx.ModelProto, after: onnx.ModelProto, feed: Feed) -> Difference | None:
    """Return the first node that is computed otherwise, on the same inputs; None if all differences are of rounding."""
    made = ProtoIndex(after.graph).producers
    nodes = [node for node in before.graph.node if any(name in made for name in node.output)]
    common = {name for node in nodes for name in node.output if name in made}
    for first in range(0, len(nodes), _AT_ONCE):
        some = nodes[first : first + _AT_ONCE]
        pairs = [_Pair.of(before, after, feed, common, node) for node in some]
        expected = {**feed, **_values(before, (name for pair in pairs for name in pair.names), feed)}
        found = _values(after, (name for pair in pairs for name in pair.outputs), feed)
        for node, pair in zip(some, pairs, strict=True):
            if _sqnr({name: expected[name] for name in pair.outputs}, found) < SAME:
                sqnr = pair.sqnr(before, after, expected)
                if sqnr < SAME:
                    replaced = (part for part in pair.before.nodes if not common.intersection(part.output))
                    return Difference(copy_message(next(replaced, node)), sqnr)
    return None


@dataclass(frozen=True)
class _Pair:
    """The parts of two models that compute the same tensors, from tensors that both models have.

    Attributes:
        before, after: the part of each.
    """

    before: Segment
    after: Segment

    @classmethod
    def of(
        cls, before: onnx.ModelProto, after: onnx.ModelProto, feed: Feed, common: Iterable[str], node: onnx.NodeProto
    ) -> "_Pair":
        """Return the parts for the outputs of a node, among those tensors that are `common`."""
        given = {*common, *feed}.difference(node.output)
        outputs = [name for name in node.output if name in common]
        return cls(segment_from(before.graph, given, outputs), segment_from(after.graph, given, outputs))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the results of both."""
        return self.before.outputs

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all that both take and give."""
        return (*self.before.inputs, *self.after.inputs, *self.before.outputs)

    def sqnr(self, before: onnx.ModelProto, after: onnx.ModelProto, values: NamedArrays) -> float:
        """Return the SQNR of the results on the same inputs, dB.

        Raises:
            ModelError: a part does not run by itself.
        """
        results = []
        for source, part in ((before, self.before), (after, self.after)):
            inputs = {name: values[name] for name in part.inputs}
            results.append(_outputs(part.model(source, [inputs]), inputs))
        return _sqnr(*results)


def _values(model: onnx.ModelProto, names: Iterable[str], feed: Feed) -> NamedArrays:
    inner = [name for name in dict.fromkeys(names) if name not in feed]
    return _outputs(ending_at(model, inner), feed)


def _outputs(model: onnx.ModelProto, feed: Feed) -> NamedArrays:
    return run_named(open_session(model, optimized=False, exact=True, brief=True), feed)


def _sqnr(expected: NamedArrays, found: NamedArrays) -> float:
    """Return the least SQNR of all arrays, dB; other shapes, or other places that are not finite, have none."""
    return min((_sqnr_of(values, found[name]) for name, values in expected.items()), default=math.inf)


def _sqnr_of(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    if not isinstance(expected, np.ndarray) or expected.dtype.kind not in "biuf":
        return math.inf  # sequences and texts are not compared
    if expected.shape != found.shape:
        return -math.inf
    one, other = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return -math.inf
    signal, noise = float(np.square(one[finite]).sum()), float(np.square(one[finite] - other[finite]).sum())
    if not math.isfinite(noise):
        return -math.inf
    return decibels(signal, noise) if signal > 0 or noise == 0 else -math.inf
