"""The same objects of a real network in many layouts: each is read the same, or asked for."""

from collections.abc import Mapping

import numpy as np
import pytest
from cases import fast_first
from raw_outputs import (
    Columns,
    Layout,
    at,
    block,
    declaring,
    demo_looks,
    looks_in,
    recognized,
    same_objects,
    stacked,
)
from tables import declared

from onnxq.errors import ModelError
from onnxq.yolo.confirm_outputs import UnclearOutputsError, confirm, confirm_given
from onnxq.yolo.decode import find_objects
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.evidence import Look
from onnxq.yolo.looks import LOOKS, MOST_LOOKS

ROWS = (
    "x1 y1 x2 y2 score label", "x1 y1 x2 y2 label score", "label score x1 y1 x2 y2", "label x1 y1 x2 y2 score",
    "score x1 y1 x2 y2 label", "x1 y1 label score x2 y2", "y1 x1 y2 x2 score label", "x1 x2 y1 y2 score label",
    "label score y2 x2 y1 x1", "cx cy w h score label", "label cx cy w h score", "cy cx h w label score",
    "x1 y1 w h score label", "w h cx cy score label",
)  # fmt: skip


def told(looks: list[Look], **kind: object) -> Detector:
    model, detector = recognized(looks, **kind)
    return confirm(model, detector, at(looks))


