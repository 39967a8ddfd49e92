import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from faulty import erring
from graphs import ULTRALYTICS, classifier, quantized, v5_raw, v8, with_metadata
from PIL import Image
from tables import BOX, CELLS, TWO, Boxes, always, bright_rectangle, giving, table_of, write_coco

from onnxq.calibration.demo import CLASSES, model_path, scene
from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.evaluation.annotations import image_files as annotated_files
from onnxq.evaluation.average_precision import Scores, evaluate
from onnxq.evaluation.predictor import Settings
from onnxq.facts import Plan
from onnxq.runtime import RUNTIMES
from onnxq.targets import GENERIC
from onnxq.yolo.inputs import image_files, large_pictures

DATA = Path(os.environ.get("ONNXQ_DATA", Path(__file__).parents[3] / "shared"))


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


class TestAveragePrecision:
    @pytest.mark.parametrize(("family", "tail"), [("v5", ""), ("v8", ""), ("yolox", "exp"), ("yolox-raw", "raw")])
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

    def test_a_file_that_another_runtime_computes_wrongly_is_told(
        self, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, facts = quantized(v8(), GENERIC)
        names = str(dict(enumerate(["person", "car", "dog"])))
        model = with_metadata(made, {"onnxq.target": "generic", "names": names})
        others = scores(model, two, runtime="ort").remarks
        assert not any("wrongly" in remark for remark in others)
        scale = f"{facts[Plan].weights[1].tensor}_scale"
        assert any(tensor.name == scale for tensor in model.graph.initializer)
        monkeypatch.setitem(RUNTIMES, "ort", erring(scale))
        found = scores(model, two, runtime="ort").remarks
        assert any("computes the file, which is for generic, wrongly on this CPU" in remark for remark in found)
        assert not any("wrongly" in remark for remark in scores(model, two).remarks)

    def test_more_objects_than_detections_that_count(self, tmp_path: Path) -> None:
        boxes: Boxes = [(20 * (n % 5), 20 * (n // 5), 10, 10, 1) for n in range(15)]
        data = write_coco(tmp_path, {"a.png": ((100, 100), boxes)}, {1: "thing"})
        rows = [(x * 0.64, y * 0.64, (x + w) * 0.64, (y + h) * 0.64, 0.9 - x / 1e3, 0) for x, y, w, h, _ in boxes]
        model = always(np.array(rows, np.float32))
        assert scores(model, data).remarks == ()
        found = scores(model, data, max_detections=6)
        assert found.ap < 50
        assert found.remarks[0].startswith("1 of 1 images have more than 6 objects of a class, up to 15, and only")
        assert found.remarks[0].endswith("--max-detections 15")
        assert scores(model, data, max_detections=15).ap == pytest.approx(100)

    def test_progress_is_told(self, two: tuple[Path, Path], finds_all: Path) -> None:
        told: list[tuple[str, int, int]] = []
        evaluate(str(finds_all), *map(str, two), progress=lambda *step: told.append(step))
        assert told == [("loading", 0, 0), ("evaluating", 1, 2), ("evaluating", 2, 2), ("scoring", 0, 0)]

    def test_pycocotools_is_silent(
        self, two: tuple[Path, Path], finds_all: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        scores(finds_all, two)
        assert capfd.readouterr() == ("", "")


def apart() -> onnx.ModelProto:
    boxes, scores = np.zeros((1, CELLS, 4), np.float32), np.zeros((1, CELLS, 2), np.float32)
    boxes[0, 3], scores[0, 3, 1] = BOX, 0.9
    return giving({"boxes": boxes, "scores": scores})


def finished() -> onnx.ModelProto:
    return giving({
        "count": np.array([[1]], np.int32),
        "boxes": np.array([[BOX, (0, 0, 9, 9)]], np.float32),
        "scores": np.array([[0.9, 0.95]], np.float32),
        "labels": np.array([[1, 1]], np.int32),
    })  # fmt: skip


def rows() -> onnx.ModelProto:
    return giving({"out": np.array([[0, *BOX, 1, 0.9], [1, 0, 0, 9, 9, 1, 0.95]], np.float32)}, nms=True)


def counted() -> onnx.ModelProto:
    rows = np.array([[1, 0.9, *BOX], [1, 0.95, 0, 0, 9, 9]], np.float32)
    return giving({"rows": rows, "counts": np.array([1], np.int32)}, nms=True)


def with_masks() -> onnx.ModelProto:
    table = np.concatenate([table_of([(*BOX, 0.9, 1)], "v8", 2), np.ones((4, CELLS), np.float32)])
    return giving({"out": table[np.newaxis], "protos": np.ones((1, 4, 16, 16), np.float32)})


def with_keypoints() -> onnx.ModelProto:
    table = np.concatenate([table_of([(*BOX, 0.9, 1)], "v8", 2), np.full((6, CELLS), 9, np.float32)])
    return always(table, task="pose", kpt_shape="[2, 3]", names="['a', 'b']")


class TestHeads:
    @pytest.mark.parametrize(
        ("build_model", "family", "task"),
        [
            (apart, "separate", "detect"),
            (finished, "nms-tables", "detect"),
            (rows, "nms-rows", "detect"),
            (counted, "nms-counted", "detect"),
            (with_masks, "v8", "segment"),
            (with_keypoints, "v8", "pose"),
        ],
    )
    def test_of_other_heads(
        self, two: tuple[Path, Path], build_model: Callable[[], onnx.ModelProto], family: str, task: str
    ) -> None:
        found = scores(build_model(), two)
        assert (found.detector.family, found.detector.outputs.task, found.ap) == (family, task, pytest.approx(100))

    def test_raw_grids_are_measured_when_their_anchors_are_given(self, tmp_path: Path) -> None:
        data = write_coco(tmp_path, TWO, {1: "person", 3: "car", 4: "bus"})
        message = "the model: the anchors .* give --family v5-raw .* or v7-raw .*; python -m onnxq.compare needs no AP"
        with pytest.raises(ModelError, match=message):
            scores(v5_raw(), data)
        assert 0 <= scores(v5_raw(), data, family="v7-raw").ap < 100

    def test_classifiers_are_refused(self, two: tuple[Path, Path]) -> None:
        message = "the model: its task is classify, and AP is measured of boxes; python -m onnxq.compare"
        with pytest.raises(ModelError, match=message):
            scores(with_metadata(classifier(), ULTRALYTICS | {"task": "classify"}), two)

    def test_rotated_boxes_need_such_annotations(self, tmp_path: Path) -> None:
        data = write_coco(tmp_path, TWO, {1: "person", 3: "car", 4: "bus"})
        with pytest.raises(DataError, match="the model: its boxes are rotated, and those of the annotations are not"):
            scores(with_metadata(v8(angle=True), {"task": "obb"}), data)


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

    def test_how_is_told(self, two: tuple[Path, Path]) -> None:
        table = table_of([(*BOX, 0.9, 1)], "v8", 2)
        assert scores(always(table), two).classes == "classes by order of the categories, as it names none"
        assert scores(always(table, names="['Person', 'CAR']"), two).classes == "classes by name"

    def test_of_a_model_of_fewer_classes_only_these_count(self, tmp_path: Path) -> None:
        pictures = {"a.png": ((64, 64), [(8, 16, 24, 16, 3), (40, 40, 20, 20, 1)])}
        data = write_coco(tmp_path, pictures, {1: "person", 3: "car"})
        found = scores(always(table_of([(*BOX, 0.9, 0)], "v8", 1), names="['car']"), data)
        assert found.ap == pytest.approx(100)
        assert "1 more category than the model has classes, such as 'person'" in found.remarks[0]

    def test_annotations_of_fewer_classes(self, two: tuple[Path, Path]) -> None:
        table = table_of([(*BOX, 0.9, 2), (40, 40, 60, 60, 0.95, 0)], "v8", 3)
        found = scores(always(table, names="['bus', 'dog', 'car']"), two)
        assert found.ap == pytest.approx(100)
        assert found.remarks == ("1 of the model's 3 classes are annotated, and AP is that of these: 'car'",)

    def test_names_fewer_than_the_scores(self, two: tuple[Path, Path]) -> None:
        found = scores(always(table_of([(*BOX, 0.9, 1)], "v8", 2), names="['person']"), two)
        assert found.ap == pytest.approx(100)
        assert found.remarks == ("its metadata names 1 of its 2 classes: the others are taken for 'car'",)

    @pytest.mark.parametrize("names", ["['car', 'person']", ""])
    def test_classes_in_another_order_are_told(self, tmp_path: Path, names: str) -> None:
        data = write_coco(tmp_path, TWO, {1: "person", 3: "car"} if names else {1: "car", 3: "person"})
        found = scores(always(table_of([(*BOX, 0.9, 1 if names else 0)], "v8", 2), names=names), data)
        assert found.ap == 0
        assert found.remarks[0].startswith("AP50 is 100.0 if classes are ignored, and 0.0 with them")

    def test_names_that_do_not_fit_the_annotations_are_told(self, tmp_path: Path) -> None:
        pictures = {f"{number:02}.png": ((64, 64), [(8, 16, 24, 16, 1 + 2 * (number < 19))]) for number in range(20)}
        data = write_coco(tmp_path, pictures, {1: "person", 3: "car"})
        found = scores(always(table_of([(*BOX, 0.9, 0)], "v8", 2), names="['person', 'car']"), data)
        assert 1 < found.ap < 10
        assert found.remarks[0].startswith("AP50 is 100.0 if classes are ignored, and 2.5 with them")

    def test_names_of_two_classes_that_are_exchanged_are_told(self, tmp_path: Path) -> None:
        objects = [(4, 4, 16, 16, 1), (24, 24, 16, 16, 3), (44, 44, 16, 16, 5)]
        data = write_coco(tmp_path, {f"{n}.png": ((64, 64), objects) for n in range(6)}, {1: "bus", 3: "car", 5: "dog"})
        table = table_of([(4, 4, 20, 20, 0.9, 0), (24, 24, 40, 40, 0.9, 1), (44, 44, 60, 60, 0.9, 2)], "v8", 3)
        assert scores(always(table, names="['bus', 'car', 'dog']"), data).remarks == ()
        found = scores(always(table, names="['car', 'bus', 'dog']"), data)
        assert found.ap == pytest.approx(100 / 3, abs=0.1)
        [remark] = found.remarks
        assert remark.startswith("most objects of 2 classes are found as those of each other: 'bus' as 'car', 'car' as")

    def test_neither(self, two: tuple[Path, Path]) -> None:
        with pytest.raises(ConfigError, match="the model: has 3 classes, but the annotations have 2 categories"):
            scores(always(table_of([(*BOX, 0.9, 1)], "v8", 3)), two)

    def test_class_out_of_range(self, two: tuple[Path, Path]) -> None:
        with pytest.raises(ModelError, match="finds class 2, but classes are 0 to 1: if its labels count from 1"):
            scores(always(np.array([[*BOX, 0.9, 1], [*BOX, 0.9, 2]], np.float32)), two)


def test_image_unreadable(two: tuple[Path, Path], finds_all: Path) -> None:
    (two[1] / "b.png").write_text("hello")
    with pytest.raises(DataError, match=r"b\.png: cannot be read as an image"):
        scores(finds_all, two)


@pytest.mark.precision
@pytest.mark.slow
@pytest.mark.parametrize(("name", "ap"), [("yolov5n.onnx", 34.46), ("yolox_nano.onnx", 32.52)])
def test_real_models(name: str, ap: float) -> None:
    model, coco = DATA / "models" / name, DATA / "coco"
    if not (model.is_file() and coco.is_dir()):
        pytest.skip(f"{DATA} is absent: set ONNXQ_DATA to the folder with models/ and coco/")
    found = evaluate(model, coco / "instances_val2017.json", coco / "val2017", settings=Settings(max_images=24))
    assert found.ap == pytest.approx(ap, abs=0.5)


def test_large_pictures_are_measured_in_their_own_px(tmp_path, monkeypatch):
    """Pictures of the demo, three times as large, decoded at a third."""
    found = {}
    entries, images = [], []
    for number in range(12):
        pixels, boxes, labels = scene("validation", number)
        Image.fromarray(pixels).resize((480, 480), Image.Resampling.NEAREST).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 480, "height": 480})
        for (x1, y1, x2, y2), label in zip(3 * boxes.astype(float), labels.tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            entries.append(
                {"id": len(entries), "image_id": number, "category_id": label, "bbox": box, "area": box[2] * box[3]}
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    for limit in (10**9, 200_000):
        for module in (large_pictures, image_files, annotated_files):
            monkeypatch.setattr(module, "LARGE", limit)
        monkeypatch.setattr(large_pictures, "REDUCED", 160 * 160)
        found[limit] = evaluate(model_path(), tmp_path / "a.json", tmp_path)
    assert found[200_000].ap > 50
    assert found[200_000].ap == pytest.approx(found[10**9].ap, abs=5)
