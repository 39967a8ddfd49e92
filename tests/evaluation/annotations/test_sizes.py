import pytest
from annotation_files import BOXES, SIDE, changed, dataset, written

from onnxq.errors import DataError
from onnxq.evaluation.annotations.coco_file import read_coco
from onnxq.evaluation.annotations.image_files import PictureSize
from onnxq.evaluation.annotations.sizes import reconcile_sizes

WIDTH, HEIGHT = SIDE


def reconciled(tmp_path, upright, stored=None, **parts):
    """The sizes, the annotations, and the remarks, if the files have other sizes than stated."""
    read = read_coco(written(tmp_path, dataset(**parts)))
    sizes = reconcile_sizes(read, {image.id: PictureSize(upright, stored or upright) for image in read.images})
    return sizes, read


def stating(height, width):
    return {"images": changed(dataset()["images"], width=width, height=height)}


def scaled(factor):
    return {"annotations": changed(dataset()["annotations"], bbox=lambda each: [v * factor for v in each["bbox"]])}


@pytest.mark.parametrize("off", [0, 1, -2])
def test_equal_sizes(tmp_path, off):
    sizes, read = reconciled(tmp_path, (HEIGHT + off, WIDTH))
    assert set(sizes.values()) == {(HEIGHT + off, WIDTH)}
    assert read.remarks == []
    assert read.objects[0]["bbox"] == BOXES[0]


def test_sizes_that_are_not_stated(tmp_path):
    sizes, read = reconciled(tmp_path, (50, 60), **stating(None, None))
    assert (sizes[1], read.remarks) == ((50, 60), [])


class TestResized:
    @pytest.mark.parametrize("factor", [0.5, 2, 0.75])
    def test_boxes_of_the_stated_size_are_scaled(self, tmp_path, factor):
        entries = changed(dataset()["annotations"], segmentation=[[10, 20, 30, 40, 50, 60]], keypoints=[8, 4, 2])
        sizes, read = reconciled(tmp_path, (int(HEIGHT * factor), int(WIDTH * factor)), annotations=entries)
        assert read.objects[1]["bbox"] == [value * factor for value in BOXES[1]]
        assert read.objects[1]["area"] == pytest.approx(BOXES[1][2] * BOXES[1][3] * factor**2)
        assert read.objects[1]["segmentation"] == [[value * factor for value in (10, 20, 30, 40, 50, 60)]]
        assert read.objects[1]["keypoints"] == [8 * factor, 4 * factor, 2]
        assert sizes[1] == (int(HEIGHT * factor), int(WIDTH * factor))
        assert "4 images were resized after they were annotated, such as 1.png from 100x200" in read.remarks[0]

    @pytest.mark.parametrize("factor", [0.5, 2])
    def test_boxes_of_the_files_stay(self, tmp_path, factor):
        stale = stating(int(HEIGHT / factor), int(WIDTH / factor))
        _, read = reconciled(tmp_path, (HEIGHT, WIDTH), **stale)
        assert read.objects[1]["bbox"] == BOXES[1]
        assert read.remarks[0].endswith("the boxes fit the files")

    def test_boxes_that_fit_neither(self, tmp_path):
        with pytest.raises(DataError, match=r"4 images, such as 1.png, are 100x200 in the annotations .* fit neither"):
            reconciled(tmp_path, (50, 100), **scaled(1.5))

    def test_boxes_that_do_not_tell(self, tmp_path):
        [entry] = dataset()["annotations"][:1]
        with pytest.raises(DataError, match="the boxes do not tell which they belong to"):
            reconciled(tmp_path, (90, 180), annotations=[entry])

    def test_another_shape_is_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"1.png is 100x200 in the annotations and 100x100 in the file"):
            reconciled(tmp_path, (100, 100))

    def test_images_without_objects_do_not_matter(self, tmp_path):
        _, read = reconciled(tmp_path, (10, 10), annotations=[])
        assert read.remarks == []


class TestTurned:
    def test_boxes_of_the_image_as_it_is_stored_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"as they are stored, 100x200, but their EXIF .* as 200x100: remove"):
            reconciled(tmp_path, (WIDTH, HEIGHT), (HEIGHT, WIDTH))

    def test_boxes_of_the_image_as_it_is_shown_stay(self, tmp_path):
        sizes, read = reconciled(tmp_path, (HEIGHT, WIDTH), (WIDTH, HEIGHT), **stating(WIDTH, HEIGHT))
        assert (sizes[1], read.objects[1]["bbox"]) == ((HEIGHT, WIDTH), BOXES[1])
        assert "without the turn of their EXIF orientation" in read.remarks[0]
