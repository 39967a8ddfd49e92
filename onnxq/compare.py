"""What quantization changed, without labels: `python -m onnxq.compare FLOAT QUANTIZED --images DIR`.

Both models see the same pictures. Told is how much noise there is in each output and, along the graph, in each tensor
that both compute; and how well they agree on the objects, with those of the float model for the truth.
"""

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from onnxq._files import check_writable, write_json
from onnxq._text import plural
from onnxq.calibration import demo
from onnxq.console.terminal import (
    ERR,
    OUT,
    Columns,
    Help,
    ProgressBar,
    add_settings,
    guarded,
    model_file,
    say,
    settings_of,
)
from onnxq.evaluation.agreement import Agreement
from onnxq.evaluation.comparison import DEFAULTS, Comparison, compare
from onnxq.evaluation.error_trace import worst_first
from onnxq.evaluation.predictor import Settings

__all__ = ["Comparison", "Settings", "compare", "main"]

_PERCENT = {"found_again", "top1", "top5"}

_TITLES = {
    "objects": "objects that the float model finds",
    "found_again": "found again, same class, IoU 0.5 or more",
    "iou": "their mean IoU",
    "score_difference": "their mean difference of scores",
    "new": "objects that the float model does not find",
    "mask_iou": "mean IoU of the masks of the found",
    "keypoint_distance": "mean distance of keypoints, in sizes of the box",
    "keypoint_similarity": "mean object keypoint similarity",
    "top1": "same likeliest class",
    "top5": "likeliest class among the five likeliest",
}


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m onnxq.compare",
        description="What quantization changed in a model, measured without labels.",
        formatter_class=Help,
    )
    parser.add_argument("reference", metavar="FLOAT", type=model_file, help="the model that was quantized")
    parser.add_argument("model", metavar="QUANTIZED", type=model_file, help="what came of it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="DIR", help="pictures: folder, glob, .txt list, COCO .json")
    source.add_argument("--demo", action="store_true", help="pictures that onnxq paints, for models/demo.onnx")
    parser.add_argument("--worst", metavar="N", type=int, default=10, help="tensors to list, most noise first (10)")
    parser.add_argument("--draw", metavar="DIR", type=Path, help="draw what both find, side by side")
    add_settings(parser, DEFAULTS)
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments, parser)
    if arguments.worst < 0:
        parser.error(f"--worst {arguments.worst}: give 0 or more")
    return guarded(lambda: _compare(arguments, settings), arguments.debug)


def _compare(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.json is not None:
        check_writable(arguments.json)
    with ProgressBar(arguments.quiet) as progress:
        found = compare(
            arguments.reference,
            arguments.model,
            arguments.images or demo.VALIDATION,
            settings=settings,
            draw=arguments.draw,
            progress=progress,
        )
    _show_outputs(found)
    if found.agreement is not None:
        _show_agreement(found, found.agreement, settings)
    if arguments.worst and worst_first(found.traced):
        _show_trace(found, arguments.worst)
    if not arguments.quiet:
        kind = found.detector
        unread = "; objects are not compared, as the outputs are not understood" if found.agreement is None else ""
        say(f"{kind.title}, {kind.preprocess.describe()}; {kind.why}{unread}", ERR)
        if kind.outputs.assumed:
            say(f"boxes are compared with anchors that may be others than the model's: {kind.outputs.assumed}", ERR)
    if arguments.json is not None:
        write_json(arguments.json, _summary(found, arguments, settings))


def _show(title: str, first: str, others: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Columns(first, others)
    for name, *cells in rows:
        table.add_row(Text(name), *cells)
    say(title)
    OUT.print(table)


def _show_outputs(found: Comparison) -> None:
    title = f"signal to quantization noise, {_pictures_of(found.images)}"
    _show(title, "output", ["SQNR dB"], ((name, f"{sqnr:.1f}") for name, sqnr in found.outputs.items()))


def _show_agreement(found: Comparison, agreement: Agreement, settings: Settings) -> None:
    scores = f", scores above {settings.confidence:g}" if found.detector.outputs.has_boxes else ""
    numbers = agreement.numbers(found.detector.outputs.task).items()
    rows = ((_TITLES[key], _said(number, key in _PERCENT)) for key, number in numbers)
    _show(f"agreement with the float model, {_pictures_of(found.images)}{scores}", "", [""], rows)


def _said(number: float, percent: bool) -> str:
    if math.isnan(number):
        return "-"
    if isinstance(number, int):
        return str(number)
    return f"{100 * number:.1f} %" if percent else f"{number:.4f}"


def _show_trace(found: Comparison, most: int) -> None:
    entering = worst_first(found.traced)
    shown = entering[:most]
    pictures = _pictures_of(found.traced_images)
    title = f"the {len(shown)} worst of {len(entering)} tensors with more noise than their inputs, {pictures}"
    rows = (
        (each.tensor, each.op, f"{each.sqnr:.1f}", _decibels(each.drop), f"{100 * each.added:.3f}") for each in shown
    )
    _show(title, "tensor", ["operator", "SQNR dB", "drop dB", "added %"], rows)


def _decibels(number: float) -> str:
    return f"{number:.1f}" if math.isfinite(number) else "-"


def _pictures_of(count: int) -> str:
    return f"{count} picture{plural(count)}"


def _summary(found: Comparison, arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What `--json` writes: everything, unrounded; null for what is infinite or has nothing to average."""
    numbers = found.agreement.numbers(found.detector.outputs.task) if found.agreement is not None else None
    return {
        "reference": str(arguments.reference),
        "model": str(arguments.model),
        "images": found.images,
        "settings": asdict(settings),
        "family": found.detector.family,
        "task": found.detector.outputs.task,
        "preprocess": found.detector.preprocess.name,
        "image_size": found.detector.size,
        "outputs": _finite(found.outputs),
        "agreement": None if numbers is None else _finite(numbers),
        "traced_images": found.traced_images,
        "tensors": [_finite({**asdict(each), "only_moves": each.only_moves}) for each in found.traced],
    }


def _finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}


if __name__ == "__main__":
    raise SystemExit(main())
