import inspect

import pytest

import onnxq
from onnxq import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_can_be_caught_as_the_base_and_is_public(kind):
    assert issubclass(kind, errors.OnnxqError)
    assert getattr(onnxq, kind.__name__) is kind
    with pytest.raises(onnxq.OnnxqError, match=r"^why$"):
        raise kind("why")


def test_kinds_are_told_apart():
    others = [kind for kind in KINDS if kind is not errors.OnnxqError]
    assert len(others) == 4
    assert not any(issubclass(a, b) for a in others for b in others if a is not b)


def test_the_tree_in_the_documentation_names_all():
    assert all(kind.__name__ in errors.__doc__ for kind in KINDS)


def test_bugs_are_none_of_them():
    assert not issubclass(errors.OnnxqError, (ValueError, RuntimeError, KeyError))
