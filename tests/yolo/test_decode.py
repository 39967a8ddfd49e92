"""The part of the decode that all families share: the number of classes, and objects without duplicates."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import classifier, feed, nms_tables, run, separate, v5_raw, v7_rows, v8, v10, with_metadata
from tables import BOX, detector, table_of

from onnxq.errors import ModelError
from onnxq.yolo.decode import class_count, decode, find_objects, with_unnamed
from onnxq.yolo.detector import detect


@pytest.mark.parametrize("build", [v5_raw, v7_rows, separate, nms_tables, classifier, v8, v10])
def test_a_number_of_classes_is_told_where_it_shows(build: Callable[[], onnx.ModelProto]) -> None:
    model = build()
    shapes = {name: array.shape for name, array in run(model).items()}
    finished = build in (v7_rows, nms_tables, v10)
    assert class_count(detect(model), shapes) == (None if finished else 3)
    assert class_count(detect(with_metadata(model)), shapes) == 3


def test_a_finished_table_is_as_good_as_what_it_was_made_of() -> None:
    """Both small graphs have one seed, so they have the same boxes."""
    image = feed(v8())
    candidates = decode(run(v8(), image), detect(v8()), 0.0)
    tables, rows = (find_objects(run(build(), image), detect(build()), 0.0, 0.5) for build in (nms_tables, v10))
    best = np.sort(candidates.scores)[::-1]
    np.testing.assert_allclose(tables.scores, best[:4], rtol=1e-5)
    np.testing.assert_allclose(rows.scores, best[:5], rtol=1e-5)
    np.testing.assert_allclose(tables.boxes, rows.boxes[:4])


def test_duplicates_are_removed_unless_the_model_does_it():
    twice = [(*BOX, 0.9, 1), (*BOX, 0.6, 1)]
    assert len(decode({"out": table_of(twice, "v8", 3)[np.newaxis]}, detector("v8"), 0.1)) == 2
    assert len(find_objects({"out": table_of(twice, "v8", 3)[np.newaxis]}, detector("v8"), 0.1, 0.5)) == 1
    finished = np.array([[*row] for row in twice], np.float32)
    assert len(find_objects({"out": finished[np.newaxis]}, detector("end2end"), 0.1, 0.5)) == 2


@pytest.mark.parametrize("shape", [(1, 4), (1,)])
def test_outputs_of_another_rank_than_stated_are_named(shape):
    with pytest.raises(ModelError, match=r"outputs of these shapes cannot be read as v8 at \d+x\d+: 'out' \(1"):
        decode({"out": np.zeros(shape, np.float32)}, detector("v8"), 0.1)


def test_each_image_of_a_batch_has_its_own():
    batch = np.stack([table_of([(*BOX, score, 1)], "v8", 3) for score in (0.9, 0.6)])
    found = [find_objects({"out": batch}, detector("v8"), 0.1, 0.5, index) for index in (0, 1)]
    assert [each.scores.tolist() for each in found] == [[pytest.approx(0.9)], [pytest.approx(0.6)]]


@pytest.mark.parametrize(("family", "axis"), [("v8", 0), ("v5", 1)])
def test_scores_without_a_name_are_classes(family, axis):
    table = table_of([(*BOX, 0.9, 2)], family, 5)
    named = with_unnamed(detector(family, names=3), {"out": table[np.newaxis]})
    assert named.names == ("class 0", "class 1", "class 2", "", "")
    assert class_count(named, {"out": (1, *table.shape)}) == 5
    np.moveaxis(table, axis, 0)[-1] = 70  # a column of px, as that of a keypoint
    assert with_unnamed(detector(family, names=3), {"out": table[np.newaxis]}).names == named.names[:3]
    assert with_unnamed(detector(family), {"out": table[np.newaxis]}).names == ()


def test_at_most_so_many():
    rows = [(8 * n, 0, 8 * n + 4, 8, 0.9 - n / 100, 0) for n in range(6)]
    table = {"out": table_of(rows, "v8", 1)[np.newaxis]}
    assert [len(find_objects(table, detector("v8"), 0.1, 0.5, most=most)) for most in (4, 9)] == [4, 6]
    finished = {"out": np.array([rows], np.float32)}
    assert len(find_objects(finished, detector("end2end"), 0.1, 0.5, most=2)) == 2
