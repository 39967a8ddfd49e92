import numpy as np
import onnx
import pytest
from onnx import helper

from onnxq.api import open_data
from onnxq.calibration import demo
from onnxq.calibration.confirm_layout import confirm_on_samples
from onnxq.config import Config
from onnxq.yolo.detector import detect


def with_shares() -> onnx.ModelProto:
    """The demo model with boxes as shares of the picture."""
    model = onnx.load(demo.model_path())
    factors = np.array([1 / 160] * 4 + [1] * 6, np.float32).reshape(1, 10, 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(factors, "factors"))
    model.graph.node.append(helper.make_node("Mul", [model.graph.output[0].name, "factors"], ["out"]))
    model.graph.output[0].name = "out"
    return model


def confirmed(model: onnx.ModelProto, data: object):
    known = detect(model)
    return confirm_on_samples(model, known, open_data(data, model, known, Config()))


def test_calibration_samples_show_the_layout() -> None:
    found, warnings = confirmed(with_shares(), demo.CALIBRATION)
    assert found.outputs.stated is not None
    assert found.outputs.stated.text == "cx cy w h scores shares candidates"
    assert found.why == "read as --layout cx cy w h scores shares candidates; told by the values on 4 pictures"
    assert warnings == ()


def test_data_that_can_be_read_only_once_is_left_alone() -> None:
    feeds = ({"images": np.full((1, 3, 160, 160), level, np.float32)} for level in (0.1, 0.2))
    model = onnx.load(demo.model_path())
    known = detect(model)
    samples = open_data(feeds, model, known, Config())
    found, _ = confirm_on_samples(model, known, samples)
    assert found.family == "v8"
    assert len(list(samples.loaders)) == 2


def test_statistics_without_data_are_confirmed_on_painted_scenes() -> None:
    model = onnx.load(demo.model_path())
    found, warnings = confirm_on_samples(model, detect(model), None)
    assert (found.family, warnings) == ("v8", ())
    assert "pictures" in found.outputs.sure


def test_outputs_that_are_not_clear_are_a_warning_and_not_read() -> None:
    model = with_shares()
    factors = model.graph.initializer[-1]
    factors.CopyFrom(onnx.numpy_helper.from_array(np.full((1, 10, 1), 77, np.float32), "factors"))
    found, [warning] = confirmed(model, demo.CALIBRATION)
    assert found.family == "unknown"
    assert not found.outputs.has_boxes
    assert "the scores reach" in warning
    assert "--layout" in warning


def test_a_model_that_cannot_run_is_not_checked(caplog: pytest.LogCaptureFixture) -> None:
    model = onnx.load(demo.model_path())
    model.graph.node.append(helper.make_node("Nonsense", [model.graph.output[0].name], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", 1, (1,)))
    known = detect(model)
    assert confirm_on_samples(model, known, None) == (known, ())
