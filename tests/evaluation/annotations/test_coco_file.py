import json
import math
from pathlib import Path

import pytest
from annotation_files import BOXES, changed, dataset, written

from onnxq.errors import DataError
from onnxq.evaluation.annotations.coco_file import read_coco


def read(folder: Path, **parts: object):
    return read_coco(written(folder, dataset(**parts)))


def outline(entry):
    x, y, w, h = entry["bbox"]
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def test_what_the_file_says(tmp_path):
    found = read(tmp_path, count=2)
    assert [(image.id, image.name, image.size) for image in found.images] == [
        (1, "1.png", (100, 200)), (2, "2.png", (100, 200)),
    ]  # fmt: skip
    assert [(each.id, each.name) for each in found.categories] == [(1, "person"), (2, "traffic light")]
    assert [entry["bbox"] for entry in found.objects[:4]] == BOXES
    assert found.labels[0] == "annotation 10"
    assert found.remarks == []


def test_objects_without_an_id_are_called_by_their_place(tmp_path):
    entries = [{key: value for key, value in each.items() if key != "id"} for each in dataset()["annotations"]]
    assert read(tmp_path, annotations=entries).labels[2] == "annotation number 3"


@pytest.mark.parametrize(
    "parts",
    [{"images": {}}, {"images": [3]}, {"annotations": [[]]}, {"annotations": "x"}, {"categories": [None]}],
    ids=str,
)
def test_entries_that_are_no_objects(tmp_path, parts):
    with pytest.raises(DataError, match=r"not COCO detection annotations: .*(no object with keys|is no list)"):
        read(tmp_path, **parts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"segmentation": "x"}, "segmentation is 'x', neither polygons nor a mask"),
        ({"segmentation": {"counts": [1]}}, "the mask has the size None"),
        ({"segmentation": {"size": [3, -1], "counts": [1]}}, r"the mask has the size \[3, -1\]"),
        (
            {"segmentation": {"size": [3, 3], "counts": [1]}},
            "the runs of the mask add up to 1, not to the 3 x 3 pixels",
        ),
        ({"segmentation": {"size": [3, 3], "counts": [-1, 10]}}, "the runs of the mask add up to 9"),
        ({"segmentation": {"size": [3, 3], "counts": "oo"}}, "cut short"),
        ({"segmentation": {"size": [3, 3], "counts": "\x00"}}, "no text of run lengths"),
        ({"segmentation": {"size": [3, 3], "counts": 9}}, "no whole numbers"),
        ({"segmentation": {"size": [2**20, 2**20], "counts": [2**40]}}, "the runs of the mask add up to"),
        ({"keypoints": [1, 2]}, "keypoints are no list of x, y and visibility"),
        ({"keypoints": [1, "2", 2]}, "keypoints are no list"),
        ({"keypoints": {"x": 1}}, "keypoints are no list"),
        ({"keypoints": [1, math.nan, 2]}, "keypoints are no list"),
        ({"iscrowd": 2}, "iscrowd is 2; it is 1 for a crowd, and otherwise 0"),
        ({"iscrowd": -(2**63)}, "iscrowd is -9223372036854775808"),
        ({"iscrowd": 0.5}, "iscrowd is 0.5"),
        ({"iscrowd": "yes"}, "iscrowd is 'yes'"),
        ({"iscrowd": [1]}, r"iscrowd is \[1\]"),
    ],
)
def test_parts_that_cannot_be_read(tmp_path, values, message):
    with pytest.raises(DataError, match=f"not COCO detection annotations: annotation 10: .*{message}"):
        read(tmp_path, annotations=changed(dataset()["annotations"], **values))


@pytest.mark.parametrize(
    ("given", "expected"), [(0, 0), (1, 1), (None, 0), ("", 0), (True, 1), (False, 0), ("1", 1), ("0", 0), (1.0, 1)]
)
def test_a_crowd(tmp_path, given, expected):
    entries = dataset()["annotations"]
    entries[0]["iscrowd"] = given
    crowds = [entry["iscrowd"] for entry in read(tmp_path, annotations=entries).objects]
    assert crowds == [expected] + [0] * (len(entries) - 1)


def test_objects_to_ignore_are_told_as_they_count(tmp_path):
    entries = changed(dataset()["annotations"], ignore=0)
    for row, (ignored, crowd) in enumerate([(1, 0), (True, 0), (1, 1)]):
        entries[row].update(ignore=ignored, iscrowd=crowd)
    found = read(tmp_path, annotations=entries)
    assert found.remarks == [
        "2 objects marked `ignore`, which must be found as others, as in pycocotools (iscrowd 1 leaves them out), "
        "such as annotation 10"
    ]


def test_attributes_of_another_kind_are_left_out(tmp_path):
    assert read(tmp_path, annotations=changed(dataset()["annotations"], attributes=[1])).objects


