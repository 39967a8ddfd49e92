"""plan-quantization: which tensors get a Q/DQ pair and which nodes stay float, from the rules of the target."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from onnxq.errors import ConfigError, ModelError
from onnxq.facts import DecodeBoundary, Plan
from onnxq.ir import Model, Node
from onnxq.numerics.scheme import Scheme
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.placement import quantization_points, quantized_weights
from onnxq.qdq.selection import NodeSelection
from onnxq.targets import Target


class PlanQuantization(Analysis[Plan]):
    """Plans the quantization.

    Layers with constant weights run on integers unless they are excluded or the target keeps their like float: the
    last ones, depthwise or narrow ones. Other nodes of the body follow by demand, from the outputs backwards: one runs
    on integers where its target has a rule for it and an integer node reads what it makes. Each node that stays float
    gets its reason.

    Args:
        target: its rules.
        weight_bits, act_bits: widths; the first and the last layers keep 8 bits, and so do narrow Convs near the image.
        symmetric: zero points of activations in the middle also where the target does not ask for it.
        exclude: nodes to keep float: a name, `op:TYPE` or `re:REGEX` (searched in the names).
        bits: patterns as in `exclude`, and the widths of the nodes that match: of the weight, and of what is read; of
            several patterns the last one counts.
        half: scales are to be float16 numbers.

    Raises:
        ConfigError: a pattern in `exclude` or `bits` matches no node, or is no regular expression; the target cannot
            have activations of so few bits.
        ModelError: no layer at all can be quantized.
    """

    name = "plan-quantization"
    gives = Plan
    needs = (DecodeBoundary,)

    def __init__(
        self,
        target: Target,
        *,
        weight_bits: int = 8,
        act_bits: int = 8,
        symmetric: bool = False,
        exclude: Sequence[str] = (),
        bits: Sequence[tuple[str, tuple[int, int]]] = (),
        half: bool = False,
    ) -> None:
        self._target = target
        self._weights = Scheme(weight_bits, signed=True, symmetric=True, half=half)
        self._activations = replace(target.scheme(act_bits, symmetric), half=half)
        self._exclude = tuple(exclude)
        self._bits = tuple(bits)
        for _, (_, width) in self._bits:
            target.scheme(width)

    def run(self, model: Model, facts: Facts) -> Plan:
        """Find the fact; the graph is not touched."""
        nodes = model.graph.nodes
        widths = {name: w for pattern, w in self._bits for name in matches([pattern], nodes, "--bits")}
        choice = NodeSelection(model, facts[DecodeBoundary], self._target, matches(self._exclude, nodes))
        if not choice.layers:
            reasons = sorted({choice.skipped[n.name] for n in nodes if n.op == "Conv"})
            raise ModelError(f"no Conv can be quantized: {'; '.join(reasons)}")
        return Plan(
            points=quantization_points(choice, model, self._activations, widths),
            weights=quantized_weights(choice, self._weights, widths),
            integer=frozenset(choice.integer),
            layers=tuple(node.name for node in choice.layers),
            skipped=choice.skipped,
            ops={node.name: node.op for node in nodes},
        )


def matches(patterns: Iterable[str], nodes: Iterable[Node], option: str = "--exclude") -> dict[str, str]:
    """Names of the nodes that match a pattern, each with the pattern.

    Args:
        patterns: a name, `op:TYPE` or `re:REGEX`.
        nodes: of a graph.
        option: what to call it in errors.

    Raises:
        ConfigError: a pattern matches nothing, or is no regular expression.
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
