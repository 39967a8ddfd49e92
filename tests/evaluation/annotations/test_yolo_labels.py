from pathlib import Path

import pytest
from annotation_files import BOXES, SIDE
from PIL import Image

from onnxq.errors import DataError
from onnxq.evaluation.annotations.yolo_labels import has_labels, label_file, read_yolo
from onnxq.evaluation.ground_truth import GroundTruth

WIDTH, HEIGHT = SIDE


def shares(box):
    x, y, w, h = box
    return [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]


def lines(boxes=BOXES, turn=shares):
    return "\n".join(" ".join(map(str, [place % 2, *turn(box)])) for place, box in enumerate(boxes)) + "\n"


@pytest.fixture
def data_set(tmp_path):
    """Write a data set of two images with these labels; return its YAML file."""

    def write(labels: str | None = None, inner: str = "valid/images", extra: str = "", names="[person, car]") -> Path:
        folder = tmp_path / inner
        folder.mkdir(parents=True)
        other = tmp_path / inner.replace("images", "labels")
        other.mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            Image.new("RGB", SIDE).save(folder / f"{name}.jpg")
            (other / f"{name}.txt").write_text(lines() if labels is None else labels)
        path = tmp_path / "data.yaml"
        path.write_text(f"train: {inner}\nval: {inner}\nnames: {names}\n{extra}")
        return path

    return write


@pytest.mark.parametrize("inner", ["valid/images", "images/val", "all"])
def test_boxes(data_set, inner):
    read, paths = read_yolo(data_set(inner=inner))
    assert [path.name for path in paths.values()] == ["a.jpg", "b.jpg"]
    assert [entry["bbox"] for entry in read.objects] == [pytest.approx(box) for box in [*BOXES, *BOXES]]
    assert [entry["category_id"] for entry in read.objects[:3]] == [0, 1, 0]
    assert [(each.id, each.name) for each in read.categories] == [(0, "person"), (1, "car")]
    assert read.labels[1].endswith("a.txt line 2")
    assert read.remarks == []


def test_the_ground_truth_is_checked(data_set):
    truth = GroundTruth.load(data_set(lines([*BOXES, BOXES[0]])))
    assert len(truth.coco.dataset["annotations"]) == 8
    assert "2 objects are listed twice" in truth.remarks[0]
    assert [load().shape for load in truth.images.values()] == [(100, 200, 3)] * 2
    assert truth.coco.dataset["annotations"][0]["bbox"] == pytest.approx(BOXES[0])


def test_at_most_so_many_images(data_set):
    assert [path.name for path in GroundTruth.load(data_set(), max_images=1).files] == ["a.jpg"]


