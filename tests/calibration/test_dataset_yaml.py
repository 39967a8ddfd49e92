"""The YAML of data sets, in the forms that tools write."""

import pytest
from calibration_data import levels, opened, paint, refused

from onnxq.calibration.dataset_yaml import read_dataset
from onnxq.calibration.find_files import find_files

CLASSES = ("cat", "no", "1")


@pytest.fixture
def data(tmp_path):
    """A data set of three training and two validation images; grey levels 1 to 5."""
    for level in (1, 2, 3):
        paint(tmp_path / "set" / "train" / "images" / f"{level}.png", level)
    for level in (4, 5):
        paint(tmp_path / "set" / "valid" / "images" / f"{level}.png", level)
    return tmp_path / "set"


def written(folder, text, name="data.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        "train: train/images\nval: valid/images\n",
        "path: .\ntrain: train/images # 3 images\nval:\n  - valid/images\n",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n",  # Roboflow
        'train: ["./train/images"]\nvalid: "valid/images/"\n',
        "train: /content/project/train/images\nval: /content/project/valid/images\n",
        "train: C:\\data\\set\\train\\images\nval: C:\\data\\set\\valid\\images\n",
        "path: ../set\ntrain: train\nval: valid\ndownload: |\n  import this\n",
        "path: ../elsewhere\ntrain: train/images\nvalidation: valid/images\n",
        "{train: train/images, val: valid/images}",
    ],
)
@pytest.mark.parametrize("name", ["data.yaml", "any.YML"])
def test_splits_are_found(data, text, name):
    path = written(data, text, name)
    found = read_dataset(path)
    assert [len(found.train), len(found.val)] == [1, 1]
    assert sorted(levels(opened(path))) == [1, 2, 3]
    assert sorted(file.name for file in find_files(str(path), split="val").files) == ["4.png", "5.png"]
    assert opened(path).description == f"3 images in {name}"


def test_under_the_path_of_the_file(data, tmp_path):
    (tmp_path / "config").mkdir()
    path = written(tmp_path / "config", "path: ../set\ntrain: train/images\n")
    found = read_dataset(path)
    assert (found.root.resolve(), found.train) == (data, (data / "train" / "images",))
    assert found.val == ()


def test_lists_and_several_folders(data):
    written(data, "train/images/1.png\n./valid/images/4.png\n", "train.txt")
    assert sorted(levels(opened(written(data, "train: train.txt\nval: valid\n")))) == [1, 4]
    assert sorted(levels(opened(written(data, "train: [train/images, valid/images]\n")))) == [1, 2, 3, 4, 5]


def test_what_is_found_elsewhere_is_said(data, caplog):
    read_dataset(written(data, "train: /content/set/train/images\n"))
    assert f"train is /content/set/train/images, which does not exist; {data}/train/images is taken" in caplog.text
    caplog.clear()
    read_dataset(written(data, "train: ../train/images\n"))
    read_dataset(written(data, "train: [train/images, gone]\n"))
    assert caplog.messages == [f"{data}/data.yaml: 1 of the 2 paths of train do not exist: gone"]


def test_a_split_that_is_not_asked_for_may_be_missing(data):
    path = written(data, "train: gone/images\nval: valid\n")
    assert len(find_files(str(path), split="val").files) == 2
    assert read_dataset(path, ("val",)).val
    assert read_dataset(path, ()).val == ()
    with refused("train is gone/images, which does not exist"):
        opened(path)


def test_images_of_all_splits_are_not_taken_for_one(data):
    paint(data / "images" / "9.png", 9)
    with refused("train is /content/set/none/images, which does not exist; put it in one of these folders"):
        opened(written(data, "train: /content/set/none/images\n"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[cat, no, 1]", CLASSES),
        ("{0: cat, 1: no, 2: 1}", CLASSES),
        ("\n  0: cat\n  2: '1'\n  1: no", CLASSES),
        ("\n- cat\n- no\n- 1", CLASSES),
        ("", ()),
    ],
)
def test_names(data, names, expected):
    assert read_dataset(written(data, f"train: train\nnames: {names}\nnc: 3\n")).names == expected


def test_more_than_nine_names_are_in_the_order_of_their_numbers(data):
    names = {number: f"class{number}" for number in range(12)}
    assert read_dataset(written(data, f"train: train\nnames: {names}\n")).names == tuple(names.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nc: 3\nnames: [a]\n", "names neither train nor val; give the YAML of a data set"),
        ("- a\n", "names neither train nor val"),
        ("train: [", "is not YAML: while parsing"),
        (f"train: {'a' * 300}\n", "aaa, which does not exist; put it in one of these folders: "),
        ("train: nowhere/images\n", "train is nowhere/images, which does not exist; put it in one of these folders: "),
        ("train: data.yaml\n", "data.yaml, the YAML of a data set; name the images, as a folder or list"),
        ("train: [train, ../set/data.yaml]\n", "set/data.yaml, the YAML of a data set"),
        ("train: {a: b}\n", "train is not a path or a list of paths"),
        ("train: train\nnames: {1: a, 2: b}\n", "names is neither a list nor numbered from 0 without gaps"),
        (
            "train: train\nkpt_shape: [17]\n",
            "kpt_shape is ['17']; it is the number of keypoints, and 2 or 3 values of each",
        ),
        ("train: train\nkpt_shape: [3, 17]\n", "kpt_shape is ['3', '17']; it is the number of keypoints"),
        ("train: train\nkpt_shape: 51\n", "kpt_shape is 51; it is the number of keypoints"),
        ("val: valid\n", "names no train split; give its images as a folder"),
    ],
)
def test_refused(data, text, message):
    with refused(message):
        opened(written(data, text))


def test_a_file_that_is_not_text(data):
    (data / "data.yaml").write_bytes(b"\xff\xfe\x80")
    with refused("data.yaml: is not YAML"):
        opened(data / "data.yaml")
