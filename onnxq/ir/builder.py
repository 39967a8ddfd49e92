"""New nodes and tensors under unused names."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx_graphsurgeon import Constant, Node, Tensor, Variable

from onnxq.ir.model import Model


class Builder:
    """Makes nodes and tensors for a model's graph; a name that is taken gets a number.

    Args:
        model: the names in its graph are taken, and so is each name that the builder gives out.
    """

    def __init__(self, model: Model) -> None:
        self._taken = model.taken_names()

    def name(self, wanted: str) -> str:
        """Return the wanted name, followed by a number if it is taken."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def constant(self, name: str, values: NDArray[np.generic]) -> Constant:
        """Return a constant tensor."""
        return Constant(self.name(name), values)

    def variable(
        self, name: str, dtype: "np.dtype[np.generic] | None" = None, shape: Sequence[int | str | None] | None = None
    ) -> Variable:
        """Return a tensor for a node to compute; a type or shape of None is left to inference."""
        return Variable(self.name(name), dtype, None if shape is None else list(shape))

    def node(self, op: str, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], **attrs: object) -> Node:
        """Return a node of one of ONNX's own operators."""
        return Node(op, self.name(name), attrs, list(inputs), list(outputs))

    def cast(self, tensor: Tensor, made: Tensor, to: int) -> Node:
        """Return a Cast from one tensor to another.

        Args:
            tensor: the input.
            made: the output; the node is named after it.
            to: element type of the output (ONNX TensorProto.DataType).
        """
        return self.node("Cast", f"{made.name}_Cast", [tensor], [made], to=to)
