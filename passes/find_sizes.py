"""find-sizes: finds the sizes of the images in the network, at the size of image that the model is used with."""

import logging

from onnxq.errors import ModelError
from onnxq.ir import Model
from onnxq.pipeline import Analysis, Facts
from onnxq.targets.sizes import ImageSizes, declared_sizes, sizes_at
from onnxq.yolo.detector import Detector

log = logging.getLogger(__name__)


class FindSizes(Analysis[ImageSizes]):
    """Finds heights and widths, so that a model of dynamic size gets the plan of the same model of fixed size.

    Args:
        detector: the image input, and the size that images have there. None: the sizes that the graph declares.
    """

    name = "find-sizes"
    gives = ImageSizes

    def __init__(self, detector: Detector | None = None) -> None:
        self._detector = detector

    def run(self, model: Model, facts: Facts) -> ImageSizes:
        """Return the sizes; those that cannot be inferred are unknown."""
        detector = self._detector
        if detector is not None and not _is_declared(model, detector.input_name):
            try:
                return sizes_at(model, detector.input_name, detector.preprocess.shape(detector.size))
            except ModelError as error:
                log.warning("%s; rules that depend on sizes are left out", error)
        return declared_sizes(model)


def _is_declared(model: Model, name: str) -> bool:
    """Return whether the graph declares the size of an image input, or has no such input."""
    shapes = [tensor.shape for tensor in model.graph.inputs if tensor.name == name]
    return all(shape is None or all(isinstance(length, int) for length in shape[1:]) for shape in shapes)
