"""Pooling, resizing and maxima, where runtimes differ from ONNX."""

from collections.abc import Iterator, Sequence

from onnxq.ir import Node, constant, is_layer, producer

_DEFAULT_COORDINATES = "half_pixel"
"""`coordinate_transformation_mode` of a Resize that has none (ONNX operator Resize, opset 11)."""

_DEFAULT_NEAREST = "round_prefer_floor"
"""Its `nearest_mode`."""

_EXTREMES = frozenset({"GlobalMaxPool", "ReduceMax", "ReduceMin"})
"""The greatest or least values over axes."""


def has_partial_windows(pool: Node) -> bool:
    """Return whether the last windows of a pooling reach beyond the padded image, or may do so at some size.

    They do with `ceil_mode` if the strides do not divide what is left beside the first window (ONNX operators
    AveragePool and MaxPool, opset 10).
    """
    if not pool.attrs.get("ceil_mode", 0) or pool.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return False
    kernel = pool.attrs["kernel_shape"]
    sizes = (pool.inputs[0].shape or ())[2:]
    if len(sizes) != len(kernel) or not all(isinstance(size, int) for size in sizes):
        return True
    return any(rest for rest in _rests(sizes, kernel, pool))


def _rests(sizes: Sequence[int], kernel: Sequence[int], pool: Node) -> Iterator[int]:
    axes = len(kernel)
    strides, dilations = (pool.attrs.get(name, [1] * axes) for name in ("strides", "dilations"))
    pads = pool.attrs.get("pads", [0] * 2 * axes)
    for axis, size in enumerate(sizes):
        window = (kernel[axis] - 1) * dilations[axis] + 1
        yield (size + pads[axis] + pads[axis + axes] - window) % strides[axis]


def misaveraged_by_onnxruntime(node: Node) -> str:
    """Return how onnxruntime averages a pooling on integers wrongly, empty if it does not.

    Where the padding counts, its QLinearAveragePool divides the last windows, which reach beyond the padding, by the
    size of the kernel (`findings/onnxruntime_average_pool_ceil.sh`). It knows no dilations (ONNX operator AveragePool,
    opset 19), and a file with some does not load.
    """
    if node.op != "AveragePool":
        return ""
    if set(node.attrs.get("dilations", [1])) != {1}:
        return "onnxruntime has no AveragePool with dilations on integers"
    if _ends_in_counted_padding(node):
        return "onnxruntime divides windows that reach beyond the padding by the whole kernel"
    return ""


def _ends_in_counted_padding(pool: Node) -> bool:
    """Return whether the last windows of an AveragePool reach beyond a padding that counts."""
    return _counts_padding(pool) and has_partial_windows(pool)


def padded_with_integer_zero(node: Node) -> str:
    """Return how OpenVINO averages a pooling on integers wrongly, empty if it does not.

    A padding that counts has the integer 0, which is not the value 0 (`findings/openvino_average_pool_padding.sh`).
    """
    if node.op == "AveragePool" and _counts_padding(node) and any(node.attrs.get("pads", [])):
        return "OpenVINO takes a padding that counts for the integer 0"
    return ""


def behind_a_maximum(node: Node) -> str:
    """Return how OpenVINO computes the input of a Conv wrongly, empty if it does not.

    OpenVINO 2026.4 fuses a maximum or minimum over axes with operators of one input behind it and with the Q, also
    through a Concat. It rounds to whole numbers before the Q divides (`findings/openvino_reduce_max_steps.sh`).
    """
    if node.op != "Conv":
        return ""
    stack, seen = [node.inputs[0]], set[str]()
    while stack:
        source = producer(stack.pop())
        if source is None or source.name in seen or is_layer(source):
            continue
        seen.add(source.name)
        if source.op in _EXTREMES:
            return f"OpenVINO computes {source.op} with a Q behind it wrongly"
        computed = [tensor for tensor in source.inputs if tensor.name and constant(tensor) is None]
        if len(computed) == 1 or source.op == "Concat":
            stack += computed
    return ""


