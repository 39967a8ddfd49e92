import pytest

from onnxq.evaluation.average_precision import ModelPrecision
from onnxq.evaluation.plausibility import doubts


def model(name, ap):
    where = (name, "v8", "detect", "yolo", (64, 64), "ort", "1")
    return ModelPrecision(*where, ap, ap, ap, None, None, None, 0.0, "classes by order")


@pytest.mark.parametrize(("first", "second"), [(60.0, 55.0), (1.0, 1.0), (None, None)])
def test_numbers_that_can_be_true(first, second):
    assert list(doubts([model("a.onnx", first), model("b.onnx", second)])) == []


def test_a_float_model_below_1():
    [doubt] = doubts([model("a.onnx", 0.57)])
    assert doubt.startswith("a.onnx has an AP of 0.57, and a trained detector has more than 1")
    for cause in ("--preprocess, yolo", "--family, v8", "classes by order", "boxes of the annotations"):
        assert cause in doubt


def test_a_quantized_model_of_0():
    [doubt] = doubts([model("a.onnx", 40.0), model("x/b.onnx", 0.0)])
    assert doubt.startswith("b.onnx has an AP of 0.00, and a.onnx of 40.00: quantization destroyed it")
    assert "python -m onnxq.compare a.onnx x/b.onnx" in doubt


def test_both_at_0_are_no_fault_of_quantization():
    assert ["destroyed" in doubt for doubt in doubts([model("a.onnx", 0.0), model("b.onnx", 0.0)])] == [False, False]
