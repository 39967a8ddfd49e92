import pytest

from onnxq.yolo.class_names import parse_names


@pytest.mark.parametrize(
    "text",
    [
        "{0: 'ring', 1: 'big star'}",
        '{"0": "ring", "1": "big star"}',
        "{'1': 'big star', '0': 'ring'}",
        "['ring', 'big star']",
        '["ring", "big star"]',
        "('ring', 'big star')",
        '{"0": "ring", "1": "big star", "2": null, "3": true}',
        "ring, big star",
        "ring\nbig star\n",
    ],
)
def test_spellings(text):
    assert parse_names(text)[:2] == ("ring", "big star")


@pytest.mark.parametrize("text", ["", "{0: 'a', 2: 'b'}", "{'x': 'a'}", "{0: 'a', '0': 'b'}", "3", "[", "{", "a b"])
def test_what_names_no_classes(text):
    assert parse_names(text) == ()
