import importlib
import json
import re

import pytest

from onnxq.facts import Reason
from onnxq.qdq.reasons import Code, is_choice, summary_of


@pytest.mark.parametrize("code", Code)
def test_a_code_is_kebab_case_and_explained(code):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code.value)
    assert code.summary
    assert not code.summary.endswith(".")


@pytest.mark.parametrize("code", Code)
def test_a_code_names_the_function_that_decides_it(code):
    module, _, name = code.rule.partition(":")
    found = importlib.import_module(f"onnxq.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)


def test_a_reason_is_its_code_and_its_numbers():
    reason = Code.STEM.reason("16 channels")
    assert (reason.code, str(reason)) == ("stem", "stem: 16 channels")
    assert json.dumps(reason.code) == '"stem"'
    assert str(Code.NOT_FLOAT32.reason()) == "not-float32: does not compute on float32"


def test_tables_show_the_summary():
    assert summary_of(Code.STEM.reason("16 channels")) == "near the image, with few channels"
    assert summary_of(Reason("of-another-pass", "its own words")) == "its own words"


def test_only_choices_can_be_overruled():
    assert is_choice(Code.DEPTHWISE.reason())
    assert not is_choice(Code.NO_RULE.reason())
    assert not is_choice(Reason("of-another-pass", "its own words"))