def test_images_of_another_folder(data_set, tmp_path):
    path = data_set()
    Image.new("RGB", SIDE).save(tmp_path / "c.png")
    (tmp_path / "c.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "valid").rename(tmp_path.parent / f"{tmp_path.name}-gone")
    path.write_text("train: .\nnames: [person, car]\n")
    read, _ = read_yolo(path, tmp_path)
    assert [entry["bbox"] for entry in read.objects] == [[50, 25, 100, 50]]


def test_equal_names_in_two_folders_are_two_images(data_set, tmp_path):
    path = data_set()
    for name in ("images", "labels"):
        (tmp_path / "more" / name).mkdir(parents=True)
    Image.new("RGB", SIDE).save(tmp_path / "more/images/a.jpg")
    (tmp_path / "more/labels/a.txt").write_text(lines())
    path.write_text("val: [valid/images, more/images]\nnames: [person, car]\n")
    truth = GroundTruth.load(path)
    assert (len(truth.images), len(truth.coco.dataset["annotations"]), truth.remarks) == (3, 12, ())


def test_outlines(data_set):
    read, _ = read_yolo(data_set("0 0.1 0.2 0.3 0.2 0.3 0.5\n"))
    assert read.objects[0]["segmentation"] == [pytest.approx([20, 20, 60, 20, 60, 50])]
    assert read.objects[0]["bbox"] == pytest.approx([20, 20, 40, 30])


@pytest.mark.parametrize(("each", "point"), [(2, "0.5 0.5"), (3, "0.5 0.5 2")])
def test_keypoints(data_set, each, point):
    path = data_set(f"0 0.5 0.5 0.2 0.2 {point} {'0 0' if each == 2 else '0 0 0'}\n", extra=f"kpt_shape: [2, {each}]\n")
    read, _ = read_yolo(path)
    assert read.objects[0]["keypoints"] == [100, 50, 2, 0, 0, 0]
    assert read.objects[0]["bbox"] == pytest.approx([80, 40, 40, 20])


@pytest.mark.parametrize("shape", ["[4, 3]", "[17, 2]"])
def test_keypoints_of_another_number_are_no_outline(data_set, shape):
    """A box and four keypoints have as many values as an outline of six corners."""
    path = data_set("0 0.5 0.5 0.2 0.2" + " 0.5 0.5" * 4 + "\n", extra=f"kpt_shape: {shape}\n")
    with pytest.raises(
        DataError, match=r"a\.txt line 1: has 13 values; a box has 5, and \d+ with the keypoints of kpt"
    ):
        read_yolo(path)


def test_images_without_labels_have_no_objects(data_set, tmp_path):
    path = data_set()
    (tmp_path / "valid/labels/b.txt").unlink()
    read, paths = read_yolo(path)
    assert (len(paths), len(read.objects)) == (2, 4)
    assert [Path(paths[number]).name for number in read.unlabelled] == ["b.jpg"]
    wrong = "and all that is detected there counts as wrong"
    assert GroundTruth.load(path).remarks == (f"1 of 2 images have no label file, {wrong}",)
    (tmp_path / "valid/labels/a.txt").write_text("", encoding="utf-8")
    (tmp_path / "valid/labels/b.txt").write_text("", encoding="utf-8")
    assert GroundTruth.load(path).remarks == ("no object is on the 2 images, so there is no AP",)


def test_no_labels_at_all_are_refused(data_set, tmp_path):
    path = data_set()
    assert has_labels(path)
    for file in (tmp_path / "valid/labels").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"none of 2 images has a label file, such as .*valid/labels/a\.txt"):
        read_yolo(path)
    assert not has_labels(path)
    assert not has_labels(tmp_path / "none.yaml")


def test_without_names_classes_are_numbers(data_set):
    read, _ = read_yolo(data_set(names=""))
    assert [each.name for each in read.categories] == ["0", "1"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("0 0.5 0.5 0.2\n", r"a\.txt line 1: .* does not have class, centre x"),
        ("0 0.5 0.5 0.2 0.2\nperson 0.5 0.5 0.2 0.2\n", r"a\.txt line 2: .* has words that are no numbers"),
        ("0 0.5 0.5 nan 0.2\n", r"a\.txt line 1: "),
        ("0.5 0.5 0.5 0.2 0.2\n", r"line 1: the class is 0\.5; classes are whole numbers from 0"),
        ("-1 0.5 0.5 0.2 0.2\n", "line 1: the class is -1"),
        ("2 0.5 0.5 0.2 0.2\n", r"line 1: is of class 2, and .*data\.yaml names 2 classes"),
        ("0 100 50 20 20\n", "line 1: has the value 100; labels are shares of the image, 0 to 1"),
        ("0 0.5 0.5 0.2 0.2 0.9\n", "line 1: has 6 values; a box has 5"),
        ("0 0.5 0.5 0 0.2\n", "line 1: the box has no width or height"),
        ("0 0.5 0.5 -0.1 0.2\n", "line 1: the box has no width or height"),
    ],
)
def test_lines_of_another_form_are_refused_with_their_number(data_set, labels, words):
    with pytest.raises(DataError, match=words):
        read_yolo(data_set(labels))


@pytest.mark.parametrize(
    ("turn", "form"),
    [
        (lambda b: [b[0] / 200, b[1] / 100, (b[0] + b[2]) / 200, (b[1] + b[3]) / 100], "left, top, right, bottom"),
        (lambda b: [b[0] / 200, b[1] / 100, b[2] / 200, b[3] / 100], "left, top, width, height"),
    ],
)
def test_boxes_of_another_form_are_refused_with_the_cause(data_set, turn, form):
    with pytest.raises(DataError, match=f"boxes reach beyond their image, such as .*: they look like {form}"):
        read_yolo(data_set(lines(turn=turn)))


def test_label_files_beside_images(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert label_file(tmp_path / "a.png") == tmp_path / "a.txt"
    assert label_file(tmp_path / "b.png") is None
