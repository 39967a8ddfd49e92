"""The plan of a graph, and queries on it."""

import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    planned,
)

from onnxq.qdq.reasons import Code
from onnxq.targets import ORT, TARGETS

ALL = {**BACKBONES, **DETECTORS}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def plan_of(model, target=ORT, **options):
    return planned(model, target, **options)[1]


def code(plan, name):
    """The code of the reason why a node stays float; None if it runs on integers."""
    return plan.skipped[name].code if name in plan.skipped else None


def tensors(plan):
    """Names of the tensors that pass through a pair."""
    return {p.tensor for p in plan.points}


def point(plan, tensor):
    return next(p for p in plan.points if p.tensor == tensor)


def group(plan, tensor):
    """The tensors on the grid of this one."""
    return {p.tensor for p in plan.points if p.group == point(plan, tensor).group}


def assert_complete(model, plan):
    """Assert that each node is either meant for integers or has a reason, and that the plan fits the graph."""
    names = set(model.nodes)
    assert plan.integer | plan.skipped.keys() == names
    assert not plan.integer & plan.skipped.keys()
    assert all(reason.code in set(Code) and reason.text for reason in plan.skipped.values())
    assert set(plan.layers) <= plan.integer
    found = model.graph.tensors()
    for p in plan.points:
        assert p.tensor in found
        assert all(found[p.tensor] in model.nodes[user].inputs for user in p.users)
        assert set(p.sources) <= {q.tensor for q in plan.points}
        assert bool(p.sources) != (p.known is not None)
    assert len({p.tensor for p in plan.points}) == len(plan.points)
    assert {w.tensor for w in plan.weights} == {model.nodes[n].inputs[1].name for n in plan.layers}
    for w in plan.weights:
        inputs = {model.nodes[name].inputs[0].name for name in w.users}
        assert inputs <= {p.tensor for p in plan.points}
    for members in plan.groups().values():
        assert len({(p.scheme, p.known) for p in members}) == 1


def ending(net, x):
    """The model of a graph that goes on with one more layer, and the last one."""
    return net.model(net.conv(net.silu(net.conv(x, 8, name="behind")), 4, name="last"))
