import json
import logging
from pathlib import Path

import pytest
from tables import TWO, write_coco

from onnxq.coco import GroundTruth
from onnxq.errors import DataError


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two pictures with one object each."""
    return write_coco(tmp_path, TWO, {1: "person", 3: "car"})


def test_annotations_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
        GroundTruth.load(tmp_path / "none.json", tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00"])
def test_annotations_not_json(tmp_path: Path, content: bytes) -> None:
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
def test_annotations_of_another_kind(tmp_path: Path, content: object, cause: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"a\.json: is not a COCO detection file: .*{cause}"):
        GroundTruth.load(tmp_path / "a.json", tmp_path)


def test_some_images_missing(two: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    (two[1] / "a.png").unlink()
    with caplog.at_level(logging.WARNING):
        truth = GroundTruth.load(*two)
    assert [path.name for path in truth.paths.values()] == ["b.png"]
    assert caplog.messages == [f"1 of 2 images are missing in {two[1]}: a.png"]


def test_many_images_missing_are_not_all_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_coco(tmp_path, {f"{n}.png": ((8, 8), []) for n in range(7)}, {1: "thing"})
    for n in range(6):
        (data[1] / f"{n}.png").unlink()
    GroundTruth.load(*data)
    assert caplog.messages[0].endswith("0.png, 1.png, 2.png, 3.png, 4.png, ...")


def test_all_images_missing(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"elsewhere: none of the 2 images of .*annotations\.json is there"):
        GroundTruth.load(two[0], tmp_path / "elsewhere")
