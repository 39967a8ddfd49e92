"""Which files a data source stands for."""

import json

import pytest
from calibration_data import levels, opened, paint, refused

from onnxq.errors import DataError


def test_subfolders_count_only_where_the_folder_has_no_images(tmp_path):
    paint(tmp_path / "a" / "1.JPG", 1)
    paint(tmp_path / "b" / "c" / "2.png", 2)
    assert levels(opened(tmp_path)) == [1, 2]
    paint(tmp_path / "3.png", 3)
    assert levels(opened(tmp_path)) == [3]


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


def test_a_path_that_does_not_exist(tmp_path):
    with refused("nowhere: no such file or folder; check the path"):
        opened(tmp_path / "nowhere")
    with refused("no such file or folder"):
        opened("")


def test_a_folder_without_images(tmp_path):
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(DataError, match=r"has no images \(\.bmp, .*\), \.npy or \.npz files; give another folder"):
        opened(tmp_path)


def test_a_glob_without_matches(tmp_path):
    (tmp_path / "note.txt").write_text("")
    for pattern in ("*.png", "*"):
        with refused("matches no image, .npy or .npz file; check the pattern"):
            opened(f"{tmp_path}/{pattern}")


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "film.mp4").touch()
    with refused("film.mp4: unknown kind of file; give a folder or one of .bmp"):
        opened(tmp_path / "film.mp4")


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


@pytest.mark.parametrize(
    "text",
    ["{", pytest.param("[" * 100_000, id="too deep"), "[]", "{}", '{"images": [{"id": 1}]}', '{"images": 3}'],
)
def test_json_that_is_not_coco(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with refused("has no images with a file_name; give annotations in COCO's format"):
        opened(tmp_path / "a.json")


def test_coco_annotations_without_their_images(tmp_path):
    (tmp_path / "a_val.json").write_text(json.dumps({"images": [{"file_name": "1.png"}]}))
    (tmp_path / "val").mkdir()
    with refused(f"names 1 file and none exists, such as 1.png; put them in one of these folders: {tmp_path}"):
        opened(tmp_path / "a_val.json")
