from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import classifier, feed, nms_tables, run, separate, v5, v5_raw, v7_rows, v8, v10, with_metadata
from hypothesis import given
from hypothesis import strategies as st
from tables import BOX, CELLS, SIZE, detector, table_of

from onnxq.errors import ModelError
from onnxq.yolo.decode import class_count, decode, find_objects
from onnxq.yolo.detections import Detections
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.families import raw_grids
from onnxq.yolo.nms import suppress


def decoded(table: np.ndarray, known: Detector, confidence: float = 0.01) -> Detections:
    """Of the only output of a model for one picture."""
    return decode({"out": table[np.newaxis]}, known, confidence)


class TestDecode:
    @pytest.mark.parametrize("family", ["v5", "v8", "yolox", "yolox-raw"])
    def test_boxes_come_back(self, family: str) -> None:
        boxes = [(8, 16, 32, 32, 0.6, 1), (1, 2, 50, 60, 0.3, 0), (5, 5, 7, 6, 0.001, 2)]
        found = decoded(table_of(boxes, family, 3), detector(family))
        np.testing.assert_allclose(found.boxes, [box[:4] for box in boxes[:2]], atol=1e-4)
        np.testing.assert_allclose(found.scores, [0.6, 0.3], rtol=1e-6)
        np.testing.assert_array_equal(found.labels, [1, 0])
        assert (found.boxes.dtype, found.scores.dtype, found.extras.shape) == (np.float32, np.float32, (2, 0))

    def test_a_box_counts_once_for_each_class_above_the_threshold(self) -> None:
        table = table_of([(*BOX, 0.6, 1)], "v8", 3)
        table[4, -1] = 0.5
        found = decoded(table, detector("v8"))
        np.testing.assert_allclose(found.boxes, [BOX, BOX])
        assert sorted(zip(found.labels.tolist(), found.scores.tolist())) == [(0, 0.5), (1, pytest.approx(0.6))]

    def test_mask_columns_are_no_classes(self) -> None:
        table = np.concatenate([table_of([(*BOX, 0.6, 1)], "v8", 3), np.full((32, CELLS), 9, np.float32)])
        np.testing.assert_allclose(decoded(table, detector("v8", names=3)).scores, [0.6])

    def test_end2end(self) -> None:
        table = np.array([[1, 2, 3, 4, 0.5, 7], [0, 0, 0, 0, 0, 0]], np.float32)
        found = decoded(table, detector("end2end"))
        assert (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()) == ([[1, 2, 3, 4]], [0.5], [7])

    def test_sizes_beyond_measure_stay_finite(self) -> None:
        table = table_of([(*BOX, 0.6, 1)], "yolox-raw", 3)
        table[-1, 2:4] = 1000
        assert np.isfinite(decoded(table, detector("yolox-raw")).boxes).all()


