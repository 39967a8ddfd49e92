"""What annotation files say: images, categories and objects, as the readers of all formats give them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Size = tuple[int, int]
"""Height and width of an image, px."""


@dataclass(frozen=True)
class ImageRecord:
    """An image that annotations name.

    Attributes:
        id: its number.
        name: the file, as the annotations write it.
        size: (height, width) in px, as the annotations state it; None if they do not.
    """

    id: int
    name: str
    size: Size | None = None


@dataclass(frozen=True)
class Category:
    """A class of objects.

    Attributes:
        id: its number.
        name: its name.
        parent: name of the category that it belongs to; may be empty.
    """

    id: int
    name: str
    parent: str = ""


@dataclass
class Annotations:
    """What an annotation file says.

    Attributes:
        source: the file.
        images: the images, by rising id.
        categories: the categories, by rising id.
        objects: objects as records of COCO: `image_id`, `category_id`, `bbox` (left, top, width, height in px), `area`,
            `iscrowd`, and `segmentation` and `keypoints` if the file has them.
        labels: for each object what messages call it.
        remarks: what was mended, a sentence each.
        unlabelled: ids of the images without a label file.
    """

    source: Path
    images: list[ImageRecord]
    categories: list[Category]
    objects: list[dict[str, Any]]
    labels: list[str]
    remarks: list[str] = field(default_factory=list)
    unlabelled: frozenset[int] = frozenset()

    def keep(self, rows: list[int]) -> None:
        """Keep only these objects."""
        self.objects = [self.objects[row] for row in rows]
        self.labels = [self.labels[row] for row in rows]

    @property
    def owned(self) -> set[int]:
        """Ids of the categories that have objects."""
        return {entry["category_id"] for entry in self.objects}
