"""Shape inference: the only caller of onnx.shape_inference.

Weights take part by their shape alone, so that a model of any size is inferred in little memory: a protocol buffer
holds at most 2 GB, and onnx refuses larger ones.
"""

import logging
from collections.abc import Mapping

import onnx
from onnx import shape_inference
from onnx_graphsurgeon import Variable

from onnxq.errors import ModelError
from onnxq.ir.model import Model
from onnxq.ir.proto import for_shape_inference

InferenceError = shape_inference.InferenceError
"""Raised by onnx where it infers shapes by itself, as its checker and its version converter do."""

log = logging.getLogger(__name__)


def inferred_graph(model: onnx.ModelProto, *, data_prop: bool = True) -> onnx.GraphProto:
    """Return the graph of a model without its weights, with inferred descriptions of inner tensors and outputs.

    Inference goes node by node: it skips a node that it does not know, and resumes where shapes are known. It starts
    from the declared inputs and outputs; descriptions of inner tensors in the model are not believed.

    Args:
        model: not changed.
        data_prop: also compute the values of small shape tensors, as in a Reshape to a computed shape.

    Raises:
        ModelError: onnx fails on a node.
    """
    try:
        return shape_inference.infer_shapes(for_shape_inference(model), data_prop=data_prop).graph
    except Exception as error:  # the inference functions of operators share no narrower base
        raise ModelError(f"shapes could not be inferred: {str(error).strip().splitlines()[0]}") from error


def inferred_types(model: onnx.ModelProto) -> Mapping[str, onnx.ValueInfoProto]:
    """Return the inferred descriptions of a model's inner tensors by name, as `inferred_graph` finds them.

    Raises:
        ModelError: as from `inferred_graph`.
    """
    return {value.name: value for value in inferred_graph(model).value_info}


def declared_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """Return the shape of a description, with None for lengths that are not known; None if it states no shape."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)


def infer_shapes(model: Model) -> int:
    """Give tensors the shape and element type that inference finds; where it fails, log a warning.

    Returns:
        The number of tensors that got a shape or a type.
    """
    try:
        inferred = inferred_graph(model.to_proto_without_weights())
    except ModelError as error:
        log.warning("%s", error)
        return 0
    tensors = model.graph.tensors()
    named = {dim for t in model.graph.inputs for dim in t.shape or () if isinstance(dim, str)}
    return sum(_learn(tensors.get(info.name), info.type.tensor_type, named) for info in inferred.value_info)


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
