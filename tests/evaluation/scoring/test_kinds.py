"""Models with constant outputs, and annotations with outlines, keypoints and rotated boxes."""

import json
import math

import numpy as np
import pytest
from tables import BOX, CELLS, TWO, always, giving, table_of, write_coco

from onnxq.errors import DataError
from onnxq.evaluation.average_precision import check_measurable, evaluate
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.predictor import Settings

X, Y, RIGHT, BOTTOM = BOX
OUTLINE = [[X, Y, RIGHT, Y, RIGHT, BOTTOM, X, BOTTOM]]


def annotated(folder, **more):
    """Two pictures with an object each, at `BOX`, with more in their annotations; functions of the entry."""
    annotations, images = write_coco(folder, TWO, {1: "person", 3: "car"})
    content = json.loads(annotations.read_text())
    for entry in content["annotations"]:
        entry.update({key: make(entry) if callable(make) else make for key, make in more.items()})
    annotations.write_text(json.dumps(content))
    return annotations, images


class TestMasks:
    @staticmethod
    def model(left=1.0):
        """Masks that are above 0 in the left part of the input."""
        prototypes = np.where(np.arange(16) < 16 * left, 1.0, -1.0).astype(np.float32)
        table = np.concatenate([table_of([(*BOX, 0.9, 1)], "v8", 2), np.ones((4, CELLS), np.float32)])
        return giving({"out": table[np.newaxis], "protos": np.tile(prototypes, (1, 4, 16, 1)).astype(np.float32)})

    def test_beside_boxes(self, tmp_path):
        found = evaluate(self.model(), *annotated(tmp_path, segmentation=OUTLINE))
        assert (found.ap, found.measured) == (pytest.approx(100), "boxes")
        assert found.others["masks"][:3] == pytest.approx((100, 100, 100))

    def test_a_mask_of_a_part_of_the_object(self, tmp_path):
        found = evaluate(self.model(0.375), *annotated(tmp_path, segmentation=OUTLINE))
        assert found.ap == pytest.approx(100)
        assert found.others["masks"][:3] == pytest.approx((40, 100, 0))  # IoU 16 / 24

    def test_run_lengths(self, tmp_path):
        counts = [64 * X]
        for _ in range(X, RIGHT):
            counts[-1] += Y
            counts += [BOTTOM - Y, 64 - BOTTOM]
        counts[-1] += 64 * (64 - RIGHT)
        assert sum(counts) == 64 * 64
        found = evaluate(self.model(), *annotated(tmp_path, segmentation={"size": [64, 64], "counts": counts}))
        assert found.others["masks"][0] == pytest.approx(100)

    def test_without_outlines_only_boxes(self, tmp_path):
        assert evaluate(self.model(), *annotated(tmp_path, segmentation=[])).others == {}

    def test_some_without_an_outline_are_told(self, tmp_path):
        data = annotated(tmp_path, segmentation=lambda entry: OUTLINE if entry["image_id"] == 100 else [])
        found = evaluate(self.model(), *data)
        assert "1 of 2 objects have no outline, and their mask is their box" in found.remarks
        assert found.others["masks"][0] == pytest.approx(100)


class TestKeypoints:
    @staticmethod
    def model(off=0.0, count=3):
        points = np.zeros((3 * count, CELLS), np.float32)
        points[:] = np.tile([20 + off, 24, 0.9], count)[:, None]
        table = np.concatenate([table_of([(*BOX, 0.9, 1)], "v8", 2), points])
        return always(table, task="pose", kpt_shape=f"[{count}, 3]", names="['person', 'car']")

    @pytest.mark.parametrize("count", [3, 17])
    def test_beside_boxes(self, tmp_path, count):
        keypoints = [20, 24, 2] * count
        found = evaluate(self.model(count=count), *annotated(tmp_path, keypoints=keypoints))
        assert found.ap == pytest.approx(100)
        assert found.others["keypoints"][0] == pytest.approx(100)

    def test_similarity(self, tmp_path):
        # exp(-d² / (2 area (2 sigma)²)) with the area 0.53 of the box and sigma 1 / 3
        off = math.sqrt(-math.log(0.72) * 2 * 0.53 * 24 * 16) * 2 / 3
        found = evaluate(self.model(off), *annotated(tmp_path, keypoints=[20, 24, 2] * 3))
        assert found.others["keypoints"][:3] == pytest.approx((50, 100, 0))

    def test_keypoints_that_are_not_labelled_do_not_count(self, tmp_path):
        found = evaluate(self.model(), *annotated(tmp_path, keypoints=[20, 24, 2, 60, 60, 0, 20, 24, 1]))
        assert found.others["keypoints"][0] == pytest.approx(100)

    @pytest.mark.parametrize("keypoints", [[], [20, 24, 2]])
    def test_another_number_of_keypoints(self, tmp_path, keypoints):
        assert evaluate(self.model(), *annotated(tmp_path, keypoints=keypoints)).others == {}


class TestRotated:
    @staticmethod
    def model(angle):
        table = np.concatenate([table_of([(*BOX, 0.9, 1)], "v8", 2), np.full((1, CELLS), angle, np.float32)])
        return always(table, task="obb", names="['person', 'car']")

    @staticmethod
    def corners(angle):
        middle = np.array([(X + RIGHT) / 2, (Y + BOTTOM) / 2])
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        return [(np.array([[-12, -8], [12, -8], [12, 8], [-12, 8]]) @ turn + middle).ravel().tolist()]

    @pytest.mark.parametrize("angle", [0.0, 0.3, -0.7, math.pi / 2])
    def test_of_equal_boxes(self, tmp_path, angle):
        found = evaluate(self.model(angle), *annotated(tmp_path, segmentation=self.corners(angle)))
        assert (found.ap, found.measured, found.others) == (pytest.approx(100), "rotated boxes", {})

    def test_of_boxes_turned_otherwise(self, tmp_path):
        found = evaluate(self.model(0.0), *annotated(tmp_path, segmentation=self.corners(0.3)))
        assert 0 < found.ap < 100
        assert found.ap50 == pytest.approx(100)

    def test_a_rotation_among_the_attributes(self, tmp_path):
        data = annotated(tmp_path, attributes={"rotation": math.degrees(0.3), "occluded": False})
        assert evaluate(self.model(0.3), *data).ap == pytest.approx(100)

    def test_upright_boxes_are_refused_before_the_work(self, tmp_path):
        truth = GroundTruth.load(*annotated(tmp_path))
        with pytest.raises(DataError, match="its boxes are rotated, and those of the annotations are not"):
            check_measurable(self.model(0.3), truth, Settings())

    def test_some_upright_boxes_are_told(self, tmp_path):
        data = annotated(tmp_path, segmentation=lambda entry: self.corners(0.0) if entry["image_id"] == 100 else [])
        found = evaluate(self.model(0.0), *data)
        assert (found.ap, found.remarks) == (pytest.approx(100), ("1 of 2 objects have an upright box only",))

    def test_labels_of_yolo(self, tmp_path):
        _, images = write_coco(tmp_path, TWO, {1: "person", 3: "car"})
        line = " ".join(str(value / 64) for value in self.corners(0.3)[0])
        for name in ("a", "b"):
            (images / f"{name}.txt").write_text(f"1 {line}\n")
        (tmp_path / "data.yaml").write_text("val: images\nnames: [person, car]\n")
        assert evaluate(self.model(0.3), tmp_path / "data.yaml").ap == pytest.approx(100)
