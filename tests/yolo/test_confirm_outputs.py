"""The same objects of a real network in many layouts: each is read the same, or asked for."""

import re
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from raw_outputs import (
    Columns,
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

from onnxq.calibration import demo
from onnxq.errors import ModelError
from onnxq.yolo.confirm_outputs import UnclearOutputsError, confirm, confirm_given
from onnxq.yolo.decode import find_objects
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.evidence import Look
from onnxq.yolo.looks import LOOKS

ROWS = (
    "x1 y1 x2 y2 score label", "x1 y1 x2 y2 label score", "label score x1 y1 x2 y2", "label x1 y1 x2 y2 score",
    "score x1 y1 x2 y2 label", "x1 y1 label score x2 y2", "y1 x1 y2 x2 score label", "x1 x2 y1 y2 score label",
    "label score y2 x2 y1 x1", "cx cy w h score label", "label cx cy w h score", "cy cx h w label score",
    "x1 y1 w h score label", "w h cx cy score label",
)  # fmt: skip


def told(looks: list[Look], **kind: object) -> Detector:
    model, detector = recognized(looks, **kind)
    return confirm(model, detector, at(looks))


@pytest.mark.parametrize("unit", ["px", "shares"])
@pytest.mark.parametrize("words", ROWS)
@pytest.mark.parametrize(("classes", "finished"), [(6, 0), (6, 50), (1, 0), (2, 100)])
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


class TestWhatTheShapesShow:
    def test_stays_if_the_values_allow_it(self) -> None:
        looks = list(demo_looks())
        model, detector = recognized(looks, names=str({n: f"c{n}" for n in range(6)}))
        found = confirm(model, detector, at(looks))
        assert found.family == "v8"
        assert found.outputs.sure == f"confirmed by the values on {LOOKS} pictures"
        assert found.why == f"{detector.why}; {found.outputs.sure}"

    def test_is_not_asked_where_nothing_is_found(self) -> None:
        looks = [Look({"out": np.full((1, 5, 525), 0.001, np.float32)}, one.region) for one in demo_looks()]
        found = told(looks)
        assert found.family == "v8"
        assert found.outputs.sure == "by shape alone: no object on 12 pictures confirms it"

    def test_objects_that_do_not_depend_on_the_picture_lie_anywhere(self) -> None:
        table = np.zeros((1, 100, 6), np.float32)
        table[0, 0] = 10, 110, 50, 155, 0.9, 3
        table[0, 1] = 100, 20, 150, 40, 0.8, 2
        found = told([Look({"out": table}, one.region) for one in demo_looks()])
        assert found.family == "end2end"
        assert found.outputs.sure.startswith(
            "by shape, as the values on 12 pictures fit several layouts, also --layout "
        )

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
        assert found.outputs.sure.endswith("but many boxes repeat: --layout without finished removes them")

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


def scaled(words: str, **factors: float) -> object:
    """Return the layout of one output with columns times a factor."""

    def build(columns: Columns) -> Mapping[str, np.ndarray]:
        changed = {name: columns[name] * np.float32(factors.get(name, 1)) for name in columns}
        return stacked(words)(changed)

    return build


def percent_in_columns(columns: Columns) -> Mapping[str, np.ndarray]:
    return {name: each.transpose(0, 2, 1) for name, each in scaled("cx cy w h scores", scores=100)(columns).items()}


def from_one(columns: Columns) -> Mapping[str, np.ndarray]:
    return stacked("label score x1 y1 x2 y2")({**columns, "label": columns["label"] + (columns["score"] > 0)})


def padded(columns: Columns) -> Mapping[str, np.ndarray]:
    table = block("label score x1 y1 x2 y2")(columns)
    table[int(columns["rows"][0]) :] = -1
    return {"out": table[None]}


def of_detection_output(columns: Columns) -> Mapping[str, np.ndarray]:
    count = int(columns["rows"][0])
    table = np.insert(block("label score x1 y1 x2 y2")(columns), 0, 0, axis=1)
    table[count:, 0] = -1
    return {"out": table[None, None]}


def product(columns: Columns) -> Mapping[str, np.ndarray]:
    rng = np.random.default_rng(0)
    other = np.maximum(columns["score"], rng.random(len(columns["score"]))).astype(np.float32)
    score = columns["score"] / np.maximum(other, 1e-9)
    return stacked("cx cy w h objectness score label")({**columns, "objectness": other, "score": score})


def ones(columns: Columns) -> Mapping[str, np.ndarray]:
    return stacked("cx cy w h objectness scores")({**columns, "objectness": np.ones_like(columns["score"])})


@pytest.mark.parametrize(
    ("layout", "text", "finished", "names"),
    [
        (scaled("x1 y1 x2 y2 score label", score=100), "x1 y1 x2 y2 score label percent", 70, True),
        (scaled("label score cx cy w h", score=100), "label score cx cy w h percent", 70, False),
        (percent_in_columns, "cx cy w h scores percent", 0, True),
        (from_one, "label score x1 y1 x2 y2 from-1", 70, True),
        (padded, "label score x1 y1 x2 y2", 70, False),
        (of_detection_output, "image label score x1 y1 x2 y2", 70, False),
        (product, "cx cy w h objectness score label", 70, False),
        (ones, "cx cy w h objectness scores", 0, False),
        (stacked("label x1 y1 x2 y2 score"), "label x1 y1 x2 y2 score", 5, False),
    ],
)  # fmt: skip
def test_scores_and_labels_of_other_kinds(layout, text: str, finished: int, names: bool) -> None:
    looks = looks_in(layout, finished=finished)
    found = told(looks, **({"names": str(dict(enumerate("abcdef")))} if names else {}))
    assert found.outputs.stated is not None
    assert found.outputs.stated.text == f"{text} {'finished' if finished else 'candidates'}"
    few = finished == 5
    assert few or same_objects(looks, found, best_class=bool(finished))


def with_background(place: int, logits: bool) -> object:
    def build(columns: Columns) -> Mapping[str, np.ndarray]:
        scores = columns["scores"].astype(np.float64)
        scores = scores / np.maximum(scores.sum(axis=1, keepdims=True), 1)
        every = np.insert(scores, place, 1 - scores.sum(axis=1), axis=1)
        if logits:
            every = np.log(np.maximum(every, 1e-7)) + 3
        return {"scores": every.astype(np.float32)[None], "boxes": block("cx cy w h")(columns)[None]}

    return build


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize(("place", "scores"), [(0, "background scores"), (6, "scores background")])
def test_a_background_beside_the_classes(place: int, scores: str, logits: bool, names: bool) -> None:
    looks = looks_in(with_background(place, logits), unit="shares")
    found = told(looks, **({"names": str(dict(enumerate("abcdef")))} if names else {}))
    assert found.outputs.stated is not None
    softmax = " softmax" if logits else ""
    assert found.outputs.stated.text == f"{scores} / cx cy w h shares{softmax} candidates"
    objects = [find_objects(one.outputs, found, 0.5, 0.65) for one in looks]
    whole = [find_objects(one.outputs, detect_demo(), 0.5, 0.65) for one in demo_looks()]
    for mine, theirs in zip(objects, whole, strict=True):
        assert set(mine.labels.tolist()) <= set(theirs.labels.tolist())
    assert sum(map(len, objects)) > 10


def detect_demo() -> Detector:
    return detect(onnx.load(demo.model_path()))


def test_a_class_with_the_greatest_logit_of_most_boxes_is_no_background() -> None:
    def build(columns: Columns) -> Mapping[str, np.ndarray]:
        found = logits(columns)
        found["logits"][:, :, 0] = np.maximum(found["logits"][:, :, 0], -4)
        return found

    stated = told(looks_in(build)).outputs.stated
    assert stated is not None
    assert stated.text == "cx cy w h / scores logits candidates"


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("factor", [2, 0.4])
def test_boxes_of_an_input_of_another_size(factor: float, turned: bool) -> None:
    def build(columns: Columns) -> Mapping[str, np.ndarray]:
        boxes = dict.fromkeys(("cx", "cy", "w", "h", "x1", "y1", "x2", "y2"), factor)
        if not turned:
            return scaled("x1 y1 x2 y2 score label", **boxes)(columns)
        return {name: each.transpose(0, 2, 1) for name, each in scaled("cx cy w h scores", **boxes)(columns).items()}

    names = {"names": str(dict(enumerate("abcdef")))} if turned else {}
    with pytest.raises(UnclearOutputsError, match=r"are px of an input of about \d+ px, and not of 160x160") as raised:
        told(looks_in(build, finished=0 if turned else 60), **names)
    assert int(re.findall(r"about (\d+)", str(raised.value))[0]) == pytest.approx(160 * factor, rel=0.1)


def test_scores_of_all_classes_beside_indices_are_candidates() -> None:
    def build(columns: Columns) -> Mapping[str, np.ndarray]:
        chosen = np.zeros((40, 3), np.int64)
        chosen[:, 2] = np.argsort(-columns["score"])[:40]
        return {"b": block("x1 y1 x2 y2")(columns)[None], "s": columns["scores"].T[None], "i": chosen}

    looks = looks_in(build)
    found = told(looks, nms=True)
    assert not found.outputs.is_finished
    assert same_objects(looks, found, best_class=False)


def test_names_the_product_of_two_scores_without_order() -> None:
    with pytest.raises(ModelError, match=r"several ways.* --layout cx cy w h objectness score label"):
        told(looks_in(product))


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