@pytest.mark.parametrize(
    ("words", "classes", "finished", "unit"),
    fast_first(
        [
            (words, *kind, ("px", "shares")[(row + number) // 2 % 2])
            for part in (0, 2)
            for row, words in enumerate(ROWS)
            for number, kind in enumerate([(6, 50), (6, 0), (1, 0), (2, 100)])
            if (row + number) % 4 == part
        ],
        len(ROWS),
    ),
)
def test_rows_with_a_score_and_a_label(words: str, unit: str, classes: int, finished: int) -> None:
    looks = looks_in(stacked(words), unit=unit, classes=classes, finished=finished)
    found = told(looks)
    if found.family == "columns":
        stated = found.outputs.stated
        assert stated is not None
        assert stated.words == tuple(words.split())
        assert stated.shares == (unit == "shares")
    else:
        assert (found.family, words, unit) == ("end2end", ROWS[0], "px")
    assert found.outputs.is_finished == bool(finished)
    assert same_objects(looks, found, classes)


def with_others(words: str) -> object:
    """Rows with a factor of the score, `zero`, or the number of the row, `id`, among their columns."""

    def build(columns: Columns) -> Mapping[str, np.ndarray]:
        factor = np.sqrt(columns["score"])
        score = columns["score"] / np.maximum(factor, 1e-9)
        zero, ids = np.zeros_like(factor), np.arange(len(factor), dtype=np.float32)
        others = {"objectness": factor, "part": score, "zero": zero, "id": ids}
        return {"out": block(words)({**columns, **others})[None]}

    return build


@pytest.mark.parametrize(
    "words",
    ["zero x1 y1 x2 y2 score label", "x1 y1 x2 y2 score label zero", "zero label cx cy w h score",
     "id x1 y1 x2 y2 score label", "x1 y1 x2 y2 id label score", "zero id cx cy w h score label",
     "cx cy w h score label id"],
)  # fmt: skip
@pytest.mark.parametrize(("classes", "finished"), fast_first([(6, 0), (1, 60), (6, 60), (1, 0)], 2))
def test_columns_that_say_nothing_of_objects(words: str, classes: int, finished: int) -> None:
    looks = looks_in(with_others(words), classes=classes, finished=finished)
    found = told(looks)
    assert found.outputs.stated is not None
    read = [word if word in words else "-" for word in found.outputs.stated.words]
    expected = ["-" if word in ("zero", "id") else word for word in words.split()]
    # With one class, any column of zeros is its label.
    assert read == expected or (classes == 1 and "zero" in words)
    assert same_objects(looks, found, classes)


@pytest.mark.parametrize("finished", [0, 60])
@pytest.mark.parametrize("box", ["x1 y1 x2 y2", "cx cy w h"])
def test_two_columns_that_may_be_scores_are_asked_for(box: str, finished: int) -> None:
    looks = looks_in(with_others(f"{box} objectness part label"), finished=finished)
    with pytest.raises(UnclearOutputsError, match=f"--layout {box} objectness score label"):
        told(looks)
    model, _ = recognized(looks)
    given = detect(
        model, layout=(f"{box} objectness score label",), output_shapes={"out": looks[0].outputs["out"].shape}
    )
    assert same_objects(looks, confirm_given(given, at(looks)))


def apart(boxes: str, scores: str = "scores", turned: bool = False) -> object:
    def build(columns: Columns) -> Mapping[str, np.ndarray]:
        tables = {"a": block(boxes)(columns), "b": block(scores)(columns)}
        return {name: np.ascontiguousarray(each.T if turned else each)[None] for name, each in tables.items()}

    return build


SCORES = {
    "cx cy w h scores": stacked("cx cy w h scores"),
    "x1 y1 x2 y2 scores": stacked("x1 y1 x2 y2 scores"),
    "y1 x1 y2 x2 scores": stacked("y1 x1 y2 x2 scores"),
    "scores x1 y1 x2 y2": stacked("scores x1 y1 x2 y2"),
    "cx cy w h / scores": apart("cx cy w h"),
    "x1 y1 x2 y2 / scores": apart("x1 y1 x2 y2"),
    "y1 x1 y2 x2 / scores": apart("y1 x1 y2 x2"),
    "x1 y1 w h / scores": apart("x1 y1 w h"),
    "scores / cx cy w h": apart("scores", "cx cy w h"),
}


@pytest.mark.parametrize("unit", ["px", "shares"])
@pytest.mark.parametrize("words", SCORES)
def test_a_score_for_each_class(words: str, unit: str) -> None:
    looks = looks_in(SCORES[words], unit=unit)
    found = told(looks)
    stated = found.outputs.stated
    assert stated is not None
    assert stated.text == f"{words}{' shares' if unit == 'shares' else ''} candidates"
    assert same_objects(looks, found, best_class=False)


def test_columns_before_rows() -> None:
    looks = looks_in(apart("x1 y1 x2 y2", turned=True), unit="shares")
    assert same_objects(looks, told(looks), best_class=False)


def yolo_v4(columns: Columns) -> Mapping[str, np.ndarray]:
    return {"boxes": block("x1 y1 x2 y2")(columns)[None, :, None], "confs": columns["scores"][None]}


def logits(columns: Columns) -> Mapping[str, np.ndarray]:
    scores = np.clip(columns["scores"].astype(np.float64), 1e-7, 1 - 1e-7)
    return {
        "boxes": block("cx cy w h")(columns)[None],
        "logits": np.log(scores / (1 - scores)).astype(np.float32)[None],
    }


def detr(columns: Columns) -> Mapping[str, np.ndarray]:
    return {
        "labels": columns["label"][None].astype(np.int64),
        "boxes": block("x1 y1 x2 y2")(columns)[None],
        "scores": columns["score"][None],
    }


def rows_and_labels(columns: Columns) -> Mapping[str, np.ndarray]:
    return {"dets": block("x1 y1 x2 y2 score")(columns)[None], "labels": columns["label"][None].astype(np.int64)}


def counted(columns: Columns) -> Mapping[str, np.ndarray]:
    return {
        "boxes": block("y1 x1 y2 x2")(columns)[None],
        "classes": columns["label"][None],
        "scores": columns["score"][None],
        "count": columns["rows"].astype(np.float32),
    }


def images_in_front(columns: Columns) -> Mapping[str, np.ndarray]:
    valid = slice(0, int(columns["rows"][0]))
    return {"out": np.insert(block("label score x1 y1 x2 y2")(columns)[valid], 0, 0, axis=1)}


@pytest.mark.parametrize("unit", ["px", "shares"])
@pytest.mark.parametrize(
    ("layout", "text", "finished"),
    [
        (yolo_v4, "x1 y1 x2 y2 / scores", 0),
        (logits, "cx cy w h / scores", 0),
        (detr, "label / x1 y1 x2 y2 / score", 0),
        (detr, "label / x1 y1 x2 y2 / score", 60),
        (rows_and_labels, "x1 y1 x2 y2 score / label", 70),
        (counted, "y1 x1 y2 x2 / label / score / count", 80),
        (images_in_front, "image label score x1 y1 x2 y2", 90),
    ],
)  # fmt: skip
def test_several_outputs_and_lists(layout, text: str, unit: str, finished: int) -> None:
    looks = looks_in(layout, unit=unit, finished=finished)
    found = told(looks)
    assert found.outputs.stated is not None
    modes = [word for word, holds in (("shares", unit == "shares"), ("logits", layout is logits)) if holds]
    assert found.outputs.stated.text == " ".join([text, *modes, "finished" if finished else "candidates"])
    assert same_objects(looks, found, best_class=bool(finished) or layout is detr)


def rotated(words: str, least: float, greatest: float) -> Layout:
    """Rows with an angle of evenly spread values; no box of the demo is rotated, and none is turned by them here."""

    def build(columns: Columns) -> Mapping[str, np.ndarray]:
        angle = np.linspace(least, greatest, len(columns["score"]), dtype=np.float32)
        return {"out": block(words)({**columns, "angle": angle})[None]}

    return build


class TestRotatedBoxes:
    WORDS = ("cx cy w h score label angle", "cx cy w h angle score label", "label score cx cy w h angle")

    @pytest.mark.parametrize("finished", [0, 60])
    @pytest.mark.parametrize("words", fast_first(WORDS))
    @pytest.mark.parametrize("bounds", [(0, 1.57), (-0.78, 2.35), (-3.14, 3.14)])
    @pytest.mark.parametrize("metadata", [{}, {"task": "obb"}])
    def test_have_their_angle_in_a_column(
        self, words: str, bounds: tuple[float, float], finished: int, metadata: dict[str, str]
    ) -> None:
        looks = looks_in(rotated(words, *bounds), finished=finished)
        found = told(looks, **metadata)
        assert found.outputs.task == "obb"
        if found.outputs.stated is None:
            assert (found.family, words, metadata) == ("end2end", self.WORDS[0], {"task": "obb"})
        else:
            assert found.outputs.stated.words == tuple(words.split())
        [objects] = [find_objects(one.outputs, found, 0.1, 0.65) for one in looks[:1]]
        assert objects.extras.shape == (len(objects), 1)

    @pytest.mark.parametrize("words", WORDS)
    def test_the_task_tells_an_angle_that_is_always_0(self, words: str) -> None:
        looks = looks_in(rotated(words, 0, 0))
        found = told(looks, task="obb")
        assert found.outputs.stated is not None
        assert (found.outputs.task, found.outputs.stated.words) == ("obb", tuple(words.split()))
        upright = told(looks)
        assert upright.outputs.stated is not None
        assert upright.outputs.task == "detect"
        assert upright.outputs.stated.words == tuple(words.replace("angle", "-").split())


class TestWhatTheShapesShow:
    def test_stays_if_the_values_allow_it(self) -> None:
        looks = list(demo_looks())
        model, detector = recognized(looks, names=str({n: f"c{n}" for n in range(6)}))
        found = confirm(model, detector, at(looks))
        assert found.family == "v8"
        assert found.outputs.sure == f"confirmed by the values on {LOOKS} pictures"
        assert found.why == f"{detector.why}; {found.outputs.sure}"

    @pytest.mark.parametrize("named", [1, 5])
    def test_classes_without_a_name_are_counted(self, named: int) -> None:
        looks = list(demo_looks())
        model, detector = recognized(looks, names=str({n: f"c{n}" for n in range(named)}))
        found = confirm(model, detector, at(looks))
        assert len(found.names) == 6
        said = f"has 6 classes, of which the metadata names {named}, and no objectness"
        assert found.why == f"output (1, 10, 500) {said}; confirmed by the values on {LOOKS} pictures"

    def test_is_not_asked_where_nothing_is_found(self) -> None:
        looks = [Look({"out": np.full((1, 5, 525), 0.001, np.float32)}, one.region) for one in demo_looks()]
        found = told(looks)
        assert found.family == "v8"
        assert found.outputs.sure == "by shape alone: no object on 8 pictures confirms it"

    @pytest.mark.parametrize(("scale", "count"), [(1, LOOKS), (0.2, MOST_LOOKS), (0.001, 2 * LOOKS)])
    def test_the_less_pictures_tell_the_more_are_looked_at(self, scale: float, count: int) -> None:
        looks = []
        for one in demo_looks():
            [table] = one.outputs.values()
            scores = scale * table[:, 4:].max(axis=1, keepdims=True)
            looks.append(Look({"out": np.concatenate([table[:, :4], scores], axis=1)}, one.region))
        model, detector = recognized(looks, names="{0: 'c'}")
        asked: list[int] = []
        confirm(model, detector, lambda numbers: [looks[number] for number in numbers if not asked.append(number)])
        assert asked == list(range(count))

    def test_objects_that_do_not_depend_on_the_picture_lie_anywhere(self) -> None:
        table = np.zeros((1, 100, 6), np.float32)
        table[0, 0] = 10, 110, 50, 155, 0.9, 3
        table[0, 1] = 100, 20, 150, 40, 0.8, 2
        found = told([Look({"out": table}, one.region) for one in demo_looks()])
        assert found.family == "end2end"
        assert found.outputs.sure == "by shape alone: the outputs are the same on 12 pictures"

    def test_does_not_leave_out_the_labels_beside_scores(self) -> None:
        rng = np.random.default_rng(0)
        looks = []
        for left, top, right, bottom in ((0, 0, 32, 64), (0, 0, 64, 32), (32, 0, 64, 64), (0, 32, 64, 64)):
            corner, size = rng.uniform(0, 0.5, (84, 2)), rng.uniform(0.2, 0.5, (84, 2))
            low = (left, top) + corner * (right - left, bottom - top)
            boxes = np.concatenate([low, low + size * (right - left, bottom - top)], axis=1)
            scores, labels = rng.uniform(0.2, 0.9, (84, 1)), rng.integers(0, 3, (84, 1))
            arrays = {"out0": boxes, "out1": scores, "out2": labels}
            outputs = {name: array[np.newaxis].astype(np.float32) for name, array in arrays.items()}
            looks.append(Look(outputs, (left, top, right, bottom)))
        model = declared((1, 84, 4), (1, 84, 1), (1, 84, 1))
        assert detect(model).family == "separate"
        found = confirm(model, detect(model), at(looks))
        assert found.outputs.stated is not None
        assert found.outputs.stated.words == ("x1", "y1", "x2", "y2", "score", "label")

    def test_duplicates_in_sorted_rows_are_said(self) -> None:
        def best_rows(columns: Columns) -> Mapping[str, np.ndarray]:
            order = np.argsort(-columns["score"], kind="stable")[:100]
            return {"out": block("x1 y1 x2 y2 score label")(columns)[order][None]}

        found = told(looks_in(best_rows))
        assert found.family == "end2end"
        assert found.outputs.sure.endswith(
            "but many boxes repeat, which --layout x1 y1 x2 y2 score label candidates removes"
        )

    def test_a_model_with_nms_has_no_candidates(self) -> None:
        looks = looks_in(stacked("label x1 y1 x2 y2 score"))
        assert told(looks, nms=True).outputs.is_finished


class TestObjectness:
    @pytest.mark.parametrize("boxes", ["cx cy w h", "x1 y1 x2 y2"])
    def test_is_told_from_the_score_of_a_class(self, boxes: str) -> None:
        def with_objectness(columns: Columns) -> Mapping[str, np.ndarray]:
            objectness = np.sqrt(columns["score"])[:, None]
            scores = columns["scores"] / np.maximum(objectness, 1e-6)
            return {"out": np.concatenate([block(boxes)(columns), objectness, scores], axis=1)[None].astype(np.float32)}

        looks = looks_in(with_objectness)
        found = told(looks)
        assert found.outputs.stated is not None
        assert found.outputs.stated.words == (*boxes.split(), "objectness", "scores")
        assert same_objects(looks, found, best_class=False)


class TestQuestion:
    def test_names_the_option_if_nothing_explains_the_values(self) -> None:
        rng = np.random.default_rng(0)
        looks = [Look({"out": rng.uniform(2, 9, (1, 100, 6)).astype(np.float32)}, one.region) for one in demo_looks()]
        with pytest.raises(
            UnclearOutputsError, match=r"out \(1, 100, 6\) .* end2end, but the scores reach .* --layout x1"
        ):
            told(looks)

    def test_names_the_ways_to_read_outputs_that_several_explain(self) -> None:
        table = np.zeros((1, 40, 6), np.float32)
        table[0, 0] = 2, 80, 80, 60, 60, 0.9  # in the middle, the same for x as for y
        table[0, 1] = 1, 82, 82, 40, 40, 0.7
        with pytest.raises(
            ModelError, match=r"several ways.* --layout label cx cy w h score.*--layout label cy cx h w"
        ):
            told([Look({"out": table}, one.region) for one in demo_looks()])


class TestGiven:
    @pytest.mark.parametrize(
        ("words", "sure"),
        [
            ("x1 y1 x2 y2 score label shares", "the values allow it"),
            ("x1 y1 x2 y2 score label", "but the values contradict it: the boxes reach 1"),
            ("x1 y1 w h score label shares", "but the boxes often lie where the pictures are empty"),
        ],
    )
    def test_stays_and_what_the_values_say_is_said(self, words: str, sure: str) -> None:
        looks = looks_in(stacked("x1 y1 x2 y2 score label"), unit="shares")
        model, _ = recognized(looks)
        given = detect(model, layout=(words,), output_shapes={"out": looks[0].outputs["out"].shape})
        found = confirm_given(given, at(looks))
        assert found.outputs.stated == given.outputs.stated
        assert found.outputs.sure.startswith(sure)
        assert found.why == f"as --layout says; {found.outputs.sure}"


def test_outputs_without_boxes_are_left_alone() -> None:
    looks = [Look({"out": np.zeros((1, 7), np.float32)}, one.region) for one in demo_looks()]
    model, detector = recognized(looks)
    assert detector.outputs.task == "classify"
    assert confirm(model, detector, at([])) is detector
    grids = declaring({"out": np.zeros((1, 9, 4, 4), np.float32)})
    assert confirm(grids, detect(grids), lambda numbers: []).family == "unknown"
