import json
import os
from pathlib import Path

import pytest
from annotation_files import changed, dataset, with_images
from PIL import Image

from onnxq.errors import DataError
from onnxq.evaluation.annotations.coco_file import read_coco
from onnxq.evaluation.annotations.image_files import find_images, picture_size


def found(tmp_path, rename):
    """Names of the files that are found if the annotations have other names; and the remarks."""
    content = dataset()
    _, folder = with_images(tmp_path, content)
    (tmp_path / "moved").mkdir()
    content["images"] = changed(content["images"], file_name=rename)
    path = tmp_path / "moved" / "a.json"
    path.write_text(json.dumps(content))
    read = read_coco(path)
    return [file.name for file in find_images(read, folder).values()], read.remarks


@pytest.mark.parametrize(
    "name",
    ["images\\{}.png", "images/{}.png", "..\\..\\tool\\media\\upload\\4\\{}.png", "/home/me/data/{}.png", "./{}.png",
     "C:\\data\\{}.png", "{}.PNG", "1f2e3d4c-{}.png", "{}.jpg", "{}", "https://x.org/a%20b/{}.png"],
)  # fmt: skip
def test_names_as_other_systems_and_tools_write_them(tmp_path, name):
    names, remarks = found(tmp_path, lambda each: name.format(each["id"]))
    assert names == ["1.png", "2.png", "3.png", "4.png"]
    said = f"4 of 4 images are found in {tmp_path / 'images'} by another name: {name.format(1)} as 1.png, "
    assert name[:2] == "./" or remarks[0].startswith(said)


def test_names_as_they_are_need_no_word(tmp_path):
    assert found(tmp_path, lambda each: each["file_name"]) == (["1.png", "2.png", "3.png", "4.png"], [])


def test_what_is_nowhere_is_left_out(tmp_path):
    names, _ = found(tmp_path, lambda each: "none.png" if each["id"] == 2 else each["file_name"])
    assert names == ["1.png", "3.png", "4.png"]


def test_pipes_and_folders_are_no_images(tmp_path):
    path, folder = with_images(tmp_path, dataset())
    for name, make in (("1.png", os.mkfifo), ("2.png", os.mkdir)):
        (folder / name).unlink()
        make(folder / name)
    assert [file.name for file in find_images(read_coco(path), folder).values()] == ["3.png", "4.png"]


def test_two_images_in_one_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a/1\.png and b/1\.png are both found as .*1\.png; give --images"):
        found(tmp_path, lambda each: f"{'ab'[each['id'] - 1]}/1.png" if each["id"] < 3 else each["file_name"])


def test_folders_tell_files_of_one_name_apart(tmp_path):
    content = dataset(images=[
        {"id": 1, "file_name": "a/x.png"}, {"id": 2, "file_name": "b/x.png"}, {"id": 3, "file_name": "x.png"},
    ])  # fmt: skip
    path, folder = with_images(tmp_path, content)
    files = find_images(read_coco(path), folder)
    assert [file.relative_to(folder).as_posix() for file in files.values()] == ["a/x.png", "b/x.png", "x.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_with_exif(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    size = picture_size(tmp_path / "a.jpg")
    assert size.stored == (20, 30)
    assert size.upright == ((30, 20) if orientation > 4 else (20, 30))


def test_size_of_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    assert picture_size(tmp_path / "a.png") is None


def test_size_of_what_is_too_large(tmp_path, monkeypatch):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert picture_size(tmp_path / "a.png") == ((20, 30), (20, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert picture_size(tmp_path / "a.png") is None
