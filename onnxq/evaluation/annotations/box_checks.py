"""Checks that boxes are what they are taken for: left, top, width and height in px of their image."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq._text import size_text
from onnxq.errors import DataError
from onnxq.evaluation.annotations.records import Annotations, Size

_SLACK = 2.0
"""Boxes may reach this far beyond their image, px: annotators round, and draw over the edge."""

_WRONG_SHARE = 0.005
"""Of many boxes, this share may be half beyond the image by an annotator's mistake."""

_CARELESS, _CARELESS_SHARE = 0.02, 0.2
"""Boxes that careless annotators draw reach beyond the image by this share of its side, in this share of cases."""

_MANY_SHARES = 0.05
"""Share of boxes within the first pixel of their image from which on they are not taken as px."""

_MANY = 10
"""Boxes that reach beyond their image, from which on another form that all of them fit is no coincidence."""

_FIT = 0.99
"""Share of the boxes that another form must explain to be named as the cause."""

_DOUBT = 1e-6
"""Greatest probability of a coincidence that is dismissed."""


@dataclass(frozen=True)
class _Boxes:
    """Boxes with the sizes of their images.

    Attributes:
        values: float64 (n, 4), as the annotations have them.
        limits: float64 (n, 2), width and height of the image of each, px.
        rows: rows of the objects.
    """

    values: NDArray[np.float64]
    limits: NDArray[np.float64]
    rows: NDArray[np.intp]


def check_boxes(read: Annotations, sizes: Mapping[int, Size]) -> None:
    """Refuse boxes that are not left, top, width, height in px, and cut those that reach a little beyond their image.

    Args:
        read: the annotations; boxes are cut, and a remark is added.
        sizes: (height, width) in px by image id; images that are absent are not checked.

    Raises:
        DataError: boxes are shares of the image, or reach so far beyond it that they must have another form.
    """
    boxes = _boxes_of(read, sizes)
    if not len(boxes.rows):
        return
    _refuse_shares(read, boxes)
    beyond = _excess(boxes.values, boxes.limits)
    inside = _share_inside(boxes)
    gross = inside < 0.5
    far = np.asarray(beyond > np.maximum(_SLACK, _CARELESS * boxes.limits.max(axis=1)))
    is_suspicious = bool((inside < 0.75).any()) or far.mean() > _CARELESS_SHARE
    is_other = _is_corners(boxes) or (np.count_nonzero(far) >= _MANY and bool(_other_form(boxes)))
    if gross.mean() > _WRONG_SHARE or (is_suspicious and is_other):
        _refuse(read, boxes, beyond, sizes)
    _refuse_corner_of_image(read, boxes)
    _cut(read, boxes, beyond, inside)


def _boxes_of(read: Annotations, sizes: Mapping[int, Size]) -> _Boxes:
    rows = [row for row, entry in enumerate(read.objects) if entry["image_id"] in sizes]
    values = np.array([read.objects[row]["bbox"] for row in rows], np.float64).reshape(-1, 4)
    limits = np.array([sizes[read.objects[row]["image_id"]][::-1] for row in rows], np.float64).reshape(-1, 2)
    return _Boxes(values, limits, np.array(rows, np.intp))


def _refuse_shares(read: Annotations, boxes: _Boxes) -> None:
    tiny = np.logical_and((boxes.values <= 1).all(axis=1), (boxes.limits > 2).all(axis=1))
    if tiny.mean() >= _MANY_SHARES:
        row = int(boxes.rows[tiny.argmax()])
        raise DataError(
            f"{read.source}: {read.labels[row]} has the bbox {_text(read, row)}, and {int(tiny.sum())} of {len(tiny)} "
            "boxes are not beyond 1: they look like shares of the image; COCO's boxes are left, top, width, height in "
            "px"
        )


