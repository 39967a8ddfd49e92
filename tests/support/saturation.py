"""Sums of products as CPUs without VNNI compute them, in numpy."""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from graphs import initializers, nodes, rewrite, run

from onnxq.facts import Migration, Plan, QuantizationParameters, Reconstruction
from onnxq.passes.migrate_scales import MigrateScales
from onnxq.pipeline import Facts


def saturating_sums(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the sums of products along the last axis by VPMADDUBSW: those of each pair saturate at 16 bits.

    An odd number of products is filled up with a zero, as kernels do.

    Args:
        left: unsigned bytes, int64.
        right: signed bytes, int64.
    """
    products = left * right
    products = np.concatenate([products, np.zeros((*products.shape[:-1], products.shape[-1] % 2), np.int64)], axis=-1)
    return np.clip(products[..., 0::2] + products[..., 1::2], -(2**15), 2**15 - 1).sum(axis=-1)


def windows(node: onnx.NodeProto, image: np.ndarray, kernel: tuple[int, int], padding: int) -> np.ndarray:
    """Return the inputs of a Conv at each position, (positions, kernel height, kernel width, channels)."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    padded = np.pad(image, ((0, 0), (top, bottom), (left, right)), constant_values=padding)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, attributes.get("dilations", (1, 1)))]
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    down, across = attributes.get("strides", (1, 1))
    high, wide = attributes.get("dilations", (1, 1))
    taken = view[:, ::down, ::across, ::high, ::wide]
    return taken.reshape(len(image), -1, *kernel).transpose(1, 2, 3, 0)


def excesses(model: onnx.ModelProto, quantized: onnx.ModelProto, facts: Facts, values: Mapping) -> dict[str, int]:
    """Return by how much the sums of each Conv and product on integers differ from the exact ones, at most.

    The products are paired in all ways of kernels: the channels of each position of the kernel, and all inputs in the
    order of NHWC, or of NWHC if there is one channel. Convs with one filter per channel, which kernels compute in 32
    bits, and ConvTransposes with groups, which run in float, are left out.

    Args:
        model: the float model, with the weights.
        quantized: run, for the integers of the inputs.
        facts: of the quantization.
        values: the inputs.
    """
    if Migration in facts:
        model, _ = rewrite(MigrateScales(), model, facts)
    reconstruction = facts.get(Reconstruction) or Reconstruction({}, {}, {})
    parameters = reconstruction.over(facts[QuantizationParameters])
    names = sorted({nodes(model)[name].input[0] for name in facts[Plan].layers} - values.keys())
    floats = {**run(quantized, values, outputs=names), **values}
    found = {}
    for name in facts[Plan].layers:
        node = nodes(model)[name]
        grid = parameters.activations[node.input[0]]
        weight = parameters.quantized(node.input[1], initializers(model)[node.input[1]]).astype(np.int64)
        offset = 128 if grid.scheme.container.is_signed else 0
        image = grid.quantize(floats[node.input[0]]).astype(np.int64) + offset
        pairs = list(_operands(node, image, weight, int(grid.zero_point) + offset))
        if pairs:
            found[name] = max(_excess(left, right) for left, right in pairs)
    return found


def _operands(
    node: onnx.NodeProto, values: np.ndarray, weight: np.ndarray, padding: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield inputs (positions, height, width, channels) and weights (outputs, height, width, channels) by group."""
    if node.op_type in ("Gemm", "MatMul"):
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        matrix = weight if transposed else weight.T
        yield values.reshape(-1, 1, 1, matrix.shape[1]), matrix[:, None, None, :]
        return
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type == "ConvTranspose":
        if groups == 1:
            pixels = np.moveaxis(values, 1, -1).reshape(-1, 1, 1, values.shape[1])
            yield pixels, weight.reshape(len(weight), -1).T[:, None, None, :]
        return
    assert node.op_type == "Conv"
    if weight.shape[1] == 1 and groups == len(weight) > 1:
        return
    for image in values:
        for part, filters in zip(np.split(image, groups), np.split(weight, groups), strict=True):
            yield windows(node, part, weight.shape[2:], padding), filters.transpose(0, 2, 3, 1)


def _excess(left: np.ndarray, right: np.ndarray) -> int:
    worst = 0
    for filters in right:
        exact = (left * filters).sum(axis=(1, 2, 3))
        by_position = saturating_sums(left, filters).sum(axis=(1, 2))
        in_order = saturating_sums(left.reshape(len(left), -1), filters.reshape(1, -1))
        found = [by_position, in_order]
        if left.shape[3] == 1:
            columns = left.swapaxes(1, 2).reshape(len(left), -1)
            found.append(saturating_sums(columns, filters.swapaxes(0, 1).reshape(1, -1)))
        worst = max(worst, *(int(np.abs(sums - exact).max()) for sums in found))
    return worst
