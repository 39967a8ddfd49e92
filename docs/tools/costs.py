"""Cost of a quantized detector as Q-YOLO counts it: multiplications, OPs, BOPs and packed bytes of its Convs."""

from collections.abc import Iterable
from dataclasses import dataclass

from onnxq.errors import ModelError
from onnxq.facts import DecodeBoundary, Plan
from onnxq.ir import Model, constant
from onnxq.targets.float_last import products
from onnxq.targets.sizes import declared_sizes

FLOAT_BITS = 32


@dataclass(frozen=True)
class Layer:
    """A Conv in front of the decode.

    Attributes:
        name: name of the node.
        products: multiplications for one image.
        parameters: elements of the weight.
        weight_bits, act_bits: bits of the weight and of the input; 32 if the Conv stays float.
    """

    name: str
    products: int
    parameters: int
    weight_bits: int = FLOAT_BITS
    act_bits: int = FLOAT_BITS


def layers(model: Model, head: DecodeBoundary, plan: Plan | None = None) -> list[Layer]:
    """Return the Convs of a prepared graph with their bit widths in the plan; without a plan all are float.

    Raises:
        ModelError: the spatial size of a Conv's output is not known.
    """
    weights = {name: w.scheme.bits for w in plan.weights for name in w.users} if plan else {}
    inputs = {name: point.scheme.bits for point in plan.points for name in point.users} if plan else {}
    sizes = declared_sizes(model)
    found = []
    for node in model.graph.nodes:
        weight = constant(node.inputs[1]) if node.op in ("Conv", "ConvTranspose") else None
        if weight is None or node.name not in head.body:
            continue
        widths = (weights[node.name], inputs[node.name]) if node.name in weights else ()
        count = products(node, sizes)
        if count is None:
            raise ModelError(f"{node.name}: the size of its images is not known; export the model with a fixed size")
        found.append(Layer(node.name, count, weight.size, *widths))
    return found


def operations(found: Iterable[Layer]) -> float:
    """Return OPs: two for each product, scaled by the wider of both operands, max(W, A) / 32."""
    return sum(2 * layer.products * max(layer.weight_bits, layer.act_bits) / FLOAT_BITS for layer in found)


def bit_operations(found: Iterable[Layer]) -> int:
    """Return BOPs: products x W x A."""
    return sum(layer.products * layer.weight_bits * layer.act_bits for layer in found)


def packed_size(size: int, found: Iterable[Layer]) -> float:
    """Return the bytes of a file of `size` bytes if each int8 weight were stored in its bit width."""
    return size - sum(layer.parameters * (1 - layer.weight_bits / 8) for layer in found if layer.weight_bits < 8)