def grids(
    box: tuple[float, ...], score: float, label: int, anchor: tuple[float, float], stride: int
) -> list[np.ndarray]:
    """Raw outputs of three classes, (1, 3, H, W, 8) for strides 8, 16 and 32, with one box, on the second anchor."""
    tables = [np.full((1, 3, SIZE[0] // s, SIZE[1] // s, 8), -20, np.float32) for s in (8, 16, 32)]
    x, y, width, height = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    column, row = int(x // stride), int(y // stride)
    shares = [
        (x / stride - column + 0.5) / 2, (y / stride - row + 0.5) / 2,
        (width / anchor[0]) ** 0.5 / 2, (height / anchor[1]) ** 0.5 / 2, 0.8, *[1e-6] * 3,
    ]  # fmt: skip
    shares[5 + label] = score / 0.8
    tables[(8, 16, 32).index(stride)][0, 1, row, column] = np.log(np.array(shares) / (1 - np.array(shares)))
    return tables


THREE = ("a", "b", "c")


class TestRawGrids:
    BOX = (9, 20, 31, 47)

    @pytest.mark.parametrize("activated", [False, True])
    @pytest.mark.parametrize("flat", [False, True])
    @pytest.mark.parametrize(
        ("family", "stride", "anchor"),
        [("v5-raw", 8, (16, 30)), ("v5-raw", 16, (62, 45)), ("v7-raw", 8, (19, 36)), ("v7-raw", 32, (192, 243))],
    )
    def test_boxes_come_back(
        self, family: str, stride: int, anchor: tuple[float, float], flat: bool, activated: bool
    ) -> None:
        tables = grids(self.BOX, 0.6, 2, anchor, stride)
        if flat:
            tables = [table.transpose(0, 1, 4, 2, 3).reshape(1, 24, *table.shape[2:4]) for table in tables]
        if activated:
            tables = [1 / (1 + np.exp(-table)) for table in tables]
        known = detector(family, outputs=THREE, activated=activated)
        found = decode(dict(zip(THREE, tables)), known, 0.1)
        np.testing.assert_allclose(found.boxes, [self.BOX], atol=1e-3)
        assert (found.scores.tolist(), found.labels.tolist()) == ([pytest.approx(0.6)], [2])

    def test_two_strides_are_those_of_the_tiny_model(self) -> None:
        tables = grids(self.BOX, 0.6, 2, (135, 169), 32)[1:]
        found = decode(dict(zip(THREE, tables)), detector("v5-raw", outputs=THREE[:2]), 0.1)
        np.testing.assert_allclose(found.boxes, [self.BOX], atol=1e-3)

    def test_no_anchors_are_known_for_two_strides_of_v7(self) -> None:
        tables = grids(self.BOX, 0.6, 2, (10, 10), 32)[1:]
        with pytest.raises(ModelError, match="family v7-raw has no anchors for 2 outputs: give another --family"):
            decode(dict(zip(THREE, tables)), detector("v7-raw", outputs=THREE[:2]), 0.1)

    def test_a_graph_with_a_decode_gives_the_same_boxes_as_the_raw_one(self) -> None:
        whole, raw = v5(), v5_raw()
        image = feed(whole)
        expected = decode(run(whole, image), detect(whole), 0.1)
        known = detect(raw)
        anchors = tuple(tuple(s * side for side in (1, 2, 2, 1, 2, 2)) for s in (8, 16, 32))  # of the small graph
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(raw_grids._V5_ANCHORS, 3, anchors)
            found = decode(run(raw, image), known, 0.1)
        assert len(found) > 20
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)


class TestOtherLayouts:
    @pytest.mark.parametrize("classes_first", [False, True])
    def test_boxes_and_scores_apart(self, classes_first: bool) -> None:
        boxes, scores = np.zeros((1, CELLS, 4), np.float32), np.zeros((1, CELLS, 3), np.float32)
        boxes[0, 7], scores[0, 7] = BOX, (0.1, 0.7, 0.3)
        known = detector("separate", outputs=("boxes", "scores"))
        found = decode({"boxes": boxes, "scores": scores.swapaxes(1, 2) if classes_first else scores}, known, 0.2)
        assert (found.boxes.tolist(), found.labels.tolist()) == ([list(BOX)] * 2, [1, 2])
        assert found.scores.tolist() == pytest.approx([0.7, 0.3])

    @pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 6, 5]])
    def test_rows_of_a_whole_batch(self, order: list[int]) -> None:
        rows = np.array([[0, *BOX, 2, 0.9], [1, *BOX, 0, 0.8], [1, 0, 0, 5, 5, 1, 0.1]], np.float32)[:, order]
        known = detector("nms-rows")
        first, second = (decode({"out": rows}, known, 0.2, picture) for picture in (0, 1))
        assert (first.boxes.tolist(), first.labels.tolist()) == ([list(BOX)], [2])
        assert (second.labels.tolist(), second.scores.tolist()) == ([0], [pytest.approx(0.8)])
        assert len(decode({"out": rows[:0]}, known, 0.2)) == 0

    def test_rows_of_a_batch_and_how_many_each_picture_has(self) -> None:
        outputs = {
            "counts": np.array([2, 1], np.int32),
            "rows": np.array([[2, 0.9, *BOX], [1, 0.1, *BOX], [5, 0.8, *BOX]], np.float32),
        }
        known = detector("nms-counted", outputs=("counts", "rows"))
        first, second = (decode(outputs, known, 0.2, picture) for picture in (0, 1))
        assert (first.boxes.tolist(), first.labels.tolist(), first.scores.tolist()) == (
            [list(BOX)], [2], [pytest.approx(0.9)],
        )  # fmt: skip
        assert second.labels.tolist() == [5]
        nothing = {"counts": np.zeros(1, np.int32), "rows": np.full((1, 6), -1, np.float32)}
        assert len(decode(nothing, known, 0.2)) == 0

    def test_finished_boxes_are_found_best_first(self) -> None:
        table = np.array([[*BOX, 0.5, 7], [*BOX, 0.9, 7], [*BOX, 0.01, 7]], np.float32)
        found = find_objects({"out": table[np.newaxis]}, detector("end2end"), 0.2, 0.5)
        assert found.scores.tolist() == pytest.approx([0.9, 0.5])

    def test_of_tables_of_nms_only_so_many_count(self) -> None:
        known = detector("nms-tables", outputs=("count", "boxes", "scores", "labels"))
        outputs = {
            "count": np.array([[2]], np.int32),
            "boxes": np.tile(np.array(BOX, np.float32), (1, 4, 1)),
            "scores": np.array([[0.9, 0.1, 0.8, 0.8]], np.float32),
            "labels": np.array([[5, 6, 7, 8]], np.int32),
        }
        found = decode(outputs, known, 0.2)
        assert (found.boxes.tolist(), found.labels.tolist(), found.boxes.dtype) == ([list(BOX)], [5], np.float32)

    @pytest.mark.parametrize("build", [v5_raw, v7_rows, separate, nms_tables, classifier, v8, v10])
    def test_a_number_of_classes_is_told_where_it_shows(self, build: Callable[[], onnx.ModelProto]) -> None:
        model = build()
        shapes = {name: array.shape for name, array in run(model).items()}
        finished = build in (v7_rows, nms_tables, v10)
        assert class_count(detect(model), shapes) == (None if finished else 3)
        assert class_count(detect(with_metadata(model)), shapes) == 3

    def test_a_finished_table_is_as_good_as_what_it_was_made_of(self) -> None:
        """Both small graphs have one seed, and so the same boxes."""
        image = feed(v8())
        candidates = decode(run(v8(), image), detect(v8()), 0.0)
        tables, rows = (find_objects(run(build(), image), detect(build()), 0.0, 0.5) for build in (nms_tables, v10))
        best = np.sort(candidates.scores)[::-1]
        np.testing.assert_allclose(tables.scores, best[:4], rtol=1e-5)
        np.testing.assert_allclose(rows.scores, best[:5], rtol=1e-5)
        np.testing.assert_allclose(tables.boxes, rows.boxes[:4])


