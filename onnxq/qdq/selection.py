"""Node selection: which nodes run on integers on a target, and why the others stay float.

Three phases, a function each: `refuse` finds the nodes that stay float regardless of their neighbors; `demand` visits
the nodes backwards from the outputs and adds those whose outputs are read as integers; `withdraw` removes nodes that
must not follow floats.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from onnxq.facts import DecodeBoundary, Reason
from onnxq.ir import (
    LAYERS,
    Model,
    Node,
    Tensor,
    bias_of,
    constant,
    consumers,
    is_depthwise,
    is_float,
    is_pointwise,
    output_axis,
    producer,
)
from onnxq.qdq.network import Network, operands
from onnxq.qdq.reasons import Code, is_choice
from onnxq.targets import Role, Rule, Target
from onnxq.targets.rules import CARRIERS
from onnxq.targets.sizes import ImageSizes
from onnxq.targets.stem import FloatStemRule

_FIRST = FloatStemRule(channels=32, products=math.inf)
"""Convs that keep `placement.ENDS_BITS`, as the first one does: high resolution and few weights."""


class NodeSelection:
    """The nodes that run on integers.

    Args:
        model: its nodes are in topological order.
        boundary: where the network ends.
        target: its rules.
        sizes: of the images in the graph.
        excluded: name of a node that must stay float -> the pattern that matches it.
        included: names of nodes that run on integers unless that is impossible.
        lost: name of a layer that stays float, unless it is included, because of the values of its tensors -> why.

    Attributes:
        target: as given.
        integer: names of the nodes that run on integers.
        layers: those of them that have weights, in graph order.
        skipped: name -> reason, for every other node.
        ends: names of the layers that lose most by few bits: those near the image, the last ones, those of the decode.
        downstream_of_layers: names of the nodes that depend on a layer.
    """

    def __init__(
        self,
        model: Model,
        boundary: DecodeBoundary,
        target: Target,
        sizes: ImageSizes,
        excluded: Mapping[str, str],
        included: Collection[str] = (),
        lost: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        network = Network(model, boundary, target, sizes)
        refused = refuse(network, excluded, included, lost)
        wanted, unwanted = demand(network, refused, included)
        withdrawn = withdraw(network, wanted, included)
        reasons = {**refused, **unwanted, **withdrawn}
        self.target = target
        self.integer = wanted - withdrawn.keys()
        self.skipped = {node.name: reasons[node.name] for node in network.nodes if node.name in reasons}
        self.layers = [n for n in network.nodes if n.name in self.integer and self.rule(n).role is Role.LAYER]
        self.ends = network.last | network.decode | _FIRST.convs(network.nodes, sizes, network.inner)
        self.downstream_of_layers = network.downstream_of_layers
        self._network = network
        self._refused = refused
        self._lost = lost

    def rule(self, node: Node) -> Rule:
        """Return the rule of an integer node."""
        return self.target.rules[node.op]

    def has_float_output(self, node: Node) -> bool:
        """Return whether no Q stands directly behind this integer node."""
        if not self.rule(node).output or self._network.runs_as_matmul(node, self.integer):
            return True
        activation = self._network.fused_activation(node)
        return activation is not None and activation.name in self.integer

    def is_fused(self, node: Node) -> bool:
        """Return whether this node is an activation that is fused with the integer node before it."""
        before = self._network.fused_with(node)
        return before is not None and before.name in self.integer

    def identity(self, add: Node) -> list[Tensor]:
        """Return the input of a residual Add that does not come from the layer it is fused with."""
        layer = self._network.residual_layer(add, self._refused)
        return [t for t in add.inputs if self._network.own_layer(t, self._refused) is not layer]

    def reads_floats(self, node: Node) -> bool:
        """Return whether a node reads a float tensor even if there is a dequantized one.

        An Identity does: `normalize` leaves only those that produce an output of the model. So do a layer that is lost
        and what moves values to it, and what moves them to a node that the runtime computes wrongly on integers:
        runtimes move Q and DQ across it.
        """
        if node.name in self.integer:
            return False
        if node.op in self.target.bypasses_dq | {"Identity"} or node.name in self._lost:
            return True
        if self.target.miscomputed is None and not self._lost:
            return False
        if self.target.miscomputed is not None and self.target.miscomputed(node):
            return True
        readers = (reader for t in node.outputs for reader in consumers(t)) if node.op in CARRIERS else ()
        return any(map(self.reads_floats, readers))

    def is_quantized_output(self, tensor: Tensor) -> bool:
        """Return whether the tensor is an output of the model that is quantized as well."""
        return self.target.quantizes_decode and tensor.name in self._network.outputs


def refuse(
    network: Network, excluded: Mapping[str, str], included: Collection[str], lost: Mapping[str, str]
) -> dict[str, Reason]:
    """Return the nodes that stay float regardless of their neighbors, with the reasons.

    If no other layer runs on integers, 1x1 Convs behind depthwise Convs do.

    Args:
        network: the graph and the target.
        excluded: name -> the pattern that matches it.
        included: names; reasons that are a choice do not hold for them.
        lost: name -> why values are lost if it runs on integers.
    """
    refused = {}
    float_channels = _FloatChannels(network.target)
    for node in network.nodes:
        reason: Reason | None
        if node.name in network.decode and not network.target.quantizes_decode:
            reason = Code.DECODE.reason("after the last layers")
        elif node.name in excluded:
            reason = Code.EXCLUDED.reason(f"matches {excluded[node.name]}")
        elif node.name in lost and node.name not in included:
            reason = Code.LOST_CHANNELS.reason(lost[node.name])
        elif network.target.float_joins and node.name not in included and network.joins_scores(node):
            reason = Code.JOINS_SCORES.reason()
        else:
            reason = _node_refusal(network, node, is_included=node.name in included)
            if reason is None and node.name not in included:
                reason = float_channels.refusal(node)
        if reason is not None:
            refused[node.name] = reason
        float_channels.visit(node, reason)
    if all(node.name in refused for node in network.nodes if network.is_layer(node)):
        return {name: reason for name, reason in refused.items() if reason.code != Code.BEHIND_DEPTHWISE}
    return refused


class _FloatChannels:
    """Finds the 1x1 Convs that stay float behind float depthwise Convs (`Target.behind_depthwise`).

    Args:
        target: its rules.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tensors: set[str] = set()

    def refusal(self, node: Node) -> Reason | None:
        """Return why a node stays float, or None; all nodes before it have been visited."""
        weight = constant(node.inputs[1]) if is_pointwise(node) else None
        if weight is None or node.inputs[0].name not in self._tensors:
            return None
        channels = weight.shape[1]
        if channels > self._target.behind_depthwise:
            return None
        return Code.BEHIND_DEPTHWISE.reason(f"{channels} input channels behind a float depthwise Conv")

    def visit(self, node: Node, reason: Reason | None) -> None:
        """Follow the outputs of float depthwise Convs, and of 1x1 Convs behind them, up to the next layer."""
        follows = node.op not in LAYERS and any(t.name in self._tensors for t in node.inputs)
        if follows or (reason is not None and reason.code in (Code.DEPTHWISE, Code.BEHIND_DEPTHWISE)):
            self._tensors.update(t.name for t in node.outputs)


