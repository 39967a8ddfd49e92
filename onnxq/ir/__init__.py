"""The model as a graph, for pass authors: every name that a pass needs is importable from here.

A pass edits `Model.graph`, a graph of ONNX GraphSurgeon, whose classes `Graph`, `Node`, `Tensor`, `Constant` and
`Variable` are re-exported: only this package imports that library.

- builder: new nodes and tensors under unused names
- query, edit: questions about the graph, and changes of it
- operators: sets of operators, and predicates on nodes
- shape_inference: shapes and types; the only caller of onnx.shape_inference
- load, storage, repair: reading and writing files, and repairing faults of exporters
- weights: large weights stay in files, and tensors link to them
- checks: refuse malformed models
- proto, index, extract: work on the ONNX message itself, without a graph: copies, look-ups, parts of a model
- unsupported_tail: operators at the end that cannot run here, detached and reattached
"""

from onnx_graphsurgeon import Constant, Graph, Node, Tensor, Variable

from onnxq.ir.builder import Builder
from onnxq.ir.checks.layers import layer_fault
from onnxq.ir.edit import remove, replace_nodes, replace_uses, set_bias
from onnxq.ir.extract import (
    Segment,
    before_selection,
    comparable,
    ending_at,
    node_alone,
    read_from,
    segment_behind,
    segment_from,
)
from onnxq.ir.index import ProtoIndex
from onnxq.ir.model import Model
from onnxq.ir.operators import (
    CHANNELWISE_LINEAR,
    CONVS,
    INTEGER_OPS,
    LAYERS,
    MOVES_VALUES,
    QDQ_OPS,
    bias_of,
    feeds_only_silu,
    has_plain_bias,
    image_convs,
    is_depthwise,
    is_layer,
    is_pointwise,
    is_scaling,
    is_silu,
    next_layers,
    output_axis,
    takes_bias,
)
from onnxq.ir.proto import (
    DEFAULT_DOMAINS,
    IR_VERSION,
    copy_message,
    names_read,
    opset_of,
    restore_weights,
    with_weight_inputs,
)
from onnxq.ir.query import ancestors, constant, consumers, data_inputs, downstream, dtype_of, is_float, producer
from onnxq.ir.shape_inference import InferenceError, infer_shapes, inferred_graph, inferred_types
from onnxq.ir.storage import loadable
from onnxq.ir.weights.links import embedded, values_of

__all__ = [
    "CHANNELWISE_LINEAR",
    "CONVS",
    "DEFAULT_DOMAINS",
    "INTEGER_OPS",
    "IR_VERSION",
    "LAYERS",
    "MOVES_VALUES",
    "QDQ_OPS",
    "Builder",
    "Constant",
    "Graph",
    "InferenceError",
    "Model",
    "Node",
    "ProtoIndex",
    "Segment",
    "Tensor",
    "Variable",
    "ancestors",
    "before_selection",
    "bias_of",
    "comparable",
    "constant",
    "consumers",
    "copy_message",
    "data_inputs",
    "downstream",
    "dtype_of",
    "embedded",
    "ending_at",
    "feeds_only_silu",
    "has_plain_bias",
    "image_convs",
    "infer_shapes",
    "inferred_graph",
    "inferred_types",
    "is_depthwise",
    "is_float",
    "is_layer",
    "is_pointwise",
    "is_scaling",
    "is_silu",
    "layer_fault",
    "loadable",
    "names_read",
    "next_layers",
    "node_alone",
    "opset_of",
    "output_axis",
    "producer",
    "read_from",
    "remove",
    "replace_nodes",
    "replace_uses",
    "restore_weights",
    "segment_behind",
    "segment_from",
    "set_bias",
    "takes_bias",
    "values_of",
    "with_weight_inputs",
]
