"""Exports of annotation tools, as each shapes them: the same four objects on one image, and all say the same."""

import json

import pytest
from annotation_files import BOXES, SIDE
from PIL import Image

from onnxq.evaluation.ground_truth import GroundTruth

WIDTH, HEIGHT = SIDE
NAMES = ("person", "traffic light")
CORNERS = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in BOXES]


def roboflow():
    """Beside the images; a group of all classes in front, ids from 0, empty outlines."""
    name = "street_jpg.rf.8c1d4e0f9a2b3c4d5e6f708192a3b4c5.jpg"
    kinds = [{"id": 0, "name": "street-objects", "supercategory": "none"}]
    kinds += [{"id": place, "name": each, "supercategory": "street-objects"} for place, each in enumerate(NAMES, 1)]
    return "_annotations.coco.json", name, {
        "info": {"year": "2024", "version": "3", "description": "Exported from a web tool", "date_created": ""},
        "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
        "categories": kinds,
        "images": [
            {"id": 0, "license": 1, "file_name": name, "height": HEIGHT, "width": WIDTH, "date_captured": "2024-05-01"}
        ],
        "annotations": [
            {"id": n, "image_id": 0, "category_id": 1 + n % 2, "bbox": box, "area": box[2] * box[3], "segmentation": [],
             "iscrowd": 0}
            for n, box in enumerate(BOXES)
        ],
    }  # fmt: skip


def cvat():
    """Ids from 1, the folder in front of names, attributes; masks of a brush are marked as crowds."""
    return "instances_default.json", "street.jpg", {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": n, "name": each, "supercategory": ""} for n, each in enumerate(NAMES, 1)],
        "images": [
            {"id": 1, "width": WIDTH, "height": HEIGHT, "file_name": "default/street.jpg", "license": 0,
             "flickr_url": "", "coco_url": "", "date_captured": 0}
        ],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 1 + n % 2, "segmentation": mask(box), "iscrowd": 1,
             "area": float(box[2] * box[3]), "bbox": [float(value) for value in box],
             "attributes": {"occluded": False, "rotation": 0.0}}
            for n, box in enumerate(BOXES)
        ],
    }  # fmt: skip


def mask(box):
    """A box as run lengths, column by column."""
    x, y, w, h = box
    counts = [x * HEIGHT]
    for _ in range(w):
        counts[-1] += y
        counts += [h, HEIGHT - y - h]
    counts[-1] += (WIDTH - x - w) * HEIGHT
    return {"counts": counts, "size": [HEIGHT, WIDTH]}


def label_studio():
    """Ids from 0, names with a prefix and backslashes, boxes that come out of percent."""
    return "result.json", "1f2e3d4c-street.jpg", {
        "images": [{"width": WIDTH, "height": HEIGHT, "id": 0, "file_name": "images\\1f2e3d4c-street.jpg"}],
        "categories": [{"id": n, "name": each} for n, each in enumerate(NAMES)],
        "annotations": [
            {"id": n, "image_id": 0, "category_id": n % 2, "segmentation": [], "ignore": 0, "iscrowd": 0,
             "bbox": [box[0] + 1e-13, box[1] - 1e-13, *map(float, box[2:])], "area": box[2] * box[3] * 1.0000000001}
            for n, box in enumerate(BOXES)
        ],
        "info": {"year": 2024, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""},
    }  # fmt: skip


def fiftyone():
    """Null where nothing is known; outlines beside boxes; images in `data`."""
    return "labels.json", "data/street.jpg", {
        "info": {"year": "", "version": "", "description": "Exported from FiftyOne", "contributor": "", "url": ""},
        "licenses": [],
        "categories": [{"id": n, "name": each, "supercategory": None} for n, each in enumerate(NAMES)],
        "images": [
            {"id": 1, "file_name": "street.jpg", "height": HEIGHT, "width": WIDTH, "license": None, "coco_url": None}
        ],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": n % 2, "bbox": box, "area": None, "iscrowd": None,
             "segmentation": [CORNERS[n]]}
            for n, box in enumerate(BOXES)
        ],
    }  # fmt: skip


def x_anylabeling():
    """A background category in front, outlines, no boxes for polygons."""
    return "annotations.json", "street.jpg", {
        "info": {"year": 2024, "version": "2.4", "description": "COCO Label Conversion", "contributor": "", "url": ""},
        "licenses": [{"id": 1, "name": "GNU", "url": ""}],
        "categories": [
            {"id": n, "name": each, "supercategory": ""} for n, each in enumerate(("_background_", *NAMES))
        ],
        "images": [{"id": 1, "file_name": "street.jpg", "width": WIDTH, "height": HEIGHT, "license": 0}],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 1 + n % 2, "bbox": box if n % 2 else [], "area": 0,
             "iscrowd": 0, "ignore": 0, "segmentation": [CORNERS[n]]}
            for n, box in enumerate(BOXES)
        ],
        "type": "instances",
    }  # fmt: skip


@pytest.mark.parametrize("export", [roboflow, cvat, label_studio, fiftyone, x_anylabeling])
def test_exports_say_the_same(tmp_path, export):
    name, image, content = export()
    (tmp_path / image).parent.mkdir(exist_ok=True)
    Image.new("RGB", SIDE).save(tmp_path / image)
    (tmp_path / name).write_text(json.dumps(content))
    truth = GroundTruth.load(tmp_path / name, (tmp_path / image).parent)
    assert [load().shape for load in truth.images.values()] == [(HEIGHT, WIDTH, 3)]
    objects = truth.coco.dataset["annotations"]
    assert [entry["bbox"] for entry in objects] == [pytest.approx(box) for box in BOXES]
    assert [truth.categories[entry["category_id"]] for entry in objects] == [NAMES[n % 2] for n in range(4)]
    assert [entry["area"] for entry in objects] == pytest.approx([w * h for _, _, w, h in BOXES])
    assert {entry["iscrowd"] for entry in objects} == {0}
