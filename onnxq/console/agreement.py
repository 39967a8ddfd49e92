"""The agreement of two models as rows of a table."""

import math

from onnxq.evaluation.agreement import Agreement

_PERCENT = {"found_again", "top1", "top5"}

_TITLES = {
    "objects": "objects of {first}",
    "found_again": "found again, same class, IoU 0.5 or more",
    "iou": "mean IoU of these",
    "score_difference": "mean score difference of these",
    "new": "objects of {second} only",
    "mask_iou": "mean mask IoU",
    "keypoint_distance": "mean keypoint distance, in box sizes",
    "keypoint_similarity": "mean object keypoint similarity",
    "top1": "same top-1 class",
    "top5": "top-1 class of {first} in the top 5",
}


def agreement_rows(agreement: Agreement, task: str, first: str, second: str) -> list[tuple[str, str]]:
    """Return a title and a number for each count, share and mean that a task has.

    Args:
        agreement: of two models.
        task: of their outputs.
        first, second: what to call them: "the float model", "the quantized model".
    """
    return [
        (_TITLES[key].format(first=first, second=second), _formatted(number, key in _PERCENT))
        for key, number in agreement.numbers(task).items()
    ]


def _formatted(number: float, percent: bool) -> str:
    if math.isnan(number):
        return "-"
    if isinstance(number, int):
        return str(number)
    return f"{100 * number:.1f} %" if percent else f"{number:.4f}"
