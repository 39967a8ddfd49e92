"""infer-shapes: shapes and types of all tensors, as far as they follow from the inputs."""

from onnxq.graph import Model
from onnxq.pipeline import Facts, Rewrite
from onnxq.shapes import infer


class InferShapes(Rewrite):
    """Gives tensors their shape and element type, as `shapes.infer` says."""

    name = "infer-shapes"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of tensors that got a shape or a type."""
        return infer(model)
