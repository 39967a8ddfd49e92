import pytest

from onnxq.targets.few_channels import FewChannelsRule

NARROW = [
    # weight, groups, first: whether it stays float
    ((16, 16, 3, 3), 1, False, False),
    ((64, 255, 1, 1), 1, False, False),
    ((16, 3, 6, 6), 1, True, False),
    ((8, 3, 3, 3), 1, True, False),
    ((9, 3, 3, 3), 1, True, True),
    ((16, 8, 3, 3), 1, False, False),
    ((8, 16, 3, 3), 1, False, False),
    ((16, 4, 3, 3), 1, False, False),
    ((17, 12, 3, 3), 1, False, True),
    ((8, 8, 3, 3), 1, False, True),
    ((8, 8, 3, 3), 1, True, False),
    ((16, 8, 1, 3), 1, False, True),
    ((16, 8, 3), 1, False, False),
    ((32, 1, 3, 3), 32, False, False),
    ((32, 1, 1, 1), 32, False, True),
    ((30, 1, 3, 3), 30, False, True),
    ((64, 16, 1, 1), 4, False, False),
]


@pytest.mark.parametrize(("weight", "group", "first", "narrow"), NARROW)
def test_convs_are_too_narrow_by_nvidias_rule(weight, group, first, narrow):
    assert FewChannelsRule(channels=16).keeps_float(weight, group, first) == narrow
    assert not FewChannelsRule(channels=0).keeps_float(weight, group, first)
