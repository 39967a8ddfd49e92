"""Which files a data source stands for."""

import json
import os

import pytest
from calibration_data import levels, opened, paint, refused
from PIL import Image

from onnxq.errors import DataError


def test_a_folder_stands_for_all_images_below_it(tmp_path):
    paint(tmp_path / "a" / "1.JPG", 1)
    paint(tmp_path / "b" / "c" / "2.png", 2)
    assert levels(opened(tmp_path)) == [1, 2]
    paint(tmp_path / "3.png", 3)
    assert sorted(levels(opened(tmp_path))) == [1, 2, 3]


def test_links_to_folders_are_followed_once(tmp_path):
    paint(tmp_path / "elsewhere" / "1.png", 1)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    assert levels(opened(tmp_path / "set")) == [1]


@pytest.mark.parametrize("kind", ["gif", "jfif", "jp2", "tga", "pgm", "webp", "avif"])
def test_kinds_of_images(tmp_path, kind):
    path = paint(tmp_path / "1.png", 100)
    Image.open(path).save(tmp_path / f"1.{kind}", **({"format": "JPEG"} if kind == "jfif" else {}))
    path.unlink()
    [level] = levels(opened(tmp_path))
    assert abs(level - 100) <= 1


def test_kinds_that_are_not_read_are_counted(tmp_path, caplog):
    paint(tmp_path / "1.png", 1)
    for name in ("a.heic", "b.HEIC", "c/d.jxl", "film.mp4", "more.npy", "1.txt", "README", "data.yaml", ".x.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    samples = opened(tmp_path)
    assert samples.other_kinds == {".heic": 2, ".jxl": 1, ".mp4": 1, ".npy": 1}
    assert samples.count == 1
    assert f"{tmp_path}: left out 2 .heic, 1 .jxl, 1 .mp4, 1 .npy, which are not read with images" in caplog.text
    assert opened([tmp_path, tmp_path / "c" / ".." / "1.png"]).other_kinds == samples.other_kinds
    (tmp_path / "1.png").unlink()
    (tmp_path / "film.mp4").unlink()
    (tmp_path / "more.npy").unlink()
    with refused("videos, .npy or .npz files; 2 .heic, 1 .jxl are not read: convert them to .png or .jpg, or give"):
        opened(tmp_path)


def test_hidden_files_and_other_files_in_a_folder_do_not_count(tmp_path):
    paint(tmp_path / "1.png", 1)
    paint(tmp_path / "._1.png", 2)
    (tmp_path / "labels.txt").write_text("0 1 2 3 4")
    assert levels(opened(tmp_path)) == [1]
    (tmp_path / "1.png").rename(tmp_path / ".1.png")
    paint(tmp_path / ".cache" / "3.png")
    with pytest.raises(DataError):
        opened(tmp_path)


def test_an_image_file(folder):
    samples = opened(folder / "07.png")
    assert levels(samples) == [7]
    assert samples.description == "1 image in pictures"


def test_a_glob(folder):
    samples = opened(f"{folder}/0[2-4].png")
    assert levels(samples) == [2, 3, 4]
    assert samples.description == f"3 images in {folder}/0[2-4].png"
    (folder / "note.txt").write_text("no image")
    assert len(levels(opened(f"{folder.parent}/**/*"))) == 10


def test_pipes_are_not_waited_for(folder, tmp_path):
    os.mkfifo(folder / "10.png")
    assert len(levels(opened(folder))) == 10
    for name in ("a.png", "a.npy", "a.mp4", "a.txt", "a.json", "a.yaml"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="is a pipe, a socket or a device; give a file"):
            opened(tmp_path / name)


def test_a_folder_whose_name_looks_like_a_glob(tmp_path):
    paint(tmp_path / "run [1]" / "4.png", 4)
    samples = opened(tmp_path / "run [1]")
    assert levels(samples) == [4]
    assert samples.description == "1 image in run [1]"


def test_a_list_is_relative_to_itself_or_the_working_directory(folder, tmp_path, monkeypatch):
    paint(tmp_path / "elsewhere" / "30.png", 30)
    monkeypatch.chdir(tmp_path / "elsewhere")
    lines = ["# chosen by hand", "", "pictures/02.png", "./pictures/01.png ", str(folder / "05.png"), "30.png"]
    (tmp_path / "some.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    samples = opened(tmp_path / "some.txt")
    assert sorted(levels(samples)) == [1, 2, 5, 30]
    assert samples.description == "4 images in some.txt"


COCO = [  # annotations, images
    ("instances_val2017.json", "val2017"),
    ("annotations/instances_val2017.json", "val2017"),
    ("annotations/instances_val2017.json", "images/val2017"),
    ("annotations/train.json", "images"),
    ("images/labels.json", "images"),
    ("val2017.json", "val2017"),
]


@pytest.mark.parametrize(("annotations", "images"), COCO)
def test_coco_annotations_name_images_in_the_usual_places(tmp_path, annotations, images):
    paint(tmp_path / images / "1.png", 1)
    paint(tmp_path / images / "2.png", 2)
    path = tmp_path / annotations
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "2.png"}], "annotations": []}))
    samples = opened(path)
    assert levels(samples) == [2]
    assert samples.description == f"1 image in {path.name}"


