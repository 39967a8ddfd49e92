import re

import numpy as np
import pytest

from onnxq.errors import ConfigError, ModelError
from onnxq.yolo.columns import parse_layout

SIZE = (100, 200)
"""Height and width of the input."""

BOX = (20, 10, 60, 50)


class TestParse:
    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["x1", "y1", "x2", "y2", "score", "label"], "x1 y1 x2 y2 score label"),
            (["x1,y1,x2,y2,score,label"], "x1 y1 x2 y2 score label"),
            (["CX cy w h", "objectness scores", "Shares"], "cx cy w h objectness scores shares"),
            (["candidates", "label", "/", "y1 x1 y2", "x2", "/", "score"], "label / y1 x1 y2 x2 / score candidates"),
            (["x1 y1 w h/scores", "logits", "finished"], "x1 y1 w h / scores logits finished"),
            (["-", "/", "image x1 y1 x2 y2 - score label px"], "- / image x1 y1 x2 y2 - score label"),
        ],
    )  # fmt: skip
    def test_gives_the_layout_that_is_written_back(self, words: list[str], text: str) -> None:
        layout = parse_layout(words)
        assert layout.text == text
        assert parse_layout([text]) == layout

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("x1 y1 x2 y2 confidence", r"layout: 'confidence' is none of x1, .*; put / between outputs, and files bef"),
            ("x1 y1 x2 y2 score label model.onnx", r"'model\.onnx' is none of"),
            ("x1 y1 score label", "'x1 y1 score label' has no box: give x1 y1 x2 y2, cx cy w h or x1 y1 w h"),
            ("x1 y1 x2 y2 cx score", "has no box"),
            ("x1 y1 x2 y2 label", "must have score or scores"),
            ("x1 y1 x2 y2 score scores", "must have score or scores"),
            ("x1 y1 x2 y2 scores label", "has a label beside scores"),
            ("x1 y1 x2 y2 / x1 score", "'x1' comes twice; write - for"),
            ("cx cy w h scores px shares", "px and shares exclude each other"),
            ("cx cy w h scores candidates finished", "candidates and finished exclude each other"),
        ],
    )  # fmt: skip
    def test_refuses(self, words: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            parse_layout(words.split())


def read(text: str, *arrays: np.ndarray, named: int = 0, confidence: float = 0.1, index: int = 0):
    return parse_layout([text]).read(arrays, SIZE, named, confidence, index)


class TestRead:
    @pytest.mark.parametrize(
        ("text", "row"),
        [
            ("x1 y1 x2 y2 score label", [20, 10, 60, 50, 0.5, 3]),
            ("label score y2 x2 y1 x1", [3, 0.5, 50, 60, 10, 20]),
            ("cx cy w h label score", [40, 30, 40, 40, 3, 0.5]),
            ("x1 y1 w h score label", [20, 10, 40, 40, 0.5, 3]),
            ("cx cy w h score label shares", [0.2, 0.3, 0.2, 0.4, 0.5, 3]),
            ("- x1 y1 x2 y2 score label", [9, 20, 10, 60, 50, 0.5, 3]),
        ],
    )
    def test_rows(self, text: str, row: list[float]) -> None:
        table = np.array([[row, [0] * len(row)]], np.float32)
        for array in (table, table.transpose(0, 2, 1)):
            found = read(text, array)
            assert found.boxes.tolist() == [pytest.approx(BOX)]
            assert (found.scores.tolist(), found.labels.tolist()) == ([0.5], [3])

    def test_a_score_for_each_class_gives_a_box_for_each_above_the_threshold(self) -> None:
        table = np.array([[[40, 30, 40, 40, 0.5, 0.8, 0.1, 0.6]] + [[0] * 8] * 9], np.float32)
        found = read("cx cy w h objectness scores", table)
        assert found.boxes.tolist() == [list(BOX)] * 2
        assert found.labels.tolist() == [0, 2]
        assert found.scores.tolist() == pytest.approx([0.4, 0.3])

    def test_logits(self) -> None:
        boxes, scores = np.array([[BOX] * 3], np.float32), np.array([[[0, -9], [-9, -9], [-9, 9]]], np.float32)
        found = read("x1 y1 x2 y2 / scores logits", boxes, scores)
        assert found.labels.tolist() == [0, 1]
        assert found.scores.tolist() == pytest.approx([0.5, 1], abs=1e-3)

    def test_percent_and_labels_from_1(self) -> None:
        found = read("x1 y1 x2 y2 score label percent from-1", np.array([[[*BOX, 50, 3], [*BOX, 50, 0]]], np.float32))
        assert (found.scores.tolist(), found.labels.tolist()) == ([0.5], [2])

    def test_softmax_counts_the_background_and_leaves_it_out(self) -> None:
        scores = np.log(np.array([[[0.2, 0.5, 0.3], [0.98, 0.01, 0.01]]], np.float32)) + 7
        found = read("x1 y1 x2 y2 / background scores softmax", np.array([[BOX] * 2], np.float32), scores)
        assert found.labels.tolist() == [0, 1]
        assert found.scores.tolist() == pytest.approx([0.5, 0.3], abs=1e-5)

    def test_outputs_in_columns_are_turned_like_those_that_show_the_rows(self) -> None:
        scores = np.array([[[0.5], [0.2], [0.3]]], np.float32)  # three classes, one row
        found = read("x1 y1 x2 y2 / scores", np.array([BOX], np.float32).T[np.newaxis], scores)
        assert found.labels.tolist() == [0, 1, 2]

    def test_singleton_axes_and_counts(self) -> None:
        boxes = np.array([BOX] * 3, np.float32).reshape(1, 3, 1, 4)
        found = read(
            "count / x1 y1 x2 y2 / score / label", np.array([[2]]), boxes, np.ones((1, 3)), np.array([[4, -1, 4]])
        )
        assert found.labels.tolist() == [4]  # the second has no label, the third is not counted

    def test_lists_have_the_rows_of_all_images(self) -> None:
        rows = np.array([[0, 1, *BOX, 0.5], [1, 2, *BOX, 0.6], [1, 3, *BOX, 0.7]], np.float32)
        text = "image label x1 y1 x2 y2 score"
        assert [read(text, rows, index=index).labels.tolist() for index in (0, 1, 2)] == [[1], [2, 3], []]

    def test_a_batch(self) -> None:
        table = np.array([[[*BOX, 0.5, 1]] * 7, [[*BOX, 0.5, 2]] * 7], np.float32)
        assert read("x1 y1 x2 y2 score label", table, index=1).labels.tolist() == [2] * 7

    def test_extras_follow_as_many_scores_as_there_are_names(self) -> None:
        table = np.array([[[40, 30, 40, 40, 0.5, 0.8, 7, 8, 9]] * 11], np.float32)
        found = read("cx cy w h scores extras", table, named=2)
        assert found.labels.tolist() == [0, 1] * 11
        assert found.extras[0].tolist() == [7, 8, 9]

    def test_an_angle(self) -> None:
        table = np.array([[[40, 30, 40, 40, 0.5, 1, 0.3]] * 9], np.float32)
        assert read("cx cy w h score label angle", table).extras[0].tolist() == [pytest.approx(0.3)]
        assert parse_layout(["cx cy w h score label angle"]).task == "obb"

    @pytest.mark.parametrize(
        ("text", "shapes", "message"),
        [
            ("x1 y1 x2 y2 score label", [(1, 9, 7)], "score label' does not fit an output of shape (1, 9, 7)"),
            ("cx cy w h scores", [(1, 3, 4)], "'cx cy w h scores' does not fit an output of shape (1, 3, 4)"),
            ("x1 y1 x2 y2 / scores", [(1, 9, 4), (1, 8, 2)], "the outputs have different numbers of rows"),
            ("cx cy w h scores", [(1, 3, 6, 6)], "an output of shape (1, 3, 6, 6) is no table of boxes"),
        ],
    )  # fmt: skip
    def test_refuses_outputs_that_do_not_fit(self, text: str, shapes: list[tuple[int, ...]], message: str) -> None:
        with pytest.raises(ModelError, match=re.escape(message)):
            read(text, *(np.zeros(shape, np.float32) for shape in shapes))


class TestShapes:
    @pytest.mark.parametrize(
        ("text", "shapes", "classes"),
        [
            ("cx cy w h scores", [(1, 84, 8400)], 80),
            ("cx cy w h objectness scores", [(1, 25200, 85)], 80),
            ("x1 y1 x2 y2 / scores", [(1, 500, 1, 4), (1, 500, 700)], 700),
            ("x1 y1 x2 y2 / scores", [(1, 500, 4), (1, 500, 1)], 1),
            ("x1 y1 x2 y2 score", [(1, 500, 5)], 1),
            ("x1 y1 x2 y2 score label", [(1, 500, 6)], None),
        ],
    )
    def test_show_the_number_of_classes(self, text: str, shapes: list[tuple[int, ...]], classes: int | None) -> None:
        assert parse_layout([text]).classes(shapes, 0) == classes

    @pytest.mark.parametrize(
        ("text", "shape", "images"),
        [
            ("x1 y1 x2 y2 score label", (2, 9, 6), 2),
            ("x1 y1 x2 y2 score label", (9, 6), 1),
            ("count / x1 y1 x2 y2 / score / label", (3, 1), 3),
            ("label / x1 y1 x2 y2 / score", (2, 9), 2),
            ("image x1 y1 x2 y2 score label", (9, 7), 0),
        ],
    )
    def test_show_the_number_of_images(self, text: str, shape: tuple[int, ...], images: int) -> None:
        assert parse_layout([text]).images(shape) == images

    def test_outputs_that_are_not_read(self) -> None:
        layout = parse_layout(["- / x1 y1 x2 y2 score label"])
        assert layout.names(["a", "b", "c"]) == ("b",)
        with pytest.raises(ConfigError, match="has 2 outputs, and the model 1: a; put / between outputs"):
            layout.names(["a"])
