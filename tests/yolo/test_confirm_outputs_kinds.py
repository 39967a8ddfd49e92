"""Scores and labels of other kinds, backgrounds and boxes of another scale, told by the values of a real network."""

import re
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from raw_outputs import Columns, at, block, demo_looks, looks_in, recognized, same_objects, stacked

from onnxq.calibration import demo
from onnxq.errors import ModelError
from onnxq.yolo.confirm_outputs import UnclearOutputsError, confirm
from onnxq.yolo.decode import find_objects
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.evidence import Look


def told(looks: list[Look], **kind: object) -> Detector:
    model, detector = recognized(looks, **kind)
    return confirm(model, detector, at(looks))


def logits(columns: Columns) -> dict[str, np.ndarray]:
    scores = np.clip(columns["scores"].astype(np.float64), 1e-7, 1 - 1e-7)
    return {
        "boxes": block("cx cy w h")(columns)[None],
        "logits": np.log(scores / (1 - scores)).astype(np.float32)[None],
    }


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
