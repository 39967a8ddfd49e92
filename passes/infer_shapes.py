"""infer-shapes: infers shapes and types of all tensors, as far as the inputs determine them."""

from onnxq.ir import Model, infer_shapes
from onnxq.pipeline import Facts, Rewrite


class InferShapes(Rewrite):
    """Gives tensors their shape and element type by ONNX shape inference; see `onnxq.ir.infer_shapes`."""

    name = "infer-shapes"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of tensors that got a shape or a type."""
        return infer_shapes(model)
