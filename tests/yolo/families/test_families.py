"""The records of all families together, and what it takes to add one."""

from pathlib import Path

import numpy as np
import pytest
from tables import BOX, detector, giving

from onnxq import evaluate
from onnxq.errors import ConfigError, ModelError
from onnxq.yolo import families
from onnxq.yolo.decode import class_count, find_objects
from onnxq.yolo.detections import without_extras
from onnxq.yolo.detector import detect
from onnxq.yolo.families import family_names, family_of
from onnxq.yolo.output_layout import UNKNOWN, Family, OutputLayout
from onnxq.yolo.preprocess import YOLOX

ROOT = Path(__file__).resolve().parents[3]


def test_names_are_those_of_one_family_each():
    names = family_names()
    assert len(set(names)) == len(names)
    assert UNKNOWN not in names
    assert [family_of(name).name for name in names] == list(names)


def test_a_name_of_no_family_is_the_unknown_family():
    unknown = family_of("v99")
    assert (unknown.name, unknown.read) == (UNKNOWN, None)


def test_no_family_has_hundreds_of_outputs():
    outputs = {f"out{k}": np.zeros((1, 10, 10), np.float32) for k in range(200)}
    found = detect(giving(outputs)).outputs
    assert (found.family, found.why) == (UNKNOWN, "200 outputs are more than a detector has")


@pytest.mark.parametrize("name", family_names())
def test_every_family_is_documented(name):
    assert f"| `{name}` |" in (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    assert family_of(name).description


@pytest.mark.parametrize("name", family_names())
def test_boxes_are_read_from_shapes_that_show_the_classes_or_are_finished(name):
    family = family_of(name)
    assert (family.scores is None) == family.is_finished
    assert family.read is not None or name == "classes"


def test_outputs_without_boxes_cannot_be_decoded():
    with pytest.raises(ModelError, match="outputs of family classes have no boxes"):
        find_objects({"out": np.zeros((1, 5), np.float32)}, detector("classes"), 0.1, 0.5)


ROWS = np.array([[0, *BOX, 2, 0.9, 1], [1, *BOX, 0, 0.8, 1], [1, *BOX, 1, 0.7, 0]], np.float32)


@pytest.fixture
def rows8(monkeypatch):
    """A family that exists here only: (n, 8), a row as of nms-rows with a column that says whether it counts."""

    def recognize(clues, output):
        shape = clues.by_name[output]
        fits = len(shape) == 2 and shape[1] == 8
        return OutputLayout(family, "detect", (output,), f"output {shape} has rows of eight") if fits else None

    def read(reading):
        rows = reading.tables[0]
        mine = rows[(rows[:, 0] == reading.index) & (rows[:, 6] > reading.confidence) & (rows[:, 7] > 0)]
        return without_extras(mine[:, 1:5], mine[:, 6], mine[:, 5].astype(np.intp))

    family = Family("rows8", "(n, 8)", recognize, read, is_finished=True, tells_batch=False, preprocess=YOLOX)
    monkeypatch.setattr(families, "STAGES", (*families.STAGES, (family,)))
    return family


class TestAFamilyThatIsAdded:
    """One record adds a family."""

    def test_without_it_its_outputs_are_unknown(self):
        assert detect(giving({"rows": ROWS})).family == UNKNOWN
        with pytest.raises(ConfigError, match="family: 'rows8' is unknown"):
            detect(giving({"rows": ROWS}), family="rows8")

    @pytest.mark.parametrize("given", ["auto", "rows8"])
    def test_is_recognized_and_brings_its_preprocessing(self, rows8, given):
        found = detect(giving({"rows": ROWS}), family=given)
        assert (found.family, found.outputs.outputs, found.preprocess) == ("rows8", ("rows",), YOLOX)
        assert found.why == ("output (3, 8) has rows of eight" if given == "auto" else "the family was given")
        assert found.outputs.has_boxes

    def test_is_read(self, rows8):
        known = detect(giving({"rows": ROWS}, names="['a', 'b', 'c']"))
        assert class_count(known, {"rows": ROWS.shape}) == 3
        first, second = (find_objects({"rows": ROWS}, known, 0.2, 0.5, picture) for picture in (0, 1))
        assert (first.boxes.tolist(), first.labels.tolist()) == ([list(BOX)], [2])
        assert (second.labels.tolist(), second.scores.tolist()) == ([0], [pytest.approx(0.8)])

    def test_can_be_chosen(self, rows8, capsys):
        with pytest.raises(SystemExit, match="0"):
            evaluate.main(["--help"])
        assert "rows8" in capsys.readouterr().out

    def test_does_not_take_outputs_of_others(self, rows8):
        assert detect(giving({"out": np.zeros((1, 8, 84), np.float32)})).family == "v8"
        with pytest.raises(ModelError, match=r"outputs \(1, 8, 84\) are not those of family rows8"):
            detect(giving({"out": np.zeros((1, 8, 84), np.float32)}), family="rows8")
