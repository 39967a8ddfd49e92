import pytest

from onnxq.evaluation.annotations.class_keys import class_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Traffic Light", "traffic-light"),
        ("traffic_light", "trafficlight"),
        ("STRASSE", "Straße"),
        (" person\t", "Person"),
        ("cafe\u0301", "caf\u00e9"),
        ("tvmonitor", "tv"),
        ("aeroplane", "Airplane"),
    ],
)
def test_spellings_of_one_class(one, other):
    assert class_key(one) == class_key(other)


@pytest.mark.parametrize(("one", "other"), [("car", "cars"), ("cat", "car"), ("class 1", "class 11"), ("a.b", "ab")])
def test_other_classes(one, other):
    assert class_key(one) != class_key(other)
