"""pack-int4: stores each weight of at most 4 bits in half a byte."""

import logging

import numpy as np
from onnx import TensorProto

from onnxq.ir import IR_VERSION, Builder, Constant, Model, Node, Tensor, Variable, replace_uses, values_of
from onnxq.pipeline import EVERYTHING, Facts, Rewrite

MIN_OPSET = 21
"""Cast takes int4 since this version."""

_LOWEST, _HIGHEST = -8, 7

log = logging.getLogger(__name__)


class PackInt4(Rewrite):
    """Stores int8 weights as INT4 (ONNX, opset 21 and IR version 10) behind a Cast to int8.

        weight_quantized_packed (int4) -> Cast -> weight_quantized (int8) -> DequantizeLinear

    - onnxruntime and OpenVINO compute the Cast when they load the file, before they search for integer layers, so
      they run the same kernels on the same integers. If a DequantizeLinear reads int4 directly, both run the layer
      behind it in float
    - zero points stay int8, and so do integers beyond -8 to 7, such as those of the first and the last layers
    - the lower half of each byte comes first; after an odd number of integers the last half is 0
    """

    name = "pack-int4"
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of weights packed."""
        builder = Builder(model)
        nodes: list[Node] = []
        packed: set[str] = set()
        for node in model.graph.nodes:
            if node.op == "DequantizeLinear" and _is_narrow(node.inputs[0]):
                nodes.append(_cast(node.inputs[0], builder))
                packed.add(nodes[-1].inputs[0].name)
            nodes.append(node)
        if not packed:
            log.warning("pack: no weight fits in 4 bits; the first and the last layers keep 8 bits")
            return 0
        model.graph.nodes = nodes
        # graphsurgeon writes new int4 tensors wrongly, but keeps those that it has read.
        proto = model.to_linked_proto()
        proto.ir_version = max(proto.ir_version, IR_VERSION)
        for tensor in proto.graph.initializer:
            if tensor.name in packed:
                tensor.CopyFrom(_int4(tensor))
        model.replace(proto)
        return len(packed)


def _is_narrow(tensor: Tensor) -> bool:
    if not isinstance(tensor, Constant) or tensor.dtype != np.int8:
        return False
    values = np.asarray(tensor.values, np.int8)
    return bool(np.all((values >= _LOWEST) & (values <= _HIGHEST)))


def _cast(stored: Constant, builder: Builder) -> Node:
    """Return a Cast whose output takes over the name and all consumers of a constant, which gets another name."""
    name = stored.name
    stored.name = builder.name(f"{name}_packed")
    unpacked = Variable(name, np.dtype(np.int8), list(stored.shape))
    replace_uses(stored, unpacked)
    return builder.cast(stored, unpacked, TensorProto.INT8)


def _int4(tensor: TensorProto) -> TensorProto:
    """Return an int8 tensor with values from -8 to 7 as int4."""
    values = values_of(tensor).ravel().view(np.uint8) & 15
    pairs = np.append(values, np.zeros(values.size % 2, np.uint8)).reshape(-1, 2)
    raw = (pairs[:, 0] | pairs[:, 1] << 4).tobytes()
    return TensorProto(name=tensor.name, data_type=TensorProto.INT4, dims=tensor.dims, raw_data=raw)
