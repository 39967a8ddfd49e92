import numpy as np
import pytest
from pycocotools import mask

from onnxq.evaluation.scoring.masks import mask_of, masks_of
from onnxq.yolo.detections import Detections
from onnxq.yolo.preprocess import Letterbox

SIZE = (40, 60)

BOX = {"bbox": [10, 5, 20, 30]}


def picture(rle):
    return mask.decode(rle).astype(bool)


class TestMaskOf:
    @pytest.mark.parametrize(
        "outline",
        [
            [[10, 5, 30, 5, 30, 35, 10, 35]],
            [10, 5, 30, 5, 30, 35, 10, 35],
            [[10, 5, 30, 5, 30, 35], [10, 5, 30, 35, 10, 35]],
            None,
            [],
            [[1, 2]],
            {"size": [10, 10], "counts": [100]},
        ],
    )
    def test_outlines_and_boxes(self, outline):
        found = picture(mask_of({**BOX, "segmentation": outline}, SIZE))
        assert found.shape == SIZE
        assert found[6:34, 11:29].mean() > 0.98
        assert not found[:4].any()
        assert found.sum() == pytest.approx(600, abs=20)

    def test_run_lengths(self):
        wanted = np.zeros(SIZE, np.uint8, order="F")
        wanted[3:9, 5:50] = 1
        rle = mask.encode(wanted)
        assert (picture(mask_of({**BOX, "segmentation": rle | {"size": list(SIZE)}}, SIZE)) == wanted).all()


@pytest.mark.parametrize(
    ("placed", "size"),
    [(Letterbox(1.0, 0, 0), (64, 64)), (Letterbox(0.5, 0, 16), (64, 128)), (Letterbox(2.0, 8, 0), (32, 24))],
)
def test_masks_of_detections_lie_where_their_prototypes_are(placed, size):
    across = np.tile(np.arange(16) + 0.5, (16, 1))
    half = (32 - 4 * across)[np.newaxis]  # above 0 left of the middle of the input
    canvas = (64, 64)
    box = np.array([[12, 20, 52, 44]], np.float32)
    one = np.ones(1, np.float32)
    found = picture(masks_of(Detections(box, one, np.zeros(1, np.intp), one[:, None]), half, placed, canvas, size)[0])
    left, top, middle, bottom = np.rint(placed.undo(np.array([[12, 20, 32, 44]], np.float32)))[0].astype(int)
    wanted = np.zeros(size, bool)
    wanted[top:bottom, left:middle] = True
    assert (found != wanted).sum() <= bottom - top
    assert found.shape == size


def test_no_detections():
    none = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.intp), np.zeros((0, 2), np.float32)
    )
    assert masks_of(none, np.zeros((2, 8, 8), np.float32), Letterbox(1.0, 0, 0), (32, 32), (32, 32)) == []