class TestBoxes:
    @pytest.mark.parametrize("empty", [[], None, "", [0, 0, 0, 0]])
    def test_an_empty_box_is_taken_from_the_outline(self, tmp_path, empty):
        entries = changed(dataset()["annotations"], segmentation=outline)
        entries[5]["bbox"] = empty
        found = read(tmp_path, annotations=entries)
        assert found.objects[5]["bbox"] == BOXES[1]
        assert found.remarks == ["1 object without a box, which is taken from the outline, such as annotation 21"]

    def test_a_missing_box_is_taken_from_the_outline(self, tmp_path):
        entries = changed(dataset()["annotations"], segmentation=outline)
        for entry in entries:
            del entry["bbox"]
        found = read(tmp_path, annotations=entries)
        assert [entry["bbox"] for entry in found.objects[:4]] == BOXES
        assert len(found.remarks) == 1

    @pytest.mark.parametrize(
        ("box", "words"),
        [
            ([], r"the bbox of annotation 21 is \[\], and it has no outline"),
            (None, "the bbox of annotation 21 is None, and it has no outline"),
            ([1, 2, 3], r"annotation 21: bbox \[1, 2, 3\] does not have four numbers"),
            ([1, 2, 3, 4, 30], "annotation 21: bbox .* does not have four numbers"),
            ({"x": 1}, "annotation 21: bbox .* does not have four numbers"),
            ([1, 2, "wide", 4], "annotation 21: bbox .* are no numbers"),
            ([1, 2, math.inf, 4], "annotation 21: bbox .* is not finite"),
            ([50, 20, -30, 10], "annotation 21: bbox .* has a negative width or height"),
        ],
    )
    def test_what_is_no_box_is_refused_with_its_number(self, tmp_path, box, words):
        entries = dataset()["annotations"]
        entries[5]["bbox"] = box
        with pytest.raises(DataError, match=words):
            read(tmp_path, annotations=entries)

    def test_a_box_without_width_is_told_and_stays(self, tmp_path):
        entries = dataset()["annotations"]
        entries[5]["bbox"] = [10, 10, 0, 20]
        found = read(tmp_path, annotations=entries)
        assert found.objects[5]["bbox"] == [10, 10, 0, 20]
        assert "annotation 21" in found.remarks[0]


class TestAreas:
    @pytest.mark.parametrize("area", [None, "", "large", math.nan, 0, -3])
    def test_what_is_no_area_is_that_of_the_box(self, tmp_path, area):
        found = read(tmp_path, annotations=changed(dataset()["annotations"], area=area))
        assert [entry["area"] for entry in found.objects[:2]] == [1800, 3200]
        assert found.remarks == ["16 objects without an area, which is taken from the box, such as annotation 10"]

    def test_an_area_that_is_left_out_needs_no_word(self, tmp_path):
        entries = [{key: value for key, value in each.items() if key != "area"} for each in dataset()["annotations"]]
        found = read(tmp_path, annotations=entries)
        assert (found.objects[0]["area"], found.remarks) == (1800, [])


class TestIds:
    def test_text(self, tmp_path):
        content = dataset()
        found = read(
            tmp_path,
            images=changed(content["images"], id=lambda each: f"img_{each['id']}"),
            annotations=changed(content["annotations"], image_id=lambda each: f"img_{each['image_id']}"),
        )
        assert {entry["image_id"] for entry in found.objects} == {image.id for image in found.images}

    @pytest.mark.parametrize("name", ["{}.png", "{}"])
    def test_file_names_in_place_of_ids(self, tmp_path, name):
        entries = changed(dataset()["annotations"], image_id=lambda each: name.format(each["image_id"]))
        images = changed(dataset()["images"], id=lambda each: each["id"] + 500)
        found = read(tmp_path, images=images, annotations=entries)
        if name == "{}":  # these are numbers, but of no image
            assert [entry["image_id"] for entry in found.objects[:5]] == [501] * 4 + [502]
        assert {entry["image_id"] for entry in found.objects} == {image.id for image in found.images}
        assert "the name of a file" in found.remarks[0]

    @pytest.mark.parametrize("part", ["images", "annotations", "categories"])
    def test_fractions_are_refused(self, tmp_path, part):
        key = {"images": "id", "annotations": "image_id", "categories": "id"}[part]
        content = dataset()
        with pytest.raises(DataError, match=r"has the id .*, a fraction"):
            read(tmp_path, **{part: changed(content[part], **{key: lambda each: each[key] / 2})})

    @pytest.mark.parametrize("category", [7, "bus"])
    def test_a_category_that_is_not_listed(self, tmp_path, category):
        entries = dataset()["annotations"]
        entries[6]["category_id"] = category
        with pytest.raises(DataError, match=r"annotation 22 is of category .*, and `categories` lists 1, 2: list the"):
            read(tmp_path, annotations=entries)

    @pytest.mark.parametrize("key", ["image_id", "category_id"])
    def test_what_is_missing_is_told_with_the_number(self, tmp_path, key):
        entries = dataset()["annotations"]
        del entries[6][key]
        with pytest.raises(DataError, match=f"'{key}' of annotation 22 is missing"):
            read(tmp_path, annotations=entries)


class TestImages:
    @pytest.mark.parametrize(("width", "height"), [(None, None), (0, 0), ("?", 3), (-1, 5), (math.inf, 3)])
    def test_sizes_that_are_none(self, tmp_path, width, height):
        assert read(tmp_path, images=changed(dataset()["images"], width=width, height=height)).images[0].size is None

    @pytest.mark.parametrize("name", [None, "", 3])
    def test_file_names_that_are_none(self, tmp_path, name):
        with pytest.raises(DataError, match="image 1 has the file_name"):
            read(tmp_path, images=changed(dataset()["images"], file_name=name))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"image": "a.jpg", "annotations": []}], "Label Studio or CreateML: export the annotations as COCO"),
        ({"version": "5", "shapes": [], "imagePath": "a.jpg"}, "'images' is missing; LabelMe and X-AnyLabeling"),
        ({"samples": []}, "export it with fo.types.COCODetectionDataset"),
        ({"_via_img_metadata": {}}, "a project of VIA"),
        (3, "not COCO detection annotations"),
    ],
)
def test_files_of_other_tools(tmp_path, content, words):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        read_coco(tmp_path / "a.json")
