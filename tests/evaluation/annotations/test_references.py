import pytest
from annotation_files import changed, dataset, written

from onnxq.errors import DataError
from onnxq.evaluation.annotations.coco_file import read_coco
from onnxq.evaluation.annotations.references import check_references


@pytest.fixture
def checked(tmp_path):
    """Return a function that reads and checks annotations."""

    def check(**parts):
        read = read_coco(written(tmp_path, dataset(**parts)))
        check_references(read)
        return read

    return check


def test_good_annotations_need_no_word(checked):
    assert checked().remarks == []


class TestImages:
    def test_an_id_of_two_files_is_refused(self, checked):
        images = changed(dataset()["images"], id=lambda each: 1 + each["id"] % 3)
        with pytest.raises(DataError, match=r"1 id of images stand.* 2 \(1\.png and 4\.png\); .*numbered anew"):
            checked(images=images)

    def test_an_image_that_is_listed_twice_is_one(self, checked):
        images = dataset()["images"]
        read = checked(images=[*images, images[2]])
        assert [image.id for image in read.images] == [1, 2, 3, 4]
        assert len(read.objects) == 16
        assert read.remarks == ["1 image listed more than once, such as 3.png: the objects of each are put together"]

    def test_objects_of_a_file_under_two_ids_are_put_together(self, checked):
        content = dataset()
        images = [*content["images"], {**content["images"][0], "id": 9}]
        entries = changed(content["annotations"], image_id=lambda e: 9 if e["id"] in (10, 11) else e["image_id"])
        read = checked(images=images, annotations=entries)
        assert [entry["image_id"] for entry in read.objects[:5]] == [1, 1, 1, 1, 2]


class TestObjects:
    def test_copies_count_once(self, checked):
        entries = dataset()["annotations"]
        read = checked(annotations=[*entries, *changed(entries[3:5], id=lambda each: each["id"] + 500)])
        assert len(read.objects) == len(read.labels) == 16
        assert read.remarks == ["2 objects are listed twice and counted once, such as annotation 513"]

    def test_objects_of_one_box_with_other_outlines_are_no_copies(self, checked):
        entries = dataset()["annotations"]
        assert len(checked(annotations=[*entries, {**entries[0], "keypoints": [1, 2, 2]}]).objects) == 17
        assert len(checked(annotations=[*entries, {**entries[0], "category_id": 2}]).objects) == 17

    def test_objects_of_unlisted_images_are_left_out(self, checked):
        read = checked(images=dataset()["images"][:3])
        assert len(read.objects) == 12
        assert read.remarks == ["4 objects of images that are not listed are left out, such as annotation 40"]

    def test_no_object_of_a_listed_image_is_refused(self, checked):
        entries = changed(dataset()["annotations"], image_id=lambda each: each["image_id"] + 700)
        with pytest.raises(DataError, match="no object belongs to a listed image, such as annotation 10"):
            checked(annotations=entries)

    def test_crowds_alone_are_objects(self, checked):
        read = checked(annotations=changed(dataset()["annotations"], iscrowd=1))
        assert {entry["iscrowd"] for entry in read.objects} == {0}
        assert "marked as crowds" in read.remarks[0]

    def test_some_crowds_stay(self, checked):
        entries = dataset()["annotations"]
        entries[0]["iscrowd"] = 1
        assert [entry["iscrowd"] for entry in checked(annotations=entries).objects[:2]] == [1, 0]


class TestCategories:
    def test_an_id_of_two_names_is_refused(self, checked):
        kinds = [*dataset()["categories"], {"id": 2, "name": "bus"}]
        with pytest.raises(DataError, match="category id 2 stands for 'traffic light' and 'bus'"):
            checked(categories=kinds)

    def test_a_category_listed_twice_is_one(self, checked):
        read = checked(categories=[*dataset()["categories"], {"id": 2, "name": "Traffic-Light"}])
        assert [each.name for each in read.categories] == ["person", "traffic light"]

    def test_a_name_of_two_ids_is_one_class(self, checked):
        entries = dataset()["annotations"]
        entries[0]["category_id"] = 5
        read = checked(categories=[*dataset()["categories"], {"id": 5, "name": "person"}], annotations=entries)
        assert [each.id for each in read.categories] == [1, 2]
        assert read.objects[0]["category_id"] == 1
        assert read.remarks == ["'person': listed as a category more than once, and taken as one class"]

    def test_a_group_gives_way_to_its_namesake(self, checked):
        kinds = [{"id": 0, "name": "person"}, *changed(dataset()["categories"], supercategory="person")]
        read = checked(categories=kinds)
        assert [each.id for each in read.categories] == [1, 2]
        assert read.remarks == []


def test_objects_of_one_box_that_differ_take_no_quadratic_time(tmp_path):
    # Each compared with each, these would take minutes.
    objects = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5, k]]}
        for k in range(20_000)
    ]
    read = read_coco(written(tmp_path, dataset(1, annotations=[*objects, objects[7]])))
    check_references(read)
    assert len(read.objects) == 20_000
    assert "1 object is listed twice and counted once, such as annotation 7" in read.remarks