def demand(
    network: Network, refused: Mapping[str, Reason], included: Collection[str]
) -> tuple[set[str], dict[str, Reason]]:
    """Return the nodes that run on integers, and the reasons of the others that are not refused.

    A layer runs on integers unless that makes an output of the model integer. Any other node does if a consumer reads
    its output as integers. Nodes are visited from the last to the first, so that a node follows all its consumers.
    """
    integer: set[str] = set()
    unwanted: dict[str, Reason] = {}
    for node in reversed(network.nodes):
        if node.name in refused:
            continue
        rule = network.target.rules[node.op]
        if rule.role is Role.LAYER:
            if rule.output and _makes_a_float_output(network, node) and not network.runs_as_matmul(node, integer):
                unwanted[node.name] = Code.MODEL_OUTPUT.reason()
                continue
        elif rule.residual and network.residual_layer(node, refused) is None:
            unwanted[node.name] = Code.NO_FUSED_LAYER.reason()
            continue
        elif node.name not in included and not _is_wanted(network, node, integer):
            unwanted[node.name] = Code.NO_CONSUMER.reason()
            continue
        integer.add(node.name)
    return integer, unwanted


def withdraw(network: Network, integer: Set[str], included: Collection[str]) -> dict[str, Reason]:
    """Return the integer nodes that must not follow floats, with the reasons.

    If the target fuses the Q behind a layer, no Q may follow a layer with a float output: onnxruntime would quantize
    the float layer by itself, with one scale for the whole weight.
    """
    left, withdrawn = set(integer), dict[str, Reason]()
    for node in network.nodes:
        rule = network.target.rules.get(node.op)
        if node.name not in left or rule is None or rule.role is Role.LAYER:
            continue
        before = [source for t in operands(node) if (source := producer(t)) is not None]
        layer = next((source for source in before if _is_float_layer(network, source, left)), None)
        if layer is not None:
            withdrawn[node.name] = Code.FLOAT_PRODUCER.reason(f"its {layer.op} {layer.name!r} has a float output")
        elif node.name not in included and (reason := _follows_floats(network, node, before, left)) is not None:
            withdrawn[node.name] = reason
        if node.name in withdrawn:
            left.discard(node.name)
    return withdrawn


def _follows_floats(network: Network, node: Node, before: Sequence[Node], left: Set[str]) -> Reason | None:
    """Return why a node stays float because of the nodes that make its inputs, or None."""
    is_behind = any(source.name not in left for source in before)
    if network.target.float_joins and node.name in network.decode and is_behind:
        return Code.FLOAT_DECODE.reason()
    if network.target.rules[node.op].behind_integers and not any(source.name in left for source in before):
        return Code.FLOAT_INPUTS.reason()
    return None