class TestTasks:
    def test_what_follows_the_classes_comes_along(self) -> None:
        table = table_of([(*BOX, 0.6, 1), (*BOX, 0.01, 1)], "v8", 3)
        table = np.concatenate([table, np.arange(2 * CELLS, dtype=np.float32).reshape(2, CELLS)])
        protos = np.zeros((1, 2, 16, 16), np.float32)
        for known in (detector("v8", names=3), detector("v8", task="segment", prototypes="protos")):
            found = decode({"out": table[np.newaxis], "protos": protos}, known, 0.2)
            assert found.labels.tolist() == [1]
            assert found.extras.tolist() == [[CELLS - 2, 2 * CELLS - 2]]

    @pytest.mark.parametrize(
        ("head", "extras"),
        [({"task": "pose", "keypoints": (2, 3)}, 6), ({"task": "pose", "keypoints": (2, 2)}, 4), ({"task": "obb"}, 1)],
    )
    def test_columns_of_a_task_are_no_classes(self, head: dict[str, object], extras: int) -> None:
        assert class_count(detector("v8", **head), {"out": (1, 4 + 3 + extras, CELLS)}) == 3
        with pytest.raises(ModelError, match=r"output out \(1, \d+, 84\) is not one of family v8"):
            class_count(detector("v8", **head), {"out": (1, 4 + extras, CELLS)})

    def test_rotated_boxes_of_a_finished_table_begin_with_their_centre(self) -> None:
        row = np.array([[20, 24, 24, 16, 0.9, 2, 0.5]], np.float32)
        found = decoded(row, detector("end2end", task="obb"))
        np.testing.assert_allclose(found.rotated(), [[8, 16, 32, 32, 0.5]])

    def test_rotated_boxes_are_duplicates_by_what_they_cover_when_rotated(self) -> None:
        flat, upright = (20, 30, 40, 34), (28, 22, 32, 42)  # long and thin, across each other
        table = np.zeros((84, 8), np.float32)
        for row, (box, score, angle) in enumerate([(flat, 0.9, 0), (flat, 0.8, np.pi / 2), (upright, 0.7, np.pi / 2)]):
            table[row] = (*table_of([(*box, score, 1)], "v8", 3)[:, -1], angle)
        known = detector("v8", task="obb")
        found = find_objects({"out": table.T[np.newaxis]}, known, 0.1, 0.5)
        assert found.scores.tolist() == pytest.approx([0.9, 0.8])  # the third is where the first is
        other = find_objects({"out": table.T[np.newaxis]}, detector("v8", names=3), 0.1, 0.5)
        assert other.scores.tolist() == pytest.approx([0.9, 0.7])  # as straight boxes, the second is

    def test_rotated_boxes_that_reach_far_are_duplicates_too(self) -> None:
        table = np.zeros((84, 8), np.float32)
        for row, shift in enumerate((0, 12, 24)):
            table[row] = (*table_of([(4 + shift, 30, 44 + shift, 34, 0.9 - 0.1 * row, 1)], "v8", 3)[:, -1], 0)
        found = find_objects({"out": table.T[np.newaxis]}, detector("v8", task="obb"), 0.1, 0.5)
        assert found.scores.tolist() == pytest.approx([0.9, 0.7])  # 28 of 52 in common, and then 16 of 64

    def test_rotated_boxes_of_other_classes_are_no_duplicates(self) -> None:
        table = np.zeros((84, 8), np.float32)
        for row, label in enumerate((0, 1, 1)):
            table[row] = (*table_of([(*BOX, 0.9 - 0.1 * row, label)], "v8", 3)[:, -1], 1.0)
        found = find_objects({"out": table.T[np.newaxis]}, detector("v8", task="obb"), 0.1, 0.5)
        assert found.labels.tolist() == [0, 1]


