"""Where a runtime leaves the exact computation of a quantized model."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import onnx

from onnxq.ir import ProtoIndex, ending_at, inferred_types
from onnxq.numerics.sqnr import decibels
from onnxq.runtime.base import Runtime
from onnxq.runtime.session import Feed, open_session, run

_DIFFERENT = 25.0
"""dB below which two results differ by more than the rounding of kernels, which gives 40 and more."""


def first_wrong_layer(
    proto: onnx.ModelProto, output: str, layers: Sequence[str], runtime: type[Runtime], feed: Feed
) -> str | None:
    """Name of the first layer on the way to an output that the runtime computes wrongly; None if none is by itself.

    The model is cut behind one layer after the other, as what is looked at from within may run by other kernels.

    Args:
        proto: a quantized model.
        output: of the model.
        layers: names of layers, of which those that the output depends on are looked at.
        runtime: what is at fault.
        feed: inputs that show it.

    Raises:
        ModelError: a part of the model cannot be loaded or run.
    """
    types = inferred_types(proto)
    producers = ProtoIndex(proto.graph).producers
    outputs = {node.name: node.output[0] for node in proto.graph.node if node.name in layers}

    @cache
    def is_wrong(layer: str) -> bool:
        cut = ending_at(proto, [outputs[layer]], types)
        exact = run(open_session(cut, optimized=False), feed)[0]
        noise = np.subtract(runtime(cut).run(feed)[outputs[layer]], exact, dtype=np.float64)
        return decibels(float(np.sum(np.square(exact, dtype=np.float64))), float(np.sum(noise**2))) < _DIFFERENT

    def nearest(tensor: str) -> str | None:
        before = _layers_before(producers, tensor, frozenset(outputs))
        return next((layer for layer in before if is_wrong(layer)), None)

    earlier = nearest(output)
    found = None
    while earlier is not None:
        found = earlier
        data = producers[outputs[found]].input[0]
        before = set(_layers_before(producers, data, frozenset()))
        chain = [layer for layer in outputs if layer in before]
        first = bisect_left(chain, True, key=is_wrong)
        # Layers on other branches make no chain: the search may miss the one that feeds this one.
        earlier = chain[first] if first < len(chain) else nearest(data)
    return found


def _layers_before(producers: Mapping[str, onnx.NodeProto], tensor: str, stops: frozenset[str]) -> Iterator[str]:
    """Names of the nodes that a tensor depends on, through others, but not beyond those in `stops`."""
    stack, seen = [tensor], set()
    while stack:
        node = producers.get(stack.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if not stops or node.name in stops:
            yield node.name
        if node.name not in stops:
            stack.extend(node.input)
