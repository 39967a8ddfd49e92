import tracemalloc

import numpy as np
import pytest
from raw_outputs import at, looks_in, recognized, stacked

from onnxq.yolo.detector import clues_of
from onnxq.yolo.evidence import Look
from onnxq.yolo.score_tables import ScoreTable, score_tables

SIZE = (64, 64)


def tables_of(outputs: dict[str, np.ndarray], **metadata: str) -> list[ScoreTable]:
    """The ways to read outputs that are the same in two looks."""
    looks = [Look(outputs, (0, 0, 64, 64)), Look(outputs, (0, 0, 64, 64))]
    model, detector = recognized(looks, **metadata)
    clues = clues_of(model, SIZE, {name: array.shape for name, array in outputs.items()})
    return list(score_tables(clues, detector.outputs, looks))


def random(*shape: int, most: float = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, most, shape).astype(np.float32)


def groups(outputs: dict[str, np.ndarray], **metadata: str) -> set[str]:
    found = (table.columns(("x1", "y1", "x2", "y2"), False) for table in tables_of(outputs, **metadata))
    return {each.text for each in found}


def labels(*shape: int, most: int = 5, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(1).integers(0, most + 1, shape).astype(dtype)


BOXES = random(1, 30, 4, most=60)


def rows(*parts: np.ndarray) -> dict[str, np.ndarray]:
    return {"out": np.concatenate(parts, axis=2)}


class TestLabel:
    def test_is_whole_and_the_score_within_0_and_1(self) -> None:
        assert groups(rows(labels(1, 30, 1), random(1, 30, 1), BOXES)) == {"label score x1 y1 x2 y2"}

    def test_is_below_the_number_of_classes(self) -> None:
        outputs = rows(BOXES, random(1, 30, 1), labels(1, 30, 1, most=5))
        assert groups(outputs, names=str(dict(enumerate("abcdef")))) == {"x1 y1 x2 y2 score label"}
        assert not any("label" in text for text in groups(outputs, names=str(dict(enumerate("abc")))))

    def test_a_column_of_zeros_in_front_of_a_list_is_the_image(self) -> None:
        zeros = np.zeros((30, 1), np.float32)
        found = groups({"out": np.concatenate([zeros, BOXES[0], random(30, 1), zeros], axis=1)})
        assert "image x1 y1 x2 y2 score label" in found
        assert not any(text.startswith("label") for text in found)

    def test_integers_beside_the_boxes(self) -> None:
        outputs = {"s": random(1, 30), "l": labels(1, 30, dtype=np.int64), "b": BOXES}
        assert groups(outputs) == {"score / label / x1 y1 x2 y2"}

    def test_only_counted_rows_count(self) -> None:
        outputs = {"n": np.array([[20]], np.int32), **rows(BOXES, random(1, 30, 1), labels(1, 30, 1))}
        outputs["out"][:, 20:] = 7.5  # no labels and no scores
        assert groups(outputs) == {"count / x1 y1 x2 y2 score label"}

    def test_the_score_that_falls_is_the_score(self) -> None:
        falling = np.linspace(1, 0.1, 30, dtype=np.float32).reshape(1, 30, 1)
        [table] = [each for each in tables_of(rows(random(1, 30, 4), falling, labels(1, 30, 1))) if each.is_labelled]
        assert table.is_sorted
        assert table.best.scores[:30].tolist() == falling.ravel().tolist()


class TestScores:
    @pytest.mark.parametrize(
        ("outputs", "text"),
        [
            ({"b": BOXES, "s": random(1, 30, 9)}, "x1 y1 x2 y2 / scores"),
            ({"s": random(1, 9, 30), "b": BOXES.transpose(0, 2, 1)}, "scores / x1 y1 x2 y2"),
            ({"b": BOXES[:, :, None], "s": random(1, 30, 9)}, "x1 y1 x2 y2 / scores"),
            ({"b": BOXES, "o": random(1, 30, 1), "s": random(1, 30, 9)}, "x1 y1 x2 y2 / objectness / scores"),
            ({"b": BOXES, "s": random(1, 30, 9) * 20 - 15}, "x1 y1 x2 y2 / scores logits"),
            ({"b": BOXES, "s": random(1, 30, 9), "p": random(1, 8, 16, 16)}, "x1 y1 x2 y2 / scores / -"),
        ],
    )
    def test_apart(self, outputs: dict[str, np.ndarray], text: str) -> None:
        assert groups(outputs) == {text}

    @pytest.mark.parametrize(("names", "text"), [(9, "x1 y1 x2 y2 scores"), (8, "x1 y1 x2 y2 objectness scores")])
    def test_the_names_tell_the_objectness(self, names: int, text: str) -> None:
        found = groups(rows(BOXES, random(1, 30, 9)), names=str({n: f"c{n}" for n in range(names)}))
        assert found == {text}

    def test_beyond_0_to_1_without_being_logits_are_none(self) -> None:
        assert groups({"b": BOXES, "s": random(1, 30, 9, most=3)}) == set()

    @pytest.mark.parametrize("column", [0, 5])
    def test_the_column_of_no_class_is_the_first_or_the_last(self, column: int) -> None:
        scores = random(1, 30, 6, most=0.3)
        scores[0, 3:, column] = 0.9
        words = " ".join(["background", "scores"] if column == 0 else ["scores", "background"])
        assert groups({"b": BOXES, "s": scores}) == {f"x1 y1 x2 y2 / {words}"}

    def test_large_tables_are_not_copied(self) -> None:
        scores = random(1, 20_000, 60)
        tracemalloc.start()
        try:
            tables_of({"b": random(1, 20_000, 4, most=60), "s": scores, "p": random(1, 8, 4, 4)})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        joined = 2 * (scores.nbytes * 64 // 60)  # two looks
        assert peak < 2 * joined

    def test_numbers_of_rows_that_differ_between_looks(self) -> None:
        looks = looks_in(stacked("label score x1 y1 x2 y2"), finished=20)
        lists = [Look({"out": each.outputs["out"][0, : 9 + number]}, each.region) for number, each in enumerate(looks)]
        model, detector = recognized(lists)
        [table] = score_tables(clues_of(model, (160, 160), {"out": (9, 6)}), detector.outputs, at(lists)([0, 1, 2]))
        assert table.groups == (("label", "score", "box0", "box1", "box2", "box3"),)


def test_outputs_without_tables_have_none() -> None:
    assert tables_of({"out": random(1, 24, 8, 8)}) == []
    assert tables_of({"out": random(1, 4, 3)}) == []
