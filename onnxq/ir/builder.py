"""New nodes and tensors, under names that nothing in the graph has yet."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx_graphsurgeon import Constant, Node, Tensor, Variable

from onnxq.ir.model import Model


class Builder:
    """Makes what is to go into a model's graph; behind a name that is taken goes a number.

    Args:
        model: whose names are taken, and so are those that were made before.
    """

    def __init__(self, model: Model) -> None:
        self._taken = model.taken_names()

    def name(self, wanted: str) -> str:
        """The name, or with a number behind it where it is taken."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def constant(self, name: str, values: NDArray[np.generic]) -> Constant:
        """A constant."""
        return Constant(self.name(name), values)

    def variable(
        self, name: str, dtype: "np.dtype[np.generic] | None" = None, shape: Sequence[int | str | None] | None = None
    ) -> Variable:
        """A tensor that a node is to make; its type and shape are None where they are left to inference."""
        return Variable(self.name(name), dtype, None if shape is None else list(shape))

    def node(self, op: str, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], **attrs: object) -> Node:
        """A node of an operator of ONNX."""
        return Node(op, self.name(name), attrs, list(inputs), list(outputs))

    def cast(self, tensor: Tensor, made: Tensor, to: int) -> Node:
        """A Cast from a tensor to another, which gives it the name.

        Args:
            tensor: as it is.
            made: as it is wanted.
            to: ONNX's number of its type.
        """
        return self.node("Cast", f"{made.name}_Cast", [tensor], [made], to=to)
