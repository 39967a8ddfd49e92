import pytest

from onnxq import Config
from onnxq.console.arguments import make_parser
from onnxq.console.option_names import option_of, with_options


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("act_bits: 99 bits: too many", "--act-bits: 99 bits: too many"),
        ("confidence: expected less than 1", "--conf: expected less than 1"),
        ("a.onnx: layout: 'x' has no box", "a.onnx: --layout: 'x' has no box"),
        ("node 'bits' of op bits: is odd", "node 'bits' of op bits: is odd"),
        ("a.onnx: b.onnx: layout: no box", "a.onnx: b.onnx: layout: no box"),
        ("count the images: there are none", "count the images: there are none"),
        ("--count: 0 is less than 1", "--count: 0 is less than 1"),
    ],
)
def test_the_field_that_a_message_begins_with_is_an_option(message, shown):
    assert with_options(message) == shown


def test_every_field_of_a_config_is_an_option():
    options = {word for action in make_parser()._actions for word in action.option_strings}
    assert {option_of(name) for name in Config.__dataclass_fields__} <= options
