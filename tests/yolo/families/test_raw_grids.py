"""Heads with anchors whose decode is not in the graph."""

import numpy as np
import pytest
from graphs import Net, feed, run, v5, v5_raw, with_constant_nodes
from tables import SIZE, declared, detector, layout_of

from onnxq.errors import ModelError
from onnxq.yolo.decode import decode
from onnxq.yolo.detector import detect
from onnxq.yolo.families import raw_grids
from onnxq.yolo.output_layout import UNKNOWN


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


GRIDS = ((1, 3, 8, 8, 7), (1, 3, 4, 4, 7), (1, 3, 2, 2, 7))


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


def test_raw_grids_come_in_the_order_of_their_strides():
    assert layout_of(declared(*GRIDS)) == ("v5-raw", "detect", ("out0", "out1", "out2"))
    assert layout_of(declared(*GRIDS[::-1])) == ("v5-raw", "detect", ("out2", "out1", "out0"))
    assert layout_of(declared(*GRIDS[1:])) == ("v5-raw", "detect", ("out0", "out1"))


@pytest.mark.parametrize(
    ("shapes", "last"),
    [
        (GRIDS, "Exp"),  # part of a decode
        ((*GRIDS[:2], (1, 3, 2, 2, 8)), "Sigmoid"),
        (GRIDS[:2], "Sigmoid"),  # of strides 8 and 16
        (((1, 3, 8, 8, 5), (1, 3, 4, 4, 5), (1, 3, 2, 2, 5)), "Sigmoid"),  # no classes
        (((1, 2, 8, 8, 7), (1, 2, 4, 4, 7), (1, 2, 2, 2, 7)), "Sigmoid"),
        (((1, 22, 8, 8), (1, 22, 4, 4), (1, 22, 2, 2)), "Sigmoid"),
    ],
)
def test_no_raw_grids(shapes, last):
    assert layout_of(declared(*shapes, last=last)) == (UNKNOWN, "detect", ())


def test_scales_that_several_layers_give_are_no_raw_grids():
    net = Net()
    scales = [net.concat(net.conv(x, 16), net.conv(x, 8)) for x in net.pyramid()]
    assert layout_of(net.model(*scales)) == (UNKNOWN, "detect", ())


def test_constants_in_nodes_are_no_arithmetic():
    assert detect(with_constant_nodes(v5_raw(cells=True))).outputs == detect(v5_raw(cells=True)).outputs


def test_raw_grids_say_whether_they_are_behind_their_sigmoid_and_that_anchors_are_missing():
    plain, activated = detect(v5_raw()).outputs, detect(v5_raw(cells=True, activated=True)).outputs
    assert (plain.activated, activated.activated) == (False, True)
    assert "anchors" in plain.assumed
    assert plain.why_no_precision == plain.assumed
    given = detect(v5_raw(), family="v7-raw").outputs
    assert (given.family, given.assumed, given.why_no_precision) == ("v7-raw", "", "")