def test_coco_annotations_with_a_byte_order_mark(tmp_path):
    paint(tmp_path / "1.png", 1)
    text = json.dumps({"images": [{"id": 1, "file_name": "1.png"}]})
    (tmp_path / "a.json").write_text(text, "utf-8-sig")
    assert levels(opened(tmp_path / "a.json")) == [1]


def test_missing_files_of_a_list_are_named_and_skipped(folder, caplog):
    (folder / "list.txt").write_text("\n".join(["02.png", *(f"no{k}.png" for k in range(5))]))
    samples = opened(folder / "list.txt")
    assert levels(samples) == [2]
    assert samples.count == 1
    assert list(samples.skipped) == [f"no{k}.png" for k in range(5)]
    assert samples.skipped["no0.png"] == f"{folder}/list.txt names it, and it does not exist"
    assert f"{folder}/list.txt: 5 of its 6 files do not exist: no0.png, no1.png, no2.png and 2 more" in caplog.text


def test_names_in_a_folder_that_does_not_exist_are_not_looked_for_one_by_one(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("".join(f"/data/sets/coco/images/{number}.jpg\n" for number in range(100)))
    asked = []
    monkeypatch.setattr("os.path.isfile", lambda path: asked.append(path))
    with refused("names 100 files and none exists, such as /data/sets/coco/images/0.jpg; put them in one of these"):
        opened(tmp_path / "list.txt")
    assert len(asked) == 200  # by its last part, beside the list and in the working directory


def test_a_path_that_does_not_exist(tmp_path):
    with refused("nowhere: no such file or folder; check the path"):
        opened(tmp_path / "nowhere")
    with refused("no such file or folder"):
        opened("")


def test_a_folder_without_images(tmp_path):
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(DataError, match=r"has no images \(\.avif, .*\), videos, \.npy or \.npz files; give another"):
        opened(tmp_path)


def test_a_glob_without_matches(tmp_path):
    (tmp_path / "note.txt").write_text("")
    for pattern in ("*.png", "*"):
        with refused("matches no image, video, .npy or .npz file; check the pattern"):
            opened(f"{tmp_path}/{pattern}")


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "photo.heic").touch()
    with refused("photo.heic: unknown kind of file; give a folder or one of .avi, .avif, .bmp"):
        opened(tmp_path / "photo.heic")


def test_a_list_without_files(tmp_path):
    (tmp_path / "list.txt").write_text("\n# none\n")
    with refused("list.txt: names no files; write one path per line"):
        opened(tmp_path / "list.txt")


def test_a_list_of_missing_files_only(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\nb.png\na.png")
    with refused(f"names 2 files and none exists, such as a.png; put them in one of these folders: {tmp_path},"):
        opened(tmp_path / "list.txt")


def test_a_list_that_is_not_text(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match=r"cannot be read as a list of files \(.*\); write one path per line"):
        opened(tmp_path / "list.txt")


@pytest.mark.parametrize("text", ["[]", "{}", '{"images": [{"id": 1}]}', '{"images": 3}'])
def test_json_that_is_not_coco(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with refused("has no images with a file_name; give annotations in COCO's format"):
        opened(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["{", pytest.param("[" * 100_000, id="too deep")])
def test_what_is_no_json(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with refused(f"{tmp_path}/a.json: not JSON: "):
        opened(tmp_path / "a.json")


@pytest.mark.parametrize("folder", ["images\\", "C:\\data\\", "..\\..\\upload\\4\\", "/home/u/set/", "a/b/"])
@pytest.mark.parametrize("where", ["", "images"])
def test_names_that_were_written_elsewhere(tmp_path, caplog, folder, where):
    for level in (1, 2):
        paint(tmp_path / where / f"{level}.png", level)
    (tmp_path / "a.json").write_text(json.dumps({"images": [{"file_name": f"{folder}{k}.png"} for k in (1, 2)]}))
    (tmp_path / where / "list.txt").write_text("\n".join(f"{folder}{k}.png" for k in (1, 2)))
    assert sorted(levels(opened(tmp_path / "a.json"))) == [1, 2]
    assert ("they are taken by name, as" in caplog.text) == (not (folder == "images\\" and where))
    assert sorted(levels(opened(tmp_path / where / "list.txt"))) == [1, 2]


def test_names_of_which_the_folder_tells_one_from_the_other(tmp_path):
    for camera in ("left", "right"):
        paint(tmp_path / "set" / camera / "1.png")
    paint(tmp_path / "set" / "1.png")
    (tmp_path / "set" / "a.txt").write_text("/data/left/1.png\n/data/right/1.png")
    assert [file.parent.name for file in opened(tmp_path / "set" / "a.txt").files] == ["left", "right"]
    (tmp_path / "a.txt").write_text("/data/left/1.png\n/data/right/1.png")
    paint(tmp_path / "1.png")
    with refused("names 2 files and none exists"):
        opened(tmp_path / "a.txt")


def test_coco_annotations_without_their_images(tmp_path):
    (tmp_path / "a_val.json").write_text(json.dumps({"images": [{"file_name": "1.png"}]}))
    (tmp_path / "val").mkdir()
    with refused(f"names 1 file and none exists, such as 1.png; put them in one of these folders: {tmp_path}"):
        opened(tmp_path / "a_val.json")
