"""Search for the first layer that a runtime computes wrongly."""

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
"""SQNR in dB below which two results differ by more than the rounding of kernels, which leaves 40 dB and more."""


def first_wrong_layer(
    proto: onnx.ModelProto, output: str, layers: Sequence[str], runtime: type[Runtime], feed: Feed
) -> str | None:
    """Return the name of the first layer before an output that the runtime computes wrongly, or None.

    The model is cut after one layer at a time: if a layer were an additional output of the whole model, it might run in
    another kernel. None means that no layer errs by itself.

    Args:
        proto: a quantized model.
        output: name of a wrong output of the model.
        layers: names of layers; those that the output depends on are checked.
        runtime: the runtime at fault.
        feed: inputs that show the error.

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
        # Layers on parallel branches are not ordered: the bisection may miss the layer that feeds this one.
        earlier = chain[first] if first < len(chain) else nearest(data)
    return found


def _layers_before(producers: Mapping[str, onnx.NodeProto], tensor: str, stops: frozenset[str]) -> Iterator[str]:
    """Yield the names of the nodes that a tensor depends on; with `stops`, only the nearest of these."""
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
