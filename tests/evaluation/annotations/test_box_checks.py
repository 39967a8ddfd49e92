import numpy as np
import pytest
from annotation_files import BOXES, SIDE, changed, dataset, written

from onnxq.errors import DataError
from onnxq.evaluation.annotations.box_checks import check_boxes
from onnxq.evaluation.annotations.coco_file import read_coco

WIDTH, HEIGHT = SIDE


def checked(tmp_path, turn=lambda box: box, size=(HEIGHT, WIDTH), **parts):
    """Check annotations of which the boxes have another form."""
    entries = parts.pop("annotations", dataset()["annotations"])
    read = read_coco(written(tmp_path, dataset(annotations=changed(entries, bbox=lambda e: turn(e["bbox"])), **parts)))
    check_boxes(read, {image.id: size for image in read.images})
    return read


def test_good_boxes_need_no_word(tmp_path):
    read = checked(tmp_path)
    assert (read.objects[0]["bbox"], read.remarks) == (BOXES[0], [])


@pytest.mark.parametrize(
    ("turn", "cause"),
    [
        (lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]], "they look like left, top, right, bottom"),
        (lambda b: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]], "they look like centre and size"),
        (lambda b: [b[1], b[0], b[3], b[2]], "they look like top, left, height, width"),
        (lambda b: [b[1], b[0], b[1] + b[3], b[0] + b[2]], "they look like top, left, bottom, right"),
        (lambda b: [3 * v for v in b], "they may have another form, or be those of larger images"),
        (lambda b: [b[0] * 5, b[1] * 10, b[2] * 5, b[3] * 10], "they look like thousandths of the image"),
    ],
)
def test_boxes_of_another_form_are_refused_with_the_cause(tmp_path, turn, cause):
    with pytest.raises(
        DataError, match=rf"annotation \d+ has the bbox .* of 100x200 .* \d+ of 16 boxes reach .*{cause}"
    ):
        checked(tmp_path, turn)


def test_swapped_width_and_height(tmp_path):
    boxes = [[10 + k, 2, 20, 60 + k] for k in range(20)] + [[150, 2 + k, 40, 70] for k in range(20)]
    parts = {"annotations": [{"id": k, "image_id": 1, "category_id": 1, "bbox": box} for k, box in enumerate(boxes)]}
    assert checked(tmp_path, **parts).remarks == []
    with pytest.raises(DataError, match=r"20 of 40 boxes reach .* they look like left, top, height, width"):
        checked(tmp_path, lambda box: [box[0], box[1], box[3], box[2]], **parts)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_shares_of_the_image_are_refused(tmp_path, share):
    count = [0]

    def turn(box):
        count[0] += 1
        is_share = count[0] <= 16 * share
        return [box[0] / WIDTH, box[1] / HEIGHT, box[2] / WIDTH, box[3] / HEIGHT] if is_share else box

    with pytest.raises(DataError, match=r"annotation 10 has the bbox .* 16 boxes are not beyond 1: .* shares of the"):
        checked(tmp_path, turn)


@pytest.mark.parametrize(("whole", "name"), [(100, "percent"), (1000, "thousandths")])
def test_shares_of_another_whole_on_larger_images(tmp_path, whole, name):
    with pytest.raises(DataError, match=rf"none of 16 boxes reaches beyond {whole} .* look like {name} of the image"):
        checked(
            tmp_path, lambda b: [b[0] / 200 * whole, b[1] / 100 * whole, b[2] / 200 * whole, b[3] / 100 * whole],
            size=(20 * whole, 30 * whole),
        )  # fmt: skip


def test_corners_of_many_sizes_and_numbers(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(20):
        width, height = map(int, rng.integers(30, 2000, 2))
        entries = []
        for number in range(int(rng.integers(4, 60))):
            x, y = rng.random(2) * 0.8 * (width, height)
            w, h = (rng.random(2) * 0.5 + 0.1) * (width - x, height - y)
            entries.append({"id": number, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h]})
        size = height, width
        assert checked(tmp_path, size=size, annotations=entries).remarks == []
        with pytest.raises(DataError, match=r"reach beyond their image|shares of the image"):
            checked(tmp_path, lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]], size=size, annotations=entries)


def test_boxes_a_little_beyond_the_image_are_cut(tmp_path):
    entries = dataset()["annotations"]
    entries[1]["bbox"] = [-6, 50, 60, 40]
    entries[2]["bbox"] = [150, 70, 60, 50]
    read = checked(tmp_path, annotations=entries)
    assert [read.objects[row]["bbox"] for row in (1, 2)] == [[0, 50, 54, 40], [150, 70, 50, 30]]
    assert read.remarks == [
        "2 boxes reach beyond the image, most of all that of annotation 12 by 20 px, and are cut there"
    ]


def test_two_pixels_beyond_the_image_are_left_as_they_are(tmp_path):
    entries = dataset()["annotations"]
    entries[1]["bbox"] = [142, -2, 60, 40]
    read = checked(tmp_path, annotations=entries)
    assert (read.objects[1]["bbox"], read.remarks) == ([142, -2, 60, 40], [])


def test_one_box_far_beyond_is_refused_among_few_and_left_out_among_many(tmp_path):
    content = dataset(100)
    content["annotations"][7]["bbox"] = [500, 500, 10, 10]
    few = [each for each in content["annotations"] if each["image_id"] < 5]
    with pytest.raises(DataError, match=r"annotation 23 has the bbox \[500, 500, 10, 10\] .* 1 of 16 boxes reach"):
        checked(tmp_path, annotations=few)
    read = checked(tmp_path, annotations=content["annotations"], images=content["images"])
    assert len(read.objects) == len(read.labels) == 399
    assert "annotation 23 by 410 px, and is cut there, and 1 of them, outside of it, left out" in read.remarks[0]


def test_pages_filled_by_their_object_may_reach_a_little_beyond(tmp_path):
    entries = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 202, 99]}]
    assert checked(tmp_path, annotations=entries).remarks == [
        "1 box reaches beyond the image, most of all that of annotation 1 by 3 px, and is cut there"
    ]


def test_images_without_a_size_are_not_checked(tmp_path):
    read = read_coco(written(tmp_path, dataset(annotations=changed(dataset()["annotations"], bbox=[0, 0, 9999, 9999]))))
    check_boxes(read, {})
    assert read.remarks == []
