import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

from onnxq import decode as decode_module
from onnxq.coco import GroundTruth
from onnxq.decode import decode, suppress
from onnxq.detector import Detector
from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.evaluate import Scores, Settings, evaluate, main
from onnxq.images import YOLO

DATA = Path(os.environ.get("ONNXQ_DATA", Path(__file__).parents[2] / "shared"))
SIZE = (64, 64)
CELLS = 84  # 64 + 16 + 4 of strides 8, 16 and 32

# Models


def build(nodes: list[onnx.NodeProto], shape: list[object], image: list[object], **metadata: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, metadata)
    return made


def constant(name: str, value: object, dtype: type = np.float32) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, dtype)))


def always(table: np.ndarray, tail: str = "", batch: int = 1, **metadata: str) -> onnx.ModelProto:
    """A model that gives the same table, float32 (rows, columns) or (batch, rows, columns), for any picture.

    Args:
        tail: "raw": a layer makes the table; an operator that leaves it as it is stands behind; "": addition does.
    """
    nodes = [
        constant("zero", 0),
        constant("table", table if table.ndim == 3 else table[np.newaxis]),
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    if tail == "raw":
        nodes += [
            constant("one", [[1]]),
            constant("shape", [1, *table.shape], np.int64),
            constant("flat", table.reshape(1, -1)),
            helper.make_node("Add", ["one", "nothing"], ["column"]),
            helper.make_node("MatMul", ["column", "flat"], ["row"]),
            helper.make_node("Reshape", ["row", "shape"], ["out"]),
        ]
    elif tail == "exp":
        nodes += [
            helper.make_node("Exp", ["nothing"], ["unity"]),
            helper.make_node("Mul", ["table", "unity"], ["out"]),
        ]
    else:
        nodes.append(helper.make_node("Add", ["table", "nothing"], ["out"]))
    return build(nodes, [batch, *table.shape[-2:]], [batch, 3, *SIZE], **metadata)


def bright_rectangle(image: list[object], **metadata: str) -> onnx.ModelProto:
    """A model that really looks: end2end, it boxes what is brighter than a half, with score 0.9 and class 0."""
    nodes = [
        constant("half", 0.5),
        constant("one", 1),
        constant("nine", 0.9),
        constant("zero", 0),
        constant("middle", [1], np.int64),
        helper.make_node("Greater", ["images", "half"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["mask"], to=TensorProto.FLOAT),
    ]
    for axis, first, last in ((2, "x1", "x2"), (3, "y1", "y2")):
        nodes += [
            helper.make_node("ReduceMax", ["mask"], [f"line{axis}"], axes=[1, axis], keepdims=0),
            helper.make_node("ArgMax", [f"line{axis}"], [f"{first}i"], axis=1),
            helper.make_node("ArgMax", [f"line{axis}"], [f"{last}i"], axis=1, select_last_index=1),
            helper.make_node("Cast", [f"{first}i"], [first], to=TensorProto.FLOAT),
            helper.make_node("Cast", [f"{last}i"], [f"{last}f"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"{last}f", "one"], [last]),
        ]
    nodes += [
        helper.make_node("Mul", ["x1", "zero"], ["class"]),
        helper.make_node("Add", ["class", "nine"], ["score"]),
        helper.make_node("Concat", ["x1", "y1", "x2", "y2", "score", "class"], ["rows"], axis=1),
        helper.make_node("Unsqueeze", ["rows", "middle"], ["out"]),
    ]
    return build(nodes, [image[0], 1, 6], image, **metadata)


def table_of(boxes: list[tuple[float, ...]], family: str, classes: int, objectness: float = 0.8) -> np.ndarray:
    """A model's output that has these boxes, (x1, y1, x2, y2, score, class) in px of the input, in its last rows."""
    first = 4 if family == "v8" else 5
    rows = {"v5": 3 * CELLS}.get(family, CELLS)
    table = np.zeros((rows, first + classes), np.float32)
    for row, (x1, y1, x2, y2, score, label) in enumerate(boxes, rows - len(boxes)):
        table[row, :4] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        if first == 5:
            table[row, 4] = objectness
            score /= objectness
        table[row, first + int(label)] = score
    if family == "yolox-raw":
        cells = [(x, y, s) for s in (8, 16, 32) for y in range(64 // s) for x in range(64 // s)]
        column, line, stride = np.array(cells, np.float32).T
        table[:, 0], table[:, 1] = table[:, 0] / stride - column, table[:, 1] / stride - line
        with np.errstate(divide="ignore"):
            table[:, 2:4] = np.maximum(np.log(table[:, 2:4] / stride[:, None]), -50)
    return table.T if family == "v8" else table


# Data

Boxes = list[tuple[float, float, float, float, int]]  # x, y, width, height in px, category id


def write_coco(
    folder: Path, pictures: dict[str, tuple[tuple[int, int], Boxes]], categories: dict[int, str], **extra: object
) -> tuple[Path, Path]:
    """Pictures of (width, height) with white rectangles, and their annotations."""
    dataset: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    (folder / "images").mkdir()
    for image_id, (name, (size, boxes)) in enumerate(pictures.items(), 100):
        picture = Image.new("RGB", size)
        draw = ImageDraw.Draw(picture)
        for x, y, width, height, category in boxes:
            draw.rectangle((x, y, x + width - 1, y + height - 1), (255, 255, 255))
            dataset["annotations"].append({
                "id": len(dataset["annotations"]), "image_id": image_id, "category_id": category,
                "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0, **extra,
            })  # fmt: skip
        picture.save(folder / "images" / name)
        dataset["images"].append({"id": image_id, "file_name": name})
    dataset["categories"] = [{"id": number, "name": name} for number, name in categories.items()]
    (folder / "annotations.json").write_text(json.dumps(dataset))
    return folder / "annotations.json", folder / "images"


TWO = {"a.png": ((64, 64), [(8, 16, 24, 16, 3)]), "b.png": ((64, 64), [(8, 16, 24, 16, 3)])}
BOX = (8, 16, 32, 32)  # the same, xyxy


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two pictures with one object each, at `BOX`, of the second of two categories."""
    return write_coco(tmp_path, TWO, {1: "person", 3: "car"})


@pytest.fixture
def finds_all(tmp_path: Path) -> Path:
    """A model file that scores 100 on `two`."""
    path = tmp_path / "all.onnx"
    onnx.save(always(table_of([(*BOX, 0.9, 1)], "v8", 2)), path)
    return path


def scores(model: onnx.ModelProto | Path, data: tuple[Path, Path], **settings: object) -> Scores:
    return evaluate(model, *data, settings=Settings(**settings))


class TestDecode:
    @pytest.mark.parametrize("family", ["v5", "v8", "yolox", "yolox-raw"])
    def test_boxes_come_back(self, family: str) -> None:
        boxes = [(8, 16, 32, 32, 0.6, 1), (1, 2, 50, 60, 0.3, 0), (5, 5, 7, 6, 0.001, 2)]
        detector = Detector("images", SIZE, family, "out", YOLO, (), "")
        found, confidences, labels = decode(table_of(boxes, family, 3), detector, 0.01, 3)
        np.testing.assert_allclose(found, [box[:4] for box in boxes[:2]], atol=1e-4)
        np.testing.assert_allclose(confidences, [0.6, 0.3], rtol=1e-6)
        np.testing.assert_array_equal(labels, [1, 0])
        assert (found.dtype, confidences.dtype) == (np.float32, np.float32)

    def test_a_box_counts_once_for_each_class_above_the_threshold(self) -> None:
        table = table_of([(*BOX, 0.6, 1)], "v8", 3)
        table[4, -1] = 0.5
        found, confidences, labels = decode(table, Detector("images", SIZE, "v8", "out", YOLO, (), ""), 0.01, 3)
        np.testing.assert_allclose(found, [BOX, BOX])
        assert sorted(zip(labels.tolist(), confidences.tolist())) == [(0, 0.5), (1, pytest.approx(0.6))]

    def test_mask_columns_are_no_classes(self) -> None:
        table = np.concatenate([table_of([(*BOX, 0.6, 1)], "v8", 3), np.full((32, CELLS), 9, np.float32)])
        _, confidences, _ = decode(table, Detector("images", SIZE, "v8", "out", YOLO, (), ""), 0.01, 3)
        np.testing.assert_allclose(confidences, [0.6])

    def test_end2end(self) -> None:
        table = np.array([[1, 2, 3, 4, 0.5, 7], [0, 0, 0, 0, 0, 0]], np.float32)
        found, confidences, labels = decode(table, Detector("images", SIZE, "end2end", "o", YOLO, (), ""), 0.01, None)
        assert (found.tolist(), confidences.tolist(), labels.tolist()) == ([[1, 2, 3, 4]], [0.5], [7])

    def test_sizes_beyond_measure_stay_finite(self) -> None:
        table = table_of([(*BOX, 0.6, 1)], "yolox-raw", 3)
        table[-1, 2:4] = 1000
        found, _, _ = decode(table, Detector("images", SIZE, "yolox-raw", "out", YOLO, (), ""), 0.01, 3)
        assert np.isfinite(found).all()


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
        monkeypatch.setattr(decode_module, "MOST_DETECTIONS", 3)
        assert suppress(boxes, confidences, labels, 0.5).tolist() == [9, 8, 7]
        monkeypatch.setattr(decode_module, "MOST_CANDIDATES", 2)
        assert suppress(boxes, confidences, labels, 0.5).tolist() == [9, 8]

    def test_a_box_on_the_threshold_stays(self) -> None:
        boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2]], np.float32)
        kept = suppress(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.intp), 0.5)
        assert kept.tolist() == [0, 1]


class TestAveragePrecision:
    @pytest.mark.parametrize(
        ("family", "tail"), [("v5", ""), ("v8", ""), ("yolox", "exp"), ("yolox-raw", "raw")]
    )
    def test_of_every_family(self, two: tuple[Path, Path], family: str, tail: str) -> None:
        found = scores(always(table_of([(*BOX, 0.9, 1)], family, 2), tail), two)
        assert (found.detector.family, found.images) == (family, 2)
        assert (found.ap, found.ap50, found.ap75, found.ap_small) == pytest.approx((100, 100, 100, 100))
        assert math.isnan(found.ap_medium)
        assert math.isnan(found.ap_large)

    def test_v6_with_one_box_per_cell(self, two: tuple[Path, Path]) -> None:
        found = scores(always(table_of([(*BOX, 0.9, 1)], "yolox", 2)), two)
        assert (found.detector.family, found.ap) == ("v5", pytest.approx(100))

    def test_falls_when_boxes_are_shifted(self, two: tuple[Path, Path]) -> None:
        shifted = (BOX[0] + 4, BOX[1], BOX[2] + 4, BOX[3])  # IoU 20 / 28 = 0.71: right at 5 of COCO's 10 thresholds
        found = scores(always(table_of([(*shifted, 0.9, 1)], "v8", 2)), two)
        assert (found.ap, found.ap50, found.ap75) == pytest.approx((50, 100, 0))

    def test_falls_with_a_better_scored_false_alarm(self, two: tuple[Path, Path]) -> None:
        found = scores(always(table_of([(40, 40, 60, 60, 0.95, 1), (*BOX, 0.9, 1)], "v8", 2)), two)
        assert found.ap == pytest.approx(50)

    def test_duplicates_go(self, two: tuple[Path, Path]) -> None:
        near = (BOX[0] + 2, *BOX[1:])  # IoU 22 / 24 = 0.92: right at 9 of 10 thresholds
        model = always(table_of([(*near, 0.95, 1), (*BOX, 0.9, 1)], "v8", 2))
        assert scores(model, two).ap == pytest.approx(90)
        # With all boxes left in, the tenth has two wrong, then two right: precision 2 / 4 at every recall.
        assert scores(model, two, iou=1.0).ap == pytest.approx(95)

    @pytest.mark.parametrize(
        ("canvas", "settings"),
        [
            ([1, 3, 64, 64], {}),
            ([1, 3, 64, 96], {}),
            (["n", 3, "h", "w"], {"image_size": (64, 64)}),
            ([2, 3, 64, 64], {}),
            ([1, 3, 64, 64], {"threads": 3}),
            ([1, 3, 64, 64], {"preprocess": "yolo"}),
        ],
    )
    def test_of_a_model_that_looks(self, tmp_path: Path, canvas: list[object], settings: dict[str, object]) -> None:
        pictures: dict[str, tuple[tuple[int, int], Boxes]] = {
            "same.png": ((64, 64), [(8, 16, 24, 16, 1)]),
            "wide.png": ((64, 32), [(0, 0, 10, 20, 1)]),
            "tall.png": ((32, 64), [(12, 24, 20, 40, 1)]),
            "small.png": ((32, 32), [(3, 5, 11, 13, 1)]),
            "tiny.png": ((16, 8), [(2, 1, 9, 6, 1)]),
        }
        data = write_coco(tmp_path, pictures, {1: "thing"})
        assert scores(bright_rectangle(canvas), data, **settings).ap == pytest.approx(100)

    def test_preprocess_is_obeyed(self, tmp_path: Path) -> None:
        data = write_coco(tmp_path, {"wide.png": ((64, 32), [(0, 0, 10, 20, 1)])}, {1: "thing"})
        # Undivided, the padding is brighter than a half as well.
        assert scores(bright_rectangle([1, 3, 64, 64]), data, preprocess="yolo-255").ap == pytest.approx(0)

    def test_of_a_batch_the_first_counts(self, two: tuple[Path, Path]) -> None:
        table = table_of([(*BOX, 0.9, 1)], "v8", 2)
        batch = np.stack([table, np.zeros_like(table), np.zeros_like(table)])
        assert scores(always(batch, batch=3), two).ap == pytest.approx(100)

    def test_boxes_are_clipped_to_the_picture(self, tmp_path: Path) -> None:
        data = write_coco(tmp_path, {"a.png": ((64, 64), [(0, 0, 24, 64, 1)])}, {1: "thing"})
        table = np.array([[-100, -100, 24, 200, 0.9, 0]], np.float32)
        assert scores(always(table), data).ap == pytest.approx(100)

    def test_nothing_found(self, two: tuple[Path, Path]) -> None:
        assert scores(always(table_of([(*BOX, 0.9, 1)], "v8", 2)), two, confidence=0.95).ap == 0

    def test_crowds_are_neither_missed_nor_false_alarms(self, tmp_path: Path) -> None:
        annotations, images = write_coco(tmp_path, TWO, {1: "person", 3: "car"})
        dataset = json.loads(annotations.read_text())
        dataset["annotations"].append({
            "id": 9, "image_id": 100, "category_id": 3, "bbox": [40, 40, 24, 24], "area": 576, "iscrowd": 1,
        })  # fmt: skip
        annotations.write_text(json.dumps(dataset))
        boxes = [(*BOX, 0.9, 1), (42, 42, 52, 52, 0.95, 1)]
        one = scores(always(table_of(boxes, "v8", 2)), (annotations, images), max_images=1)
        assert (one.ap, one.images) == (pytest.approx(100), 1)

    def test_area_and_iscrowd_may_be_left_out(self, two: tuple[Path, Path], finds_all: Path) -> None:
        dataset = json.loads(two[0].read_text())
        for entry in dataset["annotations"]:
            del entry["area"], entry["iscrowd"], entry["id"]
        two[0].write_text(json.dumps(dataset))
        assert scores(finds_all, two).ap_small == pytest.approx(100)

    def test_progress_is_told(self, two: tuple[Path, Path], finds_all: Path) -> None:
        told: list[tuple[str, int, int]] = []
        evaluate(str(finds_all), *map(str, two), progress=lambda *step: told.append(step))
        assert told == [("evaluating", 1, 2), ("evaluating", 2, 2)]

    def test_pycocotools_is_silent(
        self, two: tuple[Path, Path], finds_all: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        scores(finds_all, two)
        assert capfd.readouterr() == ("", "")


class TestCategories:
    def test_by_name(self, two: tuple[Path, Path]) -> None:
        swapped = always(table_of([(*BOX, 0.9, 0)], "v8", 2), names="{0: 'car', 1: 'person'}")
        assert scores(swapped, two).ap == pytest.approx(100)

    def test_by_name_of_a_few(self, two: tuple[Path, Path]) -> None:
        only = always(table_of([(*BOX, 0.9, 0)], "v8", 1), names="['car']")
        assert scores(only, two).ap == pytest.approx(100)

    def test_by_order_of_ids_when_names_differ(self, tmp_path: Path) -> None:
        data = write_coco(tmp_path, TWO, {3: "car", 1: "person"})
        foreign = always(table_of([(*BOX, 0.9, 1)], "v8", 2), names="['Mensch', 'Auto']")
        assert scores(foreign, data).ap == pytest.approx(100)

    def test_neither(self, two: tuple[Path, Path]) -> None:
        with pytest.raises(ConfigError, match="the model: has 3 classes, but the annotations have 2 categories"):
            scores(always(table_of([(*BOX, 0.9, 1)], "v8", 3)), two)

    def test_class_out_of_range(self, two: tuple[Path, Path]) -> None:
        with pytest.raises(ModelError, match="the model: finds class 2, but classes are 0 to 1"):
            scores(always(np.array([[*BOX, 0.9, 1], [*BOX, 0.9, 2]], np.float32)), two)


class TestModelErrors:
    def test_missing(self, two: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"none\.onnx"):
            scores(tmp_path / "none.onnx", two)

    def test_not_onnx(self, two: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"hello")
        with pytest.raises(ModelError, match=r"bad\.onnx"):
            scores(tmp_path / "bad.onnx", two)

    def test_not_recognised(self, two: tuple[Path, Path]) -> None:
        with pytest.raises(ModelError, match=r"the model: is not recognised \(outputs \(1, 9, 7\) .*: give --family"):
            scores(always(np.zeros((9, 7), np.float32)), two)

    @pytest.mark.parametrize(
        ("family", "table"),
        [("end2end", (9, 5)), ("v8", (4, 9)), ("v5", (9, 5)), ("yolox-raw", (252, 7))],
    )
    def test_given_family_does_not_fit(self, two: tuple[Path, Path], family: str, table: tuple[int, int]) -> None:
        message = rf"the model: output out \(1, {table[0]}, {table[1]}\) is not one of family {family}"
        with pytest.raises(ModelError, match=message):
            scores(always(np.zeros(table, np.float32)), two, family=family)

    def test_given_family_has_no_table(self, two: tuple[Path, Path]) -> None:
        flat = build([helper.make_node("Flatten", ["images"], ["out"])], [1, 12288], [1, 3, 64, 64])
        with pytest.raises(ModelError, match=r"output out \(1, 12288\) is not one of family v8"):
            scores(flat, two, family="v8")

    def test_cannot_be_loaded(self, two: tuple[Path, Path]) -> None:
        model = build([helper.make_node("Nonsense", ["images"], ["out"])], [1, 9, 84], [1, 3, 64, 64])
        with pytest.raises(ModelError, match=r"the model: onnxruntime cannot load the model: .*Nonsense"):
            scores(model, two)

    def test_cannot_be_run(self, two: tuple[Path, Path]) -> None:
        nodes = [constant("shape", [7, 11], np.int64), helper.make_node("Reshape", ["images", "shape"], ["out"])]
        with pytest.raises(ModelError, match="the model: onnxruntime cannot run the model: "):
            scores(build(nodes, [7, 11], ["n", 3, 64, 64]), two)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, two: tuple[Path, Path], value: float) -> None:
        table = table_of([(*BOX, 0.9, 1)], "v8", 2)
        table[3, 5] = value
        with pytest.raises(ModelError, match="the model: output out has values that are NaN or infinite"):
            scores(always(table), two)

    def test_size_unknown(self, two: tuple[Path, Path]) -> None:
        with pytest.raises(ConfigError, match=r"the model: .* dynamic, .*: give --image-size 640"):
            scores(bright_rectangle(["n", 3, "h", "w"]), two)


class TestDataErrors:
    def test_annotations_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
            GroundTruth.load(tmp_path / "none.json", tmp_path)

    @pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00"])
    def test_annotations_not_json(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.json: is not JSON: "):
            GroundTruth.load(tmp_path / "a.json", tmp_path)

    @pytest.mark.parametrize(
        ("content", "cause"),
        [
            ([], "list indices must be"),
            ({"images": [], "annotations": []}, "'categories' is missing"),
            ({"images": [{"id": 1}], "annotations": [], "categories": []}, "'file_name' is missing"),
            ({"images": [], "annotations": [{"bbox": [1, 2]}], "categories": []}, "not enough values"),
            ({"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}], "categories": []}, "'image_id' is missing"),
            ({"images": [], "annotations": [], "categories": [{"id": "a", "name": "b"}]}, "invalid literal"),
        ],
    )
    def test_annotations_of_another_kind(self, tmp_path: Path, content: object, cause: str) -> None:
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=rf"a\.json: is not a COCO detection file: .*{cause}"):
            GroundTruth.load(tmp_path / "a.json", tmp_path)

    def test_some_images_missing(self, two: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
        (two[1] / "a.png").unlink()
        with caplog.at_level(logging.WARNING):
            truth = GroundTruth.load(*two)
        assert [path.name for path in truth.paths.values()] == ["b.png"]
        assert caplog.messages == [f"1 of 2 images are missing in {two[1]}: a.png"]

    def test_many_images_missing_are_not_all_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        data = write_coco(tmp_path, {f"{n}.png": ((8, 8), []) for n in range(7)}, {1: "thing"})
        for n in range(6):
            (data[1] / f"{n}.png").unlink()
        GroundTruth.load(*data)
        assert caplog.messages[0].endswith("0.png, 1.png, 2.png, 3.png, 4.png, ...")

    def test_all_images_missing(self, two: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"elsewhere: none of the 2 images of .*annotations\.json is there"):
            GroundTruth.load(two[0], tmp_path / "elsewhere")

    def test_image_unreadable(self, two: tuple[Path, Path], finds_all: Path) -> None:
        (two[1] / "b.png").write_text("hello")
        with pytest.raises(DataError, match=r"b\.png: cannot be read as an image"):
            scores(finds_all, two)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"confidence": 1.0}, "confidence 1.0 is not in 0 <= confidence < 1"),
        ({"confidence": -0.1}, "confidence -0.1 is not in"),
        ({"iou": 0.0}, "iou 0.0 is not in 0 < iou <= 1"),
        ({"iou": float("nan")}, "iou nan is not in"),
        ({"max_images": 0}, "max_images 0 is less than 1"),
        ({"threads": -1}, "threads -1 is less than 0"),
    ],
)
def test_settings_out_of_range(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**setting)


class TestCommandLine:
    @staticmethod
    def arguments(data: tuple[Path, Path], *models: Path) -> list[str]:
        return [*map(str, models), "--annotations", str(data[0]), "--images", str(data[1])]

    def test_table(self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str]) -> None:
        worse = finds_all.with_name("a-model-with-quite-a-long-name-int8.onnx")
        onnx.save(always(table_of([(12, 16, 36, 32, 0.9, 1)], "v8", 2)), worse)
        assert main(self.arguments(two, finds_all, worse)) == 0
        out, err = capsys.readouterr()
        assert all(len(line) <= 80 for line in out.splitlines())
        lines = [line.split() for line in out.splitlines() if line.strip()]
        assert lines[0] == ["model", "AP", "AP50", "AP75", "APs", "APm", "APl", "change"]
        assert lines[2] == ["all.onnx", "100.00", "100.00", "100.00", "100.00", "-", "-"]
        assert lines[3][1:] == ["50.00", "100.00", "0.00", "50.00", "-", "-", "-50.00"]
        assert "2 images" in out
        assert "all.onnx: v8, RGB, 0-1, letterbox centred; output (1, 6, 84) has one box per cell" in err

    def test_quiet(self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*self.arguments(two, finds_all), "-q"]) == 0
        assert capsys.readouterr().err.strip() == ""

    def test_json(self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path) -> None:
        target = tmp_path / "scores.json"
        options = ["--conf", "0.01", "--iou", "0.5", "--image-size", "64", "--threads", "1", "-q"]
        assert main([*self.arguments(two, finds_all), "--json", str(target), *options]) == 0
        written = json.loads(target.read_text())
        assert written == {
            "annotations": str(two[0]),
            "images": 2,
            "settings": {
                "family": "auto", "preprocess": "auto", "image_size": [64, 64], "confidence": 0.01, "iou": 0.5,
                "max_images": None, "threads": 1,
            },
            "models": [{
                "model": str(finds_all), "family": "v8", "preprocess": "yolo", "image_size": [64, 64],
                "AP": pytest.approx(100), "AP50": pytest.approx(100), "AP75": pytest.approx(100),
                "APs": pytest.approx(100), "APm": None, "APl": None, "change": 0.0,
            }],
        }  # fmt: skip

    def test_json_that_cannot_be_written_is_told_before_the_work(
        self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*self.arguments(two, finds_all), "--json", str(tmp_path / "none" / "a.json")]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "error: " in err
        assert "a.json" in err

    def test_error_is_one_message_and_finished_models_are_shown(
        self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"hello")
        target = tmp_path / "scores.json"
        options = ["--json", str(target), "-q"]
        assert main([*self.arguments(two, finds_all, tmp_path / "bad.onnx"), *options]) == 1
        out, err = capsys.readouterr()
        assert "all.onnx" in out
        assert err.strip().startswith("error: ")
        assert "Traceback" not in err
        assert not target.exists()

    def test_debug_keeps_the_traceback(self, two: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(ModelError):
            main([*self.arguments(two, tmp_path / "none.onnx"), "--debug"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--image-size", "64x"], "'64x' is no image size"),
            (["--image-size", "0"], "'0' is no image size"),
            (["--conf", "2"], "confidence 2.0 is not in"),
            (["--iou", "high"], "invalid float value"),
            (["--family", "v9"], "invalid choice: 'v9'"),
            (["--preprocess", "caffe"], "invalid choice: 'caffe'"),
        ],
    )
    def test_usage(
        self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str],
        options: list[str], message: str,
    ) -> None:  # fmt: skip
        with pytest.raises(SystemExit) as exit_:
            main([*self.arguments(two, finds_all), *options])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err

    def test_image_size_of_two_sides(self, tmp_path: Path) -> None:
        data = write_coco(tmp_path, {"wide.png": ((64, 32), [(0, 0, 10, 20, 1)])}, {1: "thing"})
        onnx.save(bright_rectangle(["n", 3, "h", "w"]), tmp_path / "m.onnx")
        options = ["--image-size", "32x64", "--max-images", "1", "--json", str(tmp_path / "scores.json"), "-q"]
        assert main([*self.arguments(data, tmp_path / "m.onnx"), *options]) == 0
        assert json.loads((tmp_path / "scores.json").read_text())["models"][0]["image_size"] == [32, 64]


@pytest.mark.parametrize(("name", "ap"), [("yolov5n.onnx", 34.46), ("yolox_nano.onnx", 32.52)])
def test_real_models(name: str, ap: float) -> None:
    model, coco = DATA / "models" / name, DATA / "coco"
    if not (model.is_file() and coco.is_dir()):
        pytest.skip(f"{DATA} is absent: set ONNXQ_DATA to the folder with models/ and coco/")
    found = evaluate(model, coco / "instances_val2017.json", coco / "val2017", settings=Settings(max_images=24))
    assert found.ap == pytest.approx(ap, abs=0.5)
