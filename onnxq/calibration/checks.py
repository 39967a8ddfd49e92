"""Sanity checks of calibration data: range of values, duplicates, and the output of the first layer."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx

from onnxq._text import plural, size_text
from onnxq.errors import DataError, ModelError
from onnxq.facts import InputSummary, PreparedImages
from onnxq.ir import ProtoIndex
from onnxq.runtime.session import Feed
from onnxq.yolo.detector import Detector
from onnxq.yolo.inputs.first_layer import LEAST_SPREAD, first_conv, is_of_trained_network, spread
from onnxq.yolo.output_layout import UNKNOWN
from onnxq.yolo.preprocess import YOLO, parse_preprocess

log = logging.getLogger(__name__)

_LEAST_SHARE, _GREATEST_SHARE = 0.01, 1.5
"""Bounds of the data's greatest value, as a fraction of the greatest that the model takes. A wrong factor of 255 is far
outside."""

_FEW = 4
"""Number of samples up to which equal ones are no reason for a warning."""

_TOO_FEW = 10
"""Number of samples below which ranges depend on which ones they are."""

_OFTEN = 0.2
"""Share of the samples that one image may make up."""


def check_inputs(inputs: InputSummary, detector: Detector) -> Iterator[str]:
    """Yield a sentence for each fault of the calibration samples.

    Args:
        inputs: summary of the samples.
        detector: what the model takes.
    """
    if not inputs.samples:
        return
    low, high = inputs.low, inputs.high
    least, greatest = detector.preprocess.value_range
    span = greatest - least
    taken = f"this model ({detector.family}) takes values from {least:.3g} to {greatest:.3g}"
    if low == high:
        yield f"all values of the calibration data are {low:g}: ranges cannot be fitted to them"
    elif detector.family == UNKNOWN:
        pass
    elif low < least - _LEAST_SHARE * span:
        remedy = "scale it" if least < 0 else "do not subtract a mean"
        yield f"the calibration data goes down to {low:.3g}, and {taken}: {remedy}, or give --preprocess"
    elif not _LEAST_SHARE < (high - least) / span <= _GREATEST_SHARE:
        yield (
            f"the calibration data goes up to {high:.3g}, and {taken}: scale it by {greatest / high:.3g}, or give "
            "--preprocess"
        )
    elif low >= 0 > least:
        yield f"the calibration data has no value below 0, and {taken}: subtract the mean, or give --preprocess"
    if inputs.samples > _FEW and 2 * inputs.distinct <= inputs.samples:
        yield (f"only {inputs.distinct} of {inputs.samples} calibration samples differ: give more images, not copies")
    elif inputs.most_equal > max(_FEW, _OFTEN * inputs.samples):
        yield f"{inputs.most_equal} of {inputs.samples} calibration samples are one and the same: leave copies out"
    if inputs.blank and low != high:
        share = "all" if inputs.blank == inputs.samples else f"{inputs.blank} of {inputs.samples}"
        such_as = f" (such as {inputs.blank_file})" if inputs.blank_file else ""
        yield (
            f"{share} calibration samples show next to nothing{such_as}: leave out blank images, and masks or label "
            "maps if any are among them"
        )
    if 2 * inputs.interleaved > inputs.samples:
        yield (
            f"{inputs.interleaved} of {inputs.samples} calibration samples have the three colours of a pixel side by "
            "side, where the model takes a plane for each: turn (height, width, 3) into (3, height, width) with "
            "transpose(2, 0, 1), not with reshape"
        )
    if inputs.grey == inputs.samples and low != high:
        yield "all calibration samples are grey: if the model will see colours, give coloured images"


def check_prepared(images: PreparedImages, detector: Detector) -> None:
    """Check that the images of a calibration that is given were prepared as the model takes them now.

    Args:
        images: how they were prepared.
        detector: what the model takes.

    Raises:
        DataError: they were prepared differently.
    """
    now, then = detector.preprocess, parse_preprocess(images.preprocess)(YOLO)
    # What the type and the planes of the input decide is the model's, and a difference in it is none in the images.
    before = replace(now, bgr=then.bgr, values=then.values, place=then.place)
    if before.describe() != now.describe():
        raise DataError(
            f"the calibration was made with images prepared as {before.describe()}, and now they are prepared as "
            f"{now.describe()}; calibrate again with --calib, or give --preprocess {images.preprocess} if it is of "
            "this model"
        )
    if images.size != detector.size:
        before_size, now_size = size_text(images.size), size_text(detector.size)
        raise DataError(
            f"the calibration was made with images of {before_size} px, and now they are of {now_size} px; calibrate "
            f"again with --calib, or give --image-size {before_size} if it is of this model"
        )


def check_number(inputs: InputSummary) -> Iterator[str]:
    """Yield a sentence if there are few samples, of data that is not synthetic."""
    if 0 < inputs.samples < _TOO_FEW:
        yield f"only {inputs.samples} calibration sample{plural(inputs.samples)}: give about 100 images"


def check_first_layer(model: onnx.ModelProto, detector: Detector, feeds: Sequence[Feed]) -> Iterator[str]:
    """Yield a sentence if the first layer on the image gives values that no trained network gives.

    A model whose first layer onnxruntime cannot run, such as one in bfloat16, is not checked.

    Args:
        model: the float model.
        detector: what the model takes.
        feeds: a few samples.
    """
    layer = first_conv(ProtoIndex(model.graph), detector.input_name)
    if layer is None or not feeds:
        return
    try:
        deviation = spread(model, layer, feeds)
    except ModelError as error:
        log.info("the first layer cannot be checked: %s", error)
        return
    if not is_of_trained_network(deviation):
        much = "little" if deviation < LEAST_SPREAD else "much"
        yield (
            f"the first layer, {layer.name!r}, gives values that deviate by {deviation:.3g}, and those of trained "
            f"networks deviate by about 1: the input ({detector.preprocess.describe()}) may be scaled too {much}; "
            "see --preprocess"
        )
