import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from annotation_files import BOXES, SIDE, dataset, with_images
from PIL import Image
from tables import TWO, write_coco

from onnxq.errors import DataError
from onnxq.evaluation.average_precision import average_precisions
from onnxq.evaluation.ground_truth import GroundTruth, build_index


def test_images_in_memory() -> None:
    boxes, labels = np.array([[8, 16, 32, 32]], np.float32), np.array([1])
    scenes = [(np.full((64, 64, 3), grey, np.uint8), boxes, labels) for grey in (1, 2)]
    truth = GroundTruth.from_memory(scenes, ["person", "car"])
    assert [load().max() for load in truth.images.values()] == [1, 2]
    assert (truth.categories, truth.files) == ({0: "person", 1: "car"}, ())
    found = [{"image_id": 0, "category_id": 1, "bbox": [8, 16, 24, 16], "area": 384, "score": 0.9, "iscrowd": 0}]
    assert average_precisions(truth, found)[0] == pytest.approx(50, abs=0.6)
    assert average_precisions(truth, [*found, {**found[0], "image_id": 1}])[0] == pytest.approx(100)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two pictures with one object each."""
    return write_coco(tmp_path, TWO, {1: "person", 3: "car"})


def test_annotations_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
        GroundTruth.load(tmp_path / "none.json", tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", pytest.param(b"[" * 100_000, id="too deep")])
def test_annotations_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: not JSON: "):
        GroundTruth.load(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ([], "list indices must be"),
        ({"images": [], "annotations": []}, "'categories' is missing"),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, "'file_name' is missing"),
        ({"images": [], "annotations": [{"bbox": [1, 2]}], "categories": []}, "annotation number 1: bbox .1, 2. does"),
        ({"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}], "categories": []}, "'category_id' of .* is missing"),
        ({"images": [], "annotations": [{"bbox": [1, 2, math.nan, 4]}], "categories": []}, "bbox .* is not finite"),
        ({"images": [{"id": math.inf, "file_name": "a"}]}, "'annotations' is missing"),
        ({"images": [], "annotations": [], "categories": [{"id": [1], "name": "b"}]}, "category number 1 has the id"),
    ],
)
def test_annotations_of_another_kind(tmp_path: Path, content: object, cause: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"a\.json: not COCO detection annotations: .*{cause}"):
        GroundTruth.load(tmp_path / "a.json", tmp_path)


def test_annotations_with_a_byte_order_mark(two: tuple[Path, Path]) -> None:
    two[0].write_bytes(b"\xef\xbb\xbf" + two[0].read_bytes())
    assert len(GroundTruth.load(*two).files) == 2


def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, TWO, {1: "person", 3: "car"})
    annotations.write_text(annotations.read_text().replace("a.png", "a" * 5000))
    assert [path.name for path in GroundTruth.load(annotations, images).files] == ["b.png"]


def test_some_images_missing(two: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    (two[1] / "a.png").unlink()
    with caplog.at_level(logging.WARNING):
        truth = GroundTruth.load(*two)
    assert [path.name for path in truth.files] == ["b.png"]
    assert [load().shape for load in truth.images.values()] == [(64, 64, 3)]
    assert caplog.messages == [f"1 of 2 images are missing in {two[1]}: a.png"]


def test_many_images_missing_are_not_all_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_coco(tmp_path, {f"{n}.png": ((8, 8), []) for n in range(7)}, {1: "thing"})
    for n in range(6):
        (data[1] / f"{n}.png").unlink()
    GroundTruth.load(*data)
    assert caplog.messages[0].endswith("0.png, 1.png, 2.png, 3.png, 4.png, ...")


def test_all_images_missing(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"elsewhere: none of the 2 images of .*annotations\.json exists"):
        GroundTruth.load(two[0], tmp_path / "elsewhere")


class TestChecked:
    """The checks are those of `annotations`; here, that the ground truth has been through them."""

    def test_what_is_mended_is_told_and_kept(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        content = dataset()
        data = with_images(tmp_path, {**content, "annotations": [*content["annotations"], content["annotations"][0]]})
        with caplog.at_level(logging.WARNING):
            truth = GroundTruth.load(*data)
        assert truth.remarks == ("1 object is listed twice and counted once, such as annotation 10",)
        assert caplog.messages == [f"{data[0]}: {truth.remarks[0]}"]
        assert len(truth.coco.dataset["annotations"]) == 16

    def test_sizes_of_the_files_count(self, tmp_path: Path) -> None:
        content = dataset()
        sizes = [{key: image[key] for key in ("id", "file_name")} for image in content["images"]]
        with pytest.raises(DataError, match=r"annotation 11 has the bbox .* on an image of 50x100"):
            GroundTruth.load(*with_images(tmp_path, {**content, "images": sizes}, (100, 50)))

    def test_resized_images(self, tmp_path: Path) -> None:
        truth = GroundTruth.load(*with_images(tmp_path, dataset(), (100, 50)))
        assert truth.coco.dataset["annotations"][0]["bbox"] == [value / 2 for value in BOXES[0]]

    def test_images_turned_by_exif(self, tmp_path: Path) -> None:
        content, turn = dataset(), Image.Exif()
        turn[0x0112] = 6
        for image in content["images"]:
            image["file_name"] = image["file_name"].replace("png", "jpg")
        data = with_images(tmp_path, content)
        for file in data[1].iterdir():
            Image.new("RGB", SIDE[::-1]).save(file, exif=turn)
        assert GroundTruth.load(*data).remarks == ()
        for file in data[1].iterdir():
            Image.new("RGB", SIDE).save(file, exif=turn)
        with pytest.raises(DataError, match="were annotated as they are stored, 100x200"):
            GroundTruth.load(*data)

    def test_many_images_without_an_object_are_told(self, tmp_path: Path) -> None:
        content = dataset()
        first = content["images"][0]["id"]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == first]
        truth = GroundTruth.load(*with_images(tmp_path, content))
        assert truth.remarks == ("3 of 4 images have no object, and all that is detected there counts as wrong",)

    def test_no_object_is_told(self, tmp_path: Path) -> None:
        truth = GroundTruth.load(*with_images(tmp_path, dataset(annotations=[])))
        assert truth.remarks == ("no object is on the 4 images, so there is no AP",)

    def test_groups_and_categories_with_objects(self, tmp_path: Path) -> None:
        kinds = [{"id": 0, "name": "things"}, {"id": 1, "name": "person", "supercategory": "things"}]
        kinds += [{"id": 2, "name": "traffic light", "supercategory": "things"}, {"id": 3, "name": "none"}]
        truth = GroundTruth.load(*with_images(tmp_path, dataset(categories=kinds)))
        assert (truth.groups, truth.owned) == ({0}, {1, 2})

    def test_images_are_known_with_their_sizes(self, tmp_path: Path) -> None:
        truth = GroundTruth.load(*with_images(tmp_path, dataset(count=2)))
        assert truth.coco.dataset["images"][0] == {"id": 1, "height": 100, "width": 200}


@pytest.mark.parametrize("own", [False, True])
def test_records_are_copied_unless_the_index_owns_them(own):
    entries = [{"image_id": k, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0} for k in (7, 8, 9)]
    index = build_index([8, 9], {1: "a"}, entries, own=own)
    assert [index.anns[number]["image_id"] for number in (1, 2)] == [8, 9]
    assert ("id" in entries[1]) == own
    assert "id" not in entries[0]