def miscomputed_by_openvino(node: Node) -> str:
    """Return how OpenVINO computes a node wrongly on integers, empty if it does not."""
    return padded_with_integer_zero(node) or behind_a_maximum(node)


def moved_by_qnn(node: Node) -> str:
    """Return how QNN averages a pooling on integers wrongly, empty if it does not.

    QNN 2.51 moves the windows of most padded poolings with strides (`findings/qnn_average_pool_edges.sh`). Those of
    3 x 3 with a stride of 2 are right.
    """
    if node.op != "AveragePool" or not any(node.attrs.get("pads", [])):
        return ""
    kernel, strides = set(node.attrs["kernel_shape"]), set(node.attrs.get("strides", [1]))
    is_right = strides == {1} or (kernel, strides) == ({3}, {2})
    return "" if is_right else "QNN moves the windows of a padded pooling with strides"


def _counts_padding(pool: Node) -> bool:
    return bool(pool.attrs.get("count_include_pad", 0))


def misread_by_qnn(node: Node) -> str:
    """Return how QNN 2.51 computes a node otherwise than ONNX, in float as well; empty if it does not.

    `findings/qnn_resize_modes.sh` and `findings/qnn_average_pool_edges.sh` show it.
    """
    if node.op == "AveragePool" and has_partial_windows(node):
        return "the last windows, which reach beyond the image, are wrong; export it without ceil_mode"
    if node.op == "Resize":
        return _qnn_resize(node)
    return ""


def misread_by_rknn(node: Node) -> str:
    """Return how rknn-toolkit2 2.5 computes a node otherwise than ONNX, in float as well; empty if it does not.

    `findings/rknn_average_pool_ceil.sh` shows it. MaxPools that it computes wrongly, such as those of SPP, are split in
    files for `generic` (`onnxq.passes.split_max_pool`).
    """
    if node.op == "AveragePool" and _ends_in_counted_padding(node):
        return "it divides windows that reach beyond the padding by the whole kernel; export it without ceil_mode"
    return ""


def _qnn_resize(node: Node) -> str:
    coordinates = node.attrs.get("coordinate_transformation_mode", _DEFAULT_COORDINATES)
    mode, nearest = node.attrs.get("mode", "nearest"), node.attrs.get("nearest_mode", _DEFAULT_NEAREST)
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if mode == "linear" and scales is not None and scales.size and _has_fractions(node, scales.tolist()):
        return "it takes the ratio of the sizes for the scale; export it with sizes"
    if mode != "nearest":
        return ""
    remedy = "export it with asymmetric and floor, as PyTorch does"
    if coordinates == "asymmetric":
        return f"it rounds {nearest} down; {remedy}" if nearest == "round_prefer_ceil" else ""
    if nearest in ("floor", "ceil"):
        return f"it rounds coordinates of {coordinates}, where {nearest} is asked for; {remedy}"
    if coordinates.endswith("half_pixel") and nearest == "round_prefer_floor" and _shrinks(node):
        return f"it rounds halves up, where {nearest} is asked for; {remedy}"
    return ""


def _has_fractions(node: Node, scales: Sequence[float]) -> bool:
    """Return whether the sizes of the output are rounded down, or may be."""
    shape = node.inputs[0].shape
    if shape is None or len(shape) != len(scales):
        return True
    return any(
        scale != 1 and (not isinstance(size, int) or not (size * scale).is_integer())
        for size, scale in zip(shape, scales, strict=True)
    )


def _shrinks(node: Node) -> bool:
    """Return whether the output is smaller than the input, or may be."""
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None:
        return True
    pairs = list(zip(before[2:], after[2:], strict=False))
    return not all(isinstance(a, int) and isinstance(b, int) and a <= b for a, b in pairs)
