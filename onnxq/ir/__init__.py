"""The graph of a model: reading, questions about it, edits, and new nodes and tensors.

graphsurgeon is imported nowhere else: `Node`, `Tensor`, `Constant` and `Variable` are its classes.
"""

import onnx_graphsurgeon as gs
from onnx_graphsurgeon import Constant, Node, Tensor, Variable

from onnxq.ir.builder import Builder
from onnxq.ir.edit import remove, replace_nodes, replace_uses, set_bias
from onnxq.ir.model import Model
from onnxq.ir.operators import (
    INTEGER_OPS,
    LAYERS,
    MOVES_VALUES,
    QDQ_OPS,
    bias_of,
    feeds_only_silu,
    has_plain_bias,
    is_depthwise,
    is_pointwise,
    is_silu,
    output_axis,
    takes_bias,
)
from onnxq.ir.proto import DEFAULT_DOMAINS, IR_VERSION, copy_message, names_read, opset_of
from onnxq.ir.query import ancestors, constant, consumers, data_inputs, downstream, dtype_of, is_float, producer

__all__ = [
    "DEFAULT_DOMAINS",
    "INTEGER_OPS",
    "IR_VERSION",
    "LAYERS",
    "MOVES_VALUES",
    "QDQ_OPS",
    "Builder",
    "Constant",
    "Model",
    "Node",
    "Tensor",
    "Variable",
    "ancestors",
    "bias_of",
    "constant",
    "consumers",
    "copy_message",
    "data_inputs",
    "downstream",
    "dtype_of",
    "feeds_only_silu",
    "gs",
    "has_plain_bias",
    "is_depthwise",
    "is_float",
    "is_pointwise",
    "is_silu",
    "names_read",
    "opset_of",
    "output_axis",
    "producer",
    "remove",
    "replace_nodes",
    "replace_uses",
    "set_bias",
    "takes_bias",
]