def _excess(values: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far boxes reach beyond their images, px, float64 (n,); negative if they do not."""
    ends = values[:, :2] + values[:, 2:]
    return np.asarray(np.concatenate([-values[:, :2], ends - limits], axis=1).max(axis=1))


def _share_inside(boxes: _Boxes) -> NDArray[np.float64]:
    """The share of each box that is inside its image, 0 to 1, float64 (n,); 1 for a box without an area."""
    start, size = boxes.values[:, :2], boxes.values[:, 2:]
    common = (np.minimum(start + size, boxes.limits) - np.maximum(start, 0)).clip(0).prod(axis=1)
    area = size.prod(axis=1)
    return np.where(area > 0, common / np.where(area > 0, area, 1), 1.0)


def _is_corners(boxes: _Boxes) -> bool:
    """Whether all boxes can be left, top, right, bottom."""
    return _fits(np.concatenate([boxes.values[:, :2], boxes.values[:, 2:] - boxes.values[:, :2]], axis=1), boxes.limits)


def _fits(values: NDArray[np.float64], limits: NDArray[np.float64]) -> bool:
    """Whether boxes of left, top, width, height lie in their images, but for a few."""
    fits = (_excess(values, limits) <= _SLACK) & (values[:, 2:] > 0).all(axis=1)
    return bool(fits.mean() >= _FIT)


def _refuse(read: Annotations, boxes: _Boxes, beyond: NDArray[np.float64], sizes: Mapping[int, Size]) -> None:
    worst = int(beyond.argmax())
    row = int(boxes.rows[worst])
    size = sizes[read.objects[row]["image_id"]]
    count = int((beyond > _SLACK).sum())
    raise DataError(
        f"{read.source}: {read.labels[row]} has the bbox {_text(read, row)} on an image of {size_text(size)} (height x "
        f"width), and {count} of {len(beyond)} boxes reach beyond their image: {_cause(boxes)}; COCO's boxes are left, "
        "top, width, height in px"
    )


def _other_form(boxes: _Boxes) -> str:
    """Return the form that the boxes have if it is another one, in words; empty if none is found."""
    values, limits = boxes.values, boxes.limits
    if _is_corners(boxes):
        return "left, top, right, bottom"
    if _fits(np.concatenate([values[:, :2] - values[:, 2:] / 2, values[:, 2:]], axis=1), limits):
        return "centre and size"
    if _fits(values[:, [1, 0, 3, 2]], limits):
        return "top, left, height, width"
    if _fits(np.concatenate([values[:, [1, 0]], values[:, [3, 2]] - values[:, [1, 0]]], axis=1), limits):
        return "top, left, bottom, right"
    return "left, top, height, width" if _fits(values[:, [0, 1, 3, 2]], limits) else ""


def _cause(boxes: _Boxes) -> str:
    """Return what the boxes look like, in words."""
    values = boxes.values
    form = _other_form(boxes)
    if form:
        return f"they look like {form}"
    for whole, name in ((100, "percent"), (1000, "thousandths")):
        if values.min() >= -1 and 0.8 * whole < (values[:, :2] + values[:, 2:]).max() <= 1.02 * whole:
            return f"they look like {name} of the image"
    return "they may have another form, or be those of larger images"


def _refuse_corner_of_image(read: Annotations, boxes: _Boxes) -> None:
    """Refuse boxes that all lie in the same upper left part of larger images, as percent do."""
    ends = boxes.values[:, :2] + boxes.values[:, 2:]
    for whole, name in ((100, "percent"), (1000, "thousandths")):
        if (boxes.limits < 1.5 * whole).any() or ends.max() > 1.02 * whole:
            continue
        if np.log(whole / boxes.limits).sum() < np.log(_DOUBT):
            row = int(boxes.rows[ends.max(axis=1).argmax()])
            raise DataError(
                f"{read.source}: {read.labels[row]} has the bbox {_text(read, row)}, and none of {len(ends)} boxes "
                f"reaches beyond {whole} on larger images: they look like {name} of the image; COCO's boxes are left, "
                "top, width, height in px"
            )


def _cut(read: Annotations, boxes: _Boxes, beyond: NDArray[np.float64], inside: NDArray[np.float64]) -> None:
    far = np.flatnonzero(beyond > _SLACK)
    if not len(far):
        return
    lost = {int(boxes.rows[each]) for each in far if not inside[each]}
    for each in far:
        entry = read.objects[int(boxes.rows[each])]
        start, end = boxes.values[each, :2], boxes.values[each, :2] + boxes.values[each, 2:]
        start, end = start.clip(0, boxes.limits[each]), end.clip(0, boxes.limits[each])
        entry["bbox"] = [*start.tolist(), *(end - start).tolist()]
    worst = int(boxes.rows[beyond.argmax()])
    reach, are = ("box reaches", "is") if len(far) == 1 else ("boxes reach", "are")
    left_out = f", and {len(lost)} of them, outside of it, left out" if lost else ""
    read.remarks.append(
        f"{len(far)} {reach} beyond the image, most of all that of {read.labels[worst]} by {beyond.max():.0f} px, and "
        f"{are} cut there{left_out}"
    )
    if lost:
        read.keep([row for row in range(len(read.objects)) if row not in lost])


def _text(read: Annotations, row: int) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in read.objects[row]["bbox"]) + "]"
