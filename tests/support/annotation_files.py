"""Annotation files in COCO's format, as tools and people write them."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

SIDE = (200, 100)  # width and height of each image

BOXES = [[20, 10, 60, 30], [110, 50, 80, 40], [5, 60, 50, 35], [120, 5, 40, 30]]


def dataset(count: int = 4, **parts: Any) -> dict[str, Any]:
    """Return annotations of so many images with four objects each, two of each category."""
    made: dict[str, Any] = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": SIDE[0], "height": SIDE[1]}
            for number in range(1, count + 1)
        ],
        "annotations": [
            {
                "id": 10 * image + place, "image_id": image, "category_id": 1 + place % 2, "bbox": box,
                "area": box[2] * box[3], "iscrowd": 0,
            }
            for image in range(1, count + 1) for place, box in enumerate(BOXES)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "traffic light"}],
    }  # fmt: skip
    return {**made, **parts}


def changed(entries: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    """Return the entries with other values: constants, or functions of an entry."""
    return [
        {**each, **{key: make(each) if callable(make) else make for key, make in values.items()}} for each in entries
    ]


def written(folder: Path, content: object) -> Path:
    """Write annotations to a file."""
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def with_images(folder: Path, content: dict[str, Any], size: tuple[int, int] = SIDE) -> tuple[Path, Path]:
    """Write annotations and a grey image for each file name; return the paths of both."""
    for image in content["images"]:
        target = folder / "images" / image["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 90, 90)).save(target)
    return written(folder, content), folder / "images"