def _node_refusal(network: Network, node: Node, *, is_included: bool) -> Reason | None:
    rule = network.target.rules.get(node.op)
    if not node.inputs or not all(is_float(t) for t in [*operands(node), *node.outputs]):
        return Code.NOT_FLOAT32.reason()
    if rule is None:
        return Code.NO_RULE.reason(f"{network.target.title} runs {node.op} in float")
    if network.target.miscomputed is not None and (how := network.target.miscomputed(node)):
        return Code.MISCOMPUTED.reason(how)
    if rule.role is Role.LAYER:
        refusals = _layer_refusals(network, node, rule)
        return next((reason for reason in refusals if not (is_included and is_choice(reason))), None)
    return Code.MODEL_OUTPUT.reason() if _makes_a_float_output(network, node) else None


def _layer_refusals(network: Network, node: Node, rule: Rule) -> Iterator[Reason]:
    """Yield the reasons why a layer stays float; the first counts, or the first that cannot be overruled."""
    target, weight = network.target, constant(node.inputs[1])
    if weight is None:
        yield Code.WEIGHT_NOT_CONSTANT.reason()
        return
    if node.op in ("Gemm", "MatMul") and not _is_plain_product(node, weight):
        yield Code.NOT_A_PLAIN_PRODUCT.reason()
    channels, kernel = weight.shape[output_axis(node)], " x ".join(map(str, weight.shape[2:]))
    lowered = target.lowers_pointwise and is_pointwise(node)
    stays = node.name in network.last and not target.quantizes_last_layers and not lowered
    if stays or node.name in network.float_last:
        yield Code.LAST_LAYER.reason(f"{channels} channels of boxes or scores")
    if is_depthwise(node):
        if target.float_depthwise and not _quantized_anyway(target, node, rule):
            yield Code.DEPTHWISE.reason(f"{channels} channels with a {kernel} kernel each")
    elif node.name in network.stem:
        size = network.sizes.tensors.get(node.outputs[0].name)
        place = "near the image" if size is None else f"at {size[0]} x {size[1]}"
        yield Code.STEM.reason(f"{channels} channels {place}, integer kernels save no time")
    if node.op == "Conv" and target.few_channels is not None:
        group, first = node.attrs.get("group", 1), node.name not in network.downstream_of_layers
        if target.few_channels.keeps_float(weight.shape, group, first):
            counts = f"{weight.shape[1] * group} in, {channels} out"
            yield Code.TOO_FEW_CHANNELS.reason(f"{counts}, kernel {kernel}")
    if _makes_a_float_output(network, node) and rule.output and not lowered:
        yield Code.MODEL_OUTPUT.reason()


def _is_plain_product(node: Node, matrix: NDArray[np.generic]) -> bool:
    """Return whether a Gemm or MatMul is x W with a matrix W, plus a bias for each output if any."""
    bias = bias_of(node)
    factors = (node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0), node.attrs.get("transA", 0))
    width = matrix.shape[output_axis(node)] if matrix.ndim == 2 else 0
    return matrix.ndim == 2 and factors == (1.0, 1.0, 0) and (bias is None or list(bias.shape or ()) == [width])


def _quantized_anyway(target: Target, node: Node, rule: Rule) -> bool:
    """Return whether a Q must directly follow a Conv, so that the target runs the Conv on integers."""
    return rule.output and any(
        reader.op in target.fused_activations or target.rules[reader.op].role is not Role.ELEMENTWISE
        for reader in consumers(node.outputs[0])
        if reader.op in target.rules
    )


def _makes_a_float_output(network: Network, node: Node) -> bool:
    return not network.target.quantizes_decode and any(t.name in network.outputs for t in node.outputs)


def _is_wanted(network: Network, node: Node, integer: Set[str]) -> bool:
    """Return whether the output of a node, or of the activation fused with it, is read as integers.

    An activation that is fused with a layer always is: the Q of the layer follows both.
    """
    target, rule = network.target, network.target.rules[node.op]
    activation = network.fused_activation(node) if rule.residual else None
    outputs = activation.outputs if activation is not None else node.outputs
    if any(reader.name in integer for t in outputs for reader in consumers(t)):
        return True
    if target.quantizes_decode and (node.name in network.decode or any(t.name in network.outputs for t in outputs)):
        return True
    before = network.fused_with(node)
    return before is not None and target.rules[before.op].role is Role.LAYER


def _is_float_layer(network: Network, node: Node, integer: Set[str]) -> bool:
    rule = network.target.rules.get(node.op)
    if rule is None or rule.role is not Role.LAYER or not rule.output:
        return False
    return node.name not in integer or network.runs_as_matmul(node, integer)
