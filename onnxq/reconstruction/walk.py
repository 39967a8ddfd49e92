"""The order in which layers are fitted: those that share a weight together."""

from collections.abc import Collection, Mapping, Sequence

from onnxq.facts import QuantizedWeight
from onnxq.ir import Model, Node, constant, has_plain_bias
from onnxq.reconstruction.im2col import Im2col


def products_of(weight: QuantizedWeight, nodes: Mapping[str, Node]) -> dict[str, Im2col]:
    """Return the product that each user of a weight computes; none if the weight cannot be fitted to all of them.

    The users arrange the weight alike, and none has a computed bias.
    """
    found = {name: im2col for name in weight.users if (im2col := Im2col.of(nodes[name]))}
    is_fitted = len(found) == len(weight.users) and all(has_plain_bias(nodes[name]) for name in found)
    return found if is_fitted and len({im2col.arrangement for im2col in found.values()}) == 1 else {}


def steps(model: Model, layers: Sequence[str], weights: Collection[QuantizedWeight]) -> list[tuple[str, ...]]:
    """Return the layers in the order in which they are fitted; those of a step share a weight, or it is one layer.

    A weight is fitted to all its users before any of them runs. So layers move back to where the inputs of all other
    users can be computed; all others stay in their order. Where users depend on each other, as in a recurrent network,
    no order does this: the weight then has several steps.

    Args:
        model: its nodes are in topological order.
        layers: in the order of the graph.
        weights: the weights to fit.
    """
    users = {name: weight.users for weight in weights for name in weight.users}
    before = _layers_before(model, layers)
    left, done, found = dict.fromkeys(layers), set[str](), list[tuple[str, ...]]()
    while left:
        together = (tuple(user for user in users.get(name, (name,)) if user in left) for name in left)
        ready = (step for step in together if all(before[name] <= done for name in step))
        found.append(step := next(ready, (next(iter(left)),)))
        done.update(step)
        for name in step:
            del left[name]
    return found


def _layers_before(model: Model, layers: Collection[str]) -> dict[str, frozenset[str]]:
    """Return for each layer those on which its inputs depend."""
    names, found = frozenset(layers), dict[str, frozenset[str]]()
    of_tensor: dict[str, frozenset[str]] = {}
    for node in model.graph.nodes:
        before = frozenset[str]().union(*(of_tensor.get(t.name, ()) for t in node.inputs if constant(t) is None))
        if node.name in names:
            found[node.name] = before
            before |= {node.name}
        of_tensor.update((t.name, before) for t in node.outputs)
    return found
