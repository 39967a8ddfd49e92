"""Sanity checks of calibration data: range of values, duplicates, and the output of the first layer."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.facts import InputSummary
from onnxq.ir import names_read
from onnxq.runtime.session import Feed, open_session, run
from onnxq.yolo.detector import Detector
from onnxq.yolo.output_layout import UNKNOWN

log = logging.getLogger(__name__)

_LEAST_SHARE, _GREATEST_SHARE = 0.01, 1.5
"""Bounds of the data's greatest value, as a fraction of the greatest that the model takes. A wrong factor of 255 is far
outside."""

_LEAST_SPREAD, _GREATEST_SPREAD = 0.03, 25.0
"""Bounds of the standard deviation of the first layer's output, mean over its channels. Activation functions bend near
1, so trained networks are near there: 2.3 (YOLOv5n), 2.9 (YOLOX-Nano); random weights give 0.2 to 0.3. A factor of 255
too much gives 58 and more, one too little 0.011 and less."""

_FEW = 4
"""Number of samples up to which equal ones are no reason for a warning."""


def check_inputs(inputs: InputSummary, detector: Detector) -> Iterator[str]:
    """Yield a sentence for each fault of the calibration samples.

    Args:
        inputs: summary of the samples.
        detector: what the model takes.
    """
    if not inputs.samples:
        return
    low, high = inputs.low, inputs.high
    greatest = detector.preprocess.value_range[1]
    taken = f"this model ({detector.family}) takes values from 0 to {greatest:g}"
    if low == high:
        yield f"all values of the calibration data are {low:g}: ranges cannot be fitted to them"
    elif detector.family == UNKNOWN:
        pass
    elif low < -_LEAST_SHARE * greatest:
        yield (
            f"the calibration data goes down to {low:.3g}, and {taken}: do not subtract a mean, or give --preprocess"
        )
    elif not _LEAST_SHARE * greatest < high <= _GREATEST_SHARE * greatest:
        yield (
            f"the calibration data goes up to {high:.3g}, and {taken}: scale it by {greatest / high:.3g}, or give "
            "--preprocess"
        )
    if inputs.samples > _FEW and 2 * inputs.distinct <= inputs.samples:
        yield (f"only {inputs.distinct} of {inputs.samples} calibration samples differ: give more images, not copies")


def check_first_layer(model: onnx.ModelProto, detector: Detector, feeds: Sequence[Feed]) -> Iterator[str]:
    """Yield a sentence if the first layer on the image gives values that no trained network gives.

    A model whose first layer onnxruntime cannot run, such as one in bfloat16, is not checked.

    Args:
        model: the float model.
        detector: what the model takes.
        feeds: a few samples.
    """
    piece = _up_to_first_conv(model, detector.input_name)
    if piece is None or not feeds:
        return
    read = {value.name for value in piece.graph.input}
    try:
        session = open_session(piece, exact=True)
        spreads = [_spread(run(session, {k: v for k, v in feed.items() if k in read})[0]) for feed in feeds]
    except ModelError as error:
        log.info("the first layer cannot be checked: %s", error)
        return
    spread = float(np.mean(spreads))
    if not _LEAST_SPREAD <= spread <= _GREATEST_SPREAD:
        much = "little" if spread < _LEAST_SPREAD else "much"
        yield (
            f"the first layer, {piece.graph.name!r}, gives values that deviate by {spread:.3g}, and those of trained "
            f"networks deviate by about 1: the input ({detector.preprocess.describe()}) may be scaled too {much}; "
            "see --preprocess"
        )


def _spread(values: NDArray[np.generic]) -> float:
    """Standard deviation per channel of images, mean over the channels."""
    return float(values.astype(np.float64).std(axis=(0, 2, 3)).mean())


def _up_to_first_conv(model: onnx.ModelProto, image: str) -> onnx.ModelProto | None:
    """The model up to the first Conv on the image, named after it; None if there is no Conv."""
    made_of_image = {image}
    makers: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        makers.update(dict.fromkeys(node.output, node))
        if made_of_image.intersection(node.input):
            if node.op_type == "Conv" and node.input[0] in made_of_image:
                return _ending_with(model, node, makers)
            made_of_image.update(node.output)
    return None


def _ending_with(model: onnx.ModelProto, last: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> onnx.ModelProto:
    needed = {id(last): last}
    pending, read = [last], set()
    while pending:
        for name in names_read(pending.pop()):
            read.add(name)
            if name in makers and id(makers[name]) not in needed:
                needed[id(makers[name])] = makers[name]
                pending.append(makers[name])
    graph = onnx.helper.make_graph(
        [node for node in model.graph.node if id(node) in needed],
        last.name or last.output[0],
        [value for value in model.graph.input if value.name in read],
        [onnx.ValueInfoProto(name=last.output[0])],
        [weight for weight in model.graph.initializer if weight.name in read],
    )
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
