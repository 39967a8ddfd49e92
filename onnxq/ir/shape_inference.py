"""Shapes and types of all tensors of a graph, as far as they follow from its inputs."""

import logging

import onnx
from onnx import shape_inference
from onnx_graphsurgeon import Variable

from onnxq.ir.model import Model
from onnxq.ir.proto import for_shape_inference

log = logging.getLogger(__name__)


def infer_shapes(model: Model) -> int:
    """Give tensors their shape and element type, by ONNX shape inference with data propagation.

    Inference goes node by node: behind a node that it does not understand it takes up again where shapes are known.
    Large constants take part by their shape alone, so that a model of any size is inferred in little memory.

    Returns:
        How many tensors got a shape or a type.
    """
    try:
        inferred = shape_inference.infer_shapes(
            for_shape_inference(model.to_proto()), strict_mode=False, data_prop=True
        )
    except Exception as error:  # it raises whatever the nodes' own functions raise
        log.warning("shapes could not be inferred: %s", str(error).strip().splitlines()[0])
        return 0
    tensors = model.graph.tensors()
    named = {dim for t in model.graph.inputs for dim in t.shape or () if isinstance(dim, str)}
    return sum(_learn(tensors.get(info.name), info.type.tensor_type, named) for info in inferred.graph.value_info)


def _learn(tensor: Variable | None, inferred: onnx.TypeProto.Tensor, named: set[str]) -> int:
    if not isinstance(tensor, Variable) or not inferred.elem_type:
        return 0
    dtype = onnx.helper.tensor_dtype_to_np_dtype(inferred.elem_type)
    shape = [_dim(dim, named) for dim in inferred.shape.dim] if inferred.HasField("shape") else tensor.shape
    if (tensor.dtype, tensor.shape) == (dtype, shape):
        return 0
    tensor.dtype, tensor.shape = dtype, shape
    return 1


def _dim(dim: onnx.TensorShapeProto.Dimension, named: set[str]) -> int | str | None:
    """A length, the name of an input's dimension, or None: names that the inference makes up mean nothing."""
    if dim.HasField("dim_value"):
        return dim.dim_value
    return dim.dim_param if dim.dim_param in named else None
