import numpy as np
import pytest
from graphs import ULTRALYTICS, v8, with_metadata
from tables import always, declared

from onnxq.errors import ConfigError
from onnxq.yolo.decode import class_count, find_objects
from onnxq.yolo.detector import detect

ROWS = ("label", "x1", "y1", "x2", "y2", "score")


def test_words_state_the_layout_whatever_the_shapes_show() -> None:
    model = always(np.zeros((9, 6), np.float32))
    assert detect(model).family == "end2end"
    found = detect(model, layout=ROWS)
    assert (found.family, found.outputs.task, found.outputs.outputs) == ("columns", "detect", ("out",))
    assert found.why == "as --layout says"
    assert found.outputs.why_no_precision == ""


@pytest.mark.parametrize(("words", "kept"), [((), 1), (("candidates",), 1), (("finished",), 2)])
def test_duplicates_are_removed_unless_words_say_that_there_are_none(words: tuple[str, ...], kept: int) -> None:
    table = np.zeros((1, 9, 6), np.float32)
    table[0, :2] = [[1, 10, 10, 30, 30, 0.9], [1, 10, 10, 30, 31, 0.8]]
    found = find_objects({"out": table}, detect(always(table[0]), layout=(*ROWS, *words)), 0.1, 0.65)
    assert len(found) == kept


def test_the_preprocessing_stays_that_of_the_shapes() -> None:
    model = always(np.zeros((84, 7), np.float32), "exp")
    assert detect(model).preprocess.name == "yolox"
    assert detect(model, layout=("cx cy w h objectness scores",)).preprocess.name == "yolox"


def test_classes_are_counted_in_the_shapes() -> None:
    shapes = {"out0": (1, 84, 4), "out1": (1, 84, 7)}
    found = detect(declared(*shapes.values()), layout=("x1 y1 x2 y2 / scores shares",))
    assert class_count(found, shapes) == 7


def test_extras_are_those_of_the_task() -> None:
    model = with_metadata(v8(keypoints=4), ULTRALYTICS | {"task": "pose", "kpt_shape": "[4, 3]"})
    found = detect(model, layout=("cx cy w h scores extras",)).outputs
    assert (found.task, found.keypoints) == ("pose", (4, 3))
    masks = detect(v8(masks=True), layout=("cx cy w h scores extras",)).outputs
    assert (masks.task, masks.prototypes) == ("segment", "output1")


def test_more_outputs_than_the_model_has() -> None:
    with pytest.raises(ConfigError, match="has 2 outputs, and the model 1: out"):
        detect(always(np.zeros((9, 6), np.float32)), layout=("x1 y1 x2 y2 / scores",))