class TestSuppress:
    @staticmethod
    def slow(boxes: np.ndarray, confidences: np.ndarray, labels: np.ndarray, iou: float) -> list[int]:
        def overlap(a: np.ndarray, b: np.ndarray) -> float:
            width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
            height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
            return width * height / union if union else 0.0

        kept: list[int] = []
        for here in sorted(range(len(boxes)), key=lambda index: -confidences[index]):
            if all(labels[here] != labels[k] or overlap(boxes[here], boxes[k]) <= iou for k in kept):
                kept.append(here)
        return kept

    @given(st.data())
    def test_as_a_plain_loop_does(self, data: st.DataObject) -> None:
        corner, side = st.integers(0, 12), st.integers(0, 12)
        rows = data.draw(st.lists(st.tuples(corner, corner, side, side, st.integers(0, 2)), max_size=30))
        order = data.draw(st.permutations(range(len(rows))))
        boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], np.float32).reshape(-1, 4)
        labels = np.array([row[4] for row in rows], np.intp)
        confidences = (np.array(order, np.float32) + 1) / 100
        assert suppress(boxes, confidences, labels, 0.5).tolist() == self.slow(boxes, confidences, labels, 0.5)

    def test_at_most_so_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        boxes = np.arange(10, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 5, 5], np.float32)
        confidences, labels = np.linspace(0.1, 0.9, 10, dtype=np.float32), np.arange(10) % 2
        assert suppress(boxes, confidences, labels, 0.5).tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
        monkeypatch.setattr("onnxq.yolo.nms.MOST_DETECTIONS", 3)
        assert suppress(boxes, confidences, labels, 0.5).tolist() == [9, 8, 7]
        monkeypatch.setattr("onnxq.yolo.nms.MOST_CANDIDATES", 2)
        assert suppress(boxes, confidences, labels, 0.5).tolist() == [9, 8]

    def test_a_box_on_the_threshold_stays(self) -> None:
        boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2]], np.float32)
        kept = suppress(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.intp), 0.5)
        assert kept.tolist() == [0, 1]
