"""plan-quantization: selects tensors for Q/DQ pairs and nodes that stay float, by the rules of the target."""

import difflib
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from onnxq.errors import ConfigError, ModelError
from onnxq.facts import DecodeBoundary, Plan, QuantizationPoint
from onnxq.ir import Model, Node
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.placement import quantization_points, quantized_weights
from onnxq.qdq.reasons import is_choice
from onnxq.qdq.selection import NodeSelection
from onnxq.targets import Target
from onnxq.targets.sizes import ImageSizes

log = logging.getLogger(__name__)


class PlanQuantization(Analysis[Plan]):
    """Plans the quantization.

    Layers with constant weights run on integers unless they are excluded or the target keeps such layers float: the
    last ones, depthwise or narrow ones. Other nodes follow by demand, from the outputs backwards: a node runs on
    integers if the target has a rule for it and a consumer reads its output as integers. Each node that stays float
    gets its reason.

    Args:
        target: its rules.
        weight_bits, act_bits: widths; the first and the last layers, and narrow Convs near the image, keep at least
            8 bits, and with 8-bit activations so do the weights of layers that have few. None: the target's default.
        symmetric: the zero points of activations are in the middle even if the target does not require it.
        exclude: nodes to keep float: a name, `op:TYPE` or `re:REGEX` (searched in the names).
        include: nodes to run on integers although the target prefers float: patterns as in `exclude`.
        bits: patterns as in `exclude`, each with the widths of weight and input of the nodes that match; the last
            matching pattern counts. A pattern that changes nothing is warned of.
        half: scales are float16 values.

    Raises:
        ConfigError: a pattern matches no node or is not a regular expression; a node is both excluded and included; an
            included node cannot run on integers; the target cannot have integers of such a width.
        ModelError: no layer at all can be quantized.
    """

    name = "plan-quantization"
    gives = Plan
    needs = (DecodeBoundary, ImageSizes)

    def __init__(
        self,
        target: Target,
        *,
        weight_bits: int | None = None,
        act_bits: int | None = None,
        symmetric: bool = False,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        bits: Sequence[tuple[str, tuple[int, int]]] = (),
        half: bool = False,
    ) -> None:
        self._target = target
        self._weight_bits = target.weights[0].bits if weight_bits is None else weight_bits
        self._act_bits = target.activations[0].bits if act_bits is None else act_bits
        if self._act_bits < target.least_decode_bits:
            self._target = replace(target, quantizes_decode=False)
        self._weight_scheme = partial(target.weight_scheme, half=half)
        self._activation_scheme = partial(target.activation_scheme, symmetric=symmetric, half=half)
        self._exclude = tuple(exclude)
        self._include = tuple(include)
        self._bits = tuple(bits)
        for weight, activation in ((self._weight_bits, self._act_bits), *(widths for _, widths in self._bits)):
            self._weight_scheme(weight)
            self._activation_scheme(activation)

    def run(self, model: Model, facts: Facts) -> Plan:
        """Return the plan."""
        return self.plan(model, facts[DecodeBoundary], facts[ImageSizes], {})

    def plan(self, model: Model, boundary: DecodeBoundary, sizes: ImageSizes, lost: Mapping[str, str]) -> Plan:
        """Return the plan in which some layers stay float, unless they are included.

        Args:
            model: the graph.
            boundary: where the network ends.
            sizes: of the images in the graph.
            lost: name of a layer whose input has a scale that is too coarse -> in which way.

        Raises:
            ConfigError, ModelError: as for the pass.
        """
        nodes = model.graph.nodes
        matched = [(pattern, widths, matches([pattern], nodes, "--bits")) for pattern, widths in self._bits]
        widths = {name: each for _, each, names in matched for name in names}
        excluded, included = matches(self._exclude, nodes), matches(self._include, nodes, "--include")
        for name in included.keys() & excluded.keys():
            raise ConfigError(
                f"--exclude {excluded[name]} and --include {included[name]} both match node {name!r}; drop one of them"
            )
        selection = NodeSelection(model, boundary, self._target, sizes, excluded, included, lost)
        _refuse_impossible(included, selection, nodes)
        if not selection.layers:
            reasons = sorted({str(selection.skipped[n.name]) for n in nodes if n.op == "Conv"})
            raise ModelError(f"no Conv can be quantized: {'; '.join(reasons)}")
        points = quantization_points(selection, model, self._activation_scheme, self._act_bits, widths)
        weights = quantized_weights(selection, self._weight_scheme, self._weight_bits, self._act_bits, widths)
        for pattern, (weight, activation), names in matched:
            if why := _no_effect(names, selection, activation, points):
                log.warning("--bits %s=%d/%d has no effect: %s", pattern, weight, activation, why)
        return Plan(
            points=points,
            weights=weights,
            integer=frozenset(selection.integer),
            layers=tuple(node.name for node in selection.layers),
            skipped=selection.skipped,
            ops={node.name: node.op for node in nodes},
        )


def _refuse_impossible(included: Mapping[str, str], selection: NodeSelection, nodes: Iterable[Node]) -> None:
    for node in nodes:
        if node.name in included and node.name in selection.skipped:
            raise ConfigError(
                f"--include {included[node.name]}: {node.op} {node.name!r} cannot run on integers: "
                f"{selection.skipped[node.name]}; leave it out"
            )


def _no_effect(
    names: Collection[str], selection: NodeSelection, activation: int, points: Iterable[QuantizationPoint]
) -> str | None:
    """Return why none of some nodes has a width of its own, or None if one has.

    Args:
        names: of the nodes.
        selection: the nodes on integers.
        activation: the width that was asked for their inputs.
        points: the tensors that are quantized.
    """
    layers = {layer.name for layer in selection.layers}
    readers = {user for point in points if point.scheme.bits == activation for user in point.users}
    if any(name in layers or name in readers & selection.integer for name in names):
        return None
    if any(name in selection.integer for name in names):
        return "the widths of what it reads follow from other nodes; name the Convs of the same tensors"
    first, *others = names
    reason = selection.skipped[first]
    which = f"{first!r}, and {len(others)} more stay" if others else f"{first!r} stays"
    remedy = f"; --include {first} puts it on integers" if is_choice(reason) else ""
    return f"{which} float ({reason}){remedy}"


def matches(patterns: Iterable[str], nodes: Iterable[Node], option: str = "--exclude") -> dict[str, str]:
    """Return the names of the nodes that match a pattern, each with the pattern.

    Args:
        patterns: a name, `op:TYPE` or `re:REGEX`.
        nodes: of a graph.
        option: its name in errors.

    Raises:
        ConfigError: a pattern matches nothing or is not a regular expression.
    """
    nodes = list(nodes)
    found: dict[str, str] = {}
    for pattern in patterns:
        if pattern.startswith("op:"):
            hits = [node.name for node in nodes if node.op == pattern[3:]]
            known = sorted({node.op for node in nodes})
        elif pattern.startswith("re:"):
            try:
                hits = [node.name for node in nodes if re.search(pattern[3:], node.name)]
            except re.error as error:
                raise ConfigError(f"{option} {pattern}: not a regular expression ({error})") from None
            known = []
        else:
            hits = [node.name for node in nodes if node.name == pattern]
            known = [node.name for node in nodes]
        if not hits:
            wanted = pattern.removeprefix("op:")
            near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
            hint = f"; did you mean {', '.join(near)}?" if near else "; -v lists the nodes and why each stays float"
            raise ConfigError(f"{option} {pattern}: no node of the model matches{hint}")
        found.update(dict.fromkeys(hits, pattern))
    return found
