"""Search for the layers that a runtime computes wrongly: each runs alone, on the inputs that it should have."""

import math
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.ir import ProtoIndex, copy_message
from onnxq.ir.extract import Segment
from onnxq.ir.quantized_layers import window
from onnxq.numerics.sqnr import decibels
from onnxq.runtime.base import Runtime
from onnxq.runtime.session import Feed, cores, open_session, run, run_named

WRONG = 30.0
"""SQNR in dB of a layer alone below which it is wrong. Rounding leaves 45 dB and more at 8 bits, 37 at 4 bits; on CPUs
without VNNI a first layer that saturates has 12 to 20 dB, and one in which a few sums do has 40 dB and more."""

_AT_ONCE = 16
"""Layers whose tensors are held in memory at once, at first."""

_BYTES = 2**29
"""Bytes of tensors that are held in memory at once. Each part of the layers costs an exact run of the whole model."""


@dataclass(frozen=True)
class LayerError:
    """How a runtime computes one layer.

    Attributes:
        layer: its name.
        sqnr: of the runtime against the exact computation on the same inputs, dB.
        saturates: it is wrong, but not if its sums of products cannot saturate.
    """

    layer: str
    sqnr: float
    saturates: bool = False


def layer_errors(
    proto: onnx.ModelProto, layers: Collection[str], runtime: type[Runtime], feed: Feed, depth: int = 0
) -> list[LayerError]:
    """Return the error of each layer, the worst first; equally wrong ones stay in the graph's order.

    A layer gets the inputs of the exact computation, so errors of earlier layers and their rounding do not reach it:
    what remains is its own. It runs with the Q/DQ around it, in the kernel that it has in the whole model.

    Args:
        proto: a quantized model.
        layers: names of layers with quantized weights; other names are left out.
        runtime: the runtime at fault.
        feed: inputs of the model that show the error.
        depth: earlier layers on each path that run with it. Some faults need these: a Concat of layers in front.

    Raises:
        ModelError: a part of the model cannot be loaded or run.
    """
    index = ProtoIndex(proto.graph)
    nodes = [node for node in index.nodes if node.name in layers]
    found: list[LayerError] = []
    at_once = _AT_ONCE
    while len(found) < len(nodes):
        taken = nodes[len(found) : len(found) + at_once]
        windows = {node.name: window(index, node, layers, depth) for node in taken}
        values = _exact_values(proto, index, feed, windows.values())
        # The tensors of later layers are smaller in most networks, and seldom larger.
        at_once = max(_AT_ONCE, len(taken) * _BYTES // max(1, sum(array.nbytes for array in values.values())))
        measure = partial(_error, proto, runtime, values)
        with ThreadPoolExecutor(cores()) as pool:
            found += pool.map(measure, windows, windows.values())
    return sorted(found, key=lambda error: error.sqnr)


def altered(proto: onnx.ModelProto, changed: onnx.ModelProto, layers: Collection[str]) -> list[str]:
    """Return the layers that a runtime may compute otherwise in a changed model, as other nodes are around them.

    Args:
        proto: a quantized model.
        changed: the same model with some of its nodes changed.
        layers: names of layers of both.
    """
    before, after = (_surroundings(model, layers) for model in (proto, changed))
    return [name for name in layers if before[name] != after[name]]


def _surroundings(proto: onnx.ModelProto, layers: Collection[str]) -> dict[str, list[bytes]]:
    """Return the nodes that run with each layer."""
    index = ProtoIndex(proto.graph)
    nodes = [node for node in index.nodes if node.name in layers]
    return {
        node.name: [part.SerializeToString(deterministic=True) for part in window(index, node, layers).nodes]
        for node in nodes
    }


def layers_before(proto: onnx.ModelProto, outputs: Sequence[str], layers: Collection[str]) -> list[str]:
    """Return the layers that outputs depend on, in the graph's order."""
    index = ProtoIndex(proto.graph)
    return [index.nodes[place].name for place in sorted(index.ancestors(outputs)) if index.nodes[place].name in layers]


def _exact_values(
    proto: onnx.ModelProto, index: ProtoIndex, feed: Feed, windows: Collection[Segment]
) -> dict[str, NDArray[np.generic]]:
    """Return the inputs and the outputs of windows as the whole model, computed exactly, has them."""
    wanted = dict.fromkeys(name for part in windows for name in (*part.inputs, *part.outputs))
    inner = [name for name in wanted if name in index.producers]
    copied = copy_message(proto)
    del copied.graph.output[:]
    copied.graph.output.extend(index.declared.get(name) or onnx.ValueInfoProto(name=name) for name in inner)
    return {**feed, **run_named(open_session(copied, optimized=False, brief=True), feed)}


def _error(
    proto: onnx.ModelProto, runtime: type[Runtime], values: dict[str, NDArray[np.generic]], name: str, part: Segment
) -> LayerError:
    model, inputs = part.model(proto, [values]), {name: values[name] for name in part.inputs}
    [output] = part.outputs
    sqnr = _sqnr(values[output], runtime(model).run(inputs)[output])
    if sqnr >= WRONG:
        return LayerError(name, sqnr)
    other, opened = runtime.without_saturation(model)
    [expected] = run(open_session(other, optimized=False), inputs)
    return LayerError(name, sqnr, _sqnr(expected, opened.run(inputs)[output]) >= WRONG)


def _sqnr(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    signal = float(np.sum(np.square(expected, dtype=np.float64)))
    noise = float(np.sum(np.square(np.subtract(found, expected, dtype=np.float64))))
    return decibels(signal, noise) if signal > 0 else math.inf  # without a signal nothing tells noise from rounding
