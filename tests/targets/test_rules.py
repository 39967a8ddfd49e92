import onnx
import pytest

from onnxq.targets import TARGETS, Role
from onnxq.targets.rules import CARRIERS, CONV_IN, CONV_IN_OUT, ELEMENTWISE, RELU

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@every_target
def test_rules_are_for_operators_of_onnx(target):
    assert [op for op in target.rules if not onnx.defs.has(op)] == []
    assert [op for op in target.fused_activations | target.bypasses_dq if not onnx.defs.has(op)] == []


@every_target
def test_every_target_runs_convs_on_integers(target):
    assert target.rules["Conv"].role is Role.LAYER


def test_an_operator_has_one_shared_rule():
    tables = (CONV_IN_OUT, CARRIERS, ELEMENTWISE, RELU)
    assert sum(map(len, tables)) == len({op for table in tables for op in table})


def test_roles_of_the_shared_rules():
    assert {rule.role for rule in CARRIERS.values()} == {Role.CARRIER}
    assert all(rule.shared for rule in CARRIERS.values())
    assert {rule.role for rule in (ELEMENTWISE | RELU).values()} == {Role.ELEMENTWISE}
    assert (CONV_IN["Conv"].output, CONV_IN_OUT["Conv"].output) == (False, True)
