"""Compares a quantized model with its float model, without labels: `onnxq.compare FLOAT QUANTIZED --images DIR`.

Both models run on the same images. The result is the noise in each output and, along the graph, in each tensor that
both models compute, and the agreement on objects, with the float model's detections as the reference.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxq._text import plural
from onnxq.calibration import demo
from onnxq.cluster import open_pool
from onnxq.console.agreement import agreement_rows
from onnxq.console.numbers import decibels, finite, show_numbers
from onnxq.console.terminal import (
    ERR,
    Help,
    Parser,
    ProgressBar,
    add_settings,
    guarded,
    model_file,
    say,
    settings_of,
    warn,
)
from onnxq.console.used_files import UsedFiles
from onnxq.console.workers import add_workers
from onnxq.evaluation.agreement import Agreement
from onnxq.evaluation.comparison import DEFAULTS, Comparison, compare
from onnxq.evaluation.error_trace import worst_first
from onnxq.evaluation.predictor import Settings
from onnxq.evaluation.runtime_choice import RuntimeChoice
from onnxq.ir.files import write_json
from onnxq.runtime import RUNTIMES

__all__ = ["Comparison", "Settings", "compare", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(
        "python -m onnxq.compare",
        description="Compare a quantized model with its float model, without labels.",
        formatter_class=Help,
    )
    parser.add_argument("reference", metavar="FLOAT", type=model_file, help="the float model; demo for the demo model")
    parser.add_argument("model", metavar="QUANTIZED", type=model_file, help="the quantized model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="DIR", help="images: folder, glob, .txt list, COCO .json")
    source.add_argument("--demo", action="store_true", help="use the synthetic validation images of the demo model")
    parser.add_argument(
        "--worst", metavar="N", type=int, default=10, help="number of tensors to list, most added noise first (10)"
    )
    parser.add_argument("--draw", metavar="DIR", type=Path, help="draw the detections of both models side by side")
    add_workers(parser, "run the images")
    add_settings(parser, DEFAULTS)
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments, parser)
    if arguments.worst < 0:
        parser.error(f"--worst {arguments.worst}: expected 0 or more")
    if arguments.workers is not None and arguments.draw is not None:
        parser.error("--draw writes pictures on this machine, where the models then run: leave --workers out")
    return guarded(lambda: _compare(arguments, settings), arguments.debug, max_memory=arguments.max_memory)


def _compare(arguments: argparse.Namespace, settings: Settings) -> None:
    files = _used_files(arguments)
    files.check()
    with open_pool(arguments.workers) as pool, ProgressBar(arguments.quiet) as progress:
        result = compare(
            arguments.reference,
            arguments.model,
            arguments.images or demo.VALIDATION,
            settings=settings,
            draw=arguments.draw,
            progress=progress,
            pool=pool,
        )
    files.require_unchanged()
    _show_outputs(result)
    if result.agreement is not None:
        _show_agreement(result, result.agreement, settings)
    if arguments.worst and worst_first(result.traced):
        _show_trace(result, arguments.worst)
    if arguments.json is not None:
        write_json(arguments.json, _summary(result, arguments, settings))
    for warning in result.detector.warnings:
        warn(f"{arguments.reference.name}: {warning}")
    if not arguments.quiet:
        detector = result.detector
        unread = "; objects are not compared, because the output layout is unknown" if result.agreement is None else ""
        say(f"{detector.title}, {detector.preprocess.describe()}; {detector.why}{unread}", ERR)
        for path, choice in ((arguments.reference, result.reference_runtime), (arguments.model, result.runtime)):
            say(f"{path.name}: {choice.describe()}", ERR)
        if detector.outputs.assumed:
            say(f"boxes are compared with anchors that may differ from the model's: {detector.outputs.assumed}", ERR)


def _used_files(arguments: argparse.Namespace) -> UsedFiles:
    files = UsedFiles()
    files.reads_model("the float model", arguments.reference)
    files.reads_model("the quantized model", arguments.model)
    if arguments.images is not None:
        files.reads_data("an image", arguments.images, "val")
    files.writes("--json", arguments.json)
    files.writes_into("--draw", arguments.draw, "[0-9]*-*.jpg")
    return files


def _show_outputs(result: Comparison) -> None:
    order = "; objects that stand in another order count as noise" if result.detector.outputs.is_finished else ""
    title = f"signal to quantization noise, {_images(result.images)}, in {_runtimes(result)}{order}"
    show_numbers(title, "output", ["SQNR dB"], ((name, decibels(sqnr)) for name, sqnr in result.outputs.items()))


def _show_agreement(result: Comparison, agreement: Agreement, settings: Settings) -> None:
    scores = f", scores above {settings.confidence:g}" if result.detector.outputs.has_boxes else ""
    rows = agreement_rows(agreement, result.detector.outputs.task, "the float model", "the quantized model")
    if result.expected_ap_loss is not None:
        loss = result.expected_ap_loss
        rows.append(("loss of expected AP, in points", "-" if math.isnan(loss) else f"{loss:z.2f}"))
    show_numbers(f"agreement with the float model, {_images(result.images)}{scores}", "", [""], rows)


def _show_trace(result: Comparison, most: int) -> None:
    entering = worst_first(result.traced)
    shown = entering[:most]
    images = _images(result.traced_images)
    title = f"the {len(shown)} worst of {len(entering)} tensors with more noise than their inputs, {images}"
    rows = ((each.tensor, each.op, decibels(each.sqnr), _drop(each.drop), f"{100 * each.added:.3f}") for each in shown)
    show_numbers(title, "tensor", ["operator", "SQNR dB", "drop dB", "added %"], rows)


def _runtimes(result: Comparison) -> str:
    names = dict.fromkeys((result.reference_runtime.name, result.runtime.name))
    return " and ".join(RUNTIMES[name].described() for name in names)


def _drop(number: float) -> str:
    return f"{number:.1f}" if math.isfinite(number) else "-"


def _images(count: int) -> str:
    return f"{count} image{plural(count)}"


def _summary(result: Comparison, arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Return the content of `--json`, unrounded; None for numbers that are not finite."""
    numbers = result.agreement.numbers(result.detector.outputs.task) if result.agreement is not None else None
    return {
        "reference": str(arguments.reference),
        "model": str(arguments.model),
        "images": result.images,
        "settings": asdict(settings),
        "family": result.detector.family,
        "task": result.detector.outputs.task,
        "preprocess": result.detector.preprocess.name,
        **_as_json("reference_runtime", result.reference_runtime),
        **_as_json("runtime", result.runtime),
        "image_size": result.detector.size,
        "outputs": finite(result.outputs),
        "agreement": None if numbers is None else finite(numbers),
        **finite({"expected_ap_loss": result.expected_ap_loss}),
        "traced_images": result.traced_images,
        "tensors": [finite({**asdict(each), "only_moves": each.only_moves}) for each in result.traced],
    }


def _as_json(key: str, choice: RuntimeChoice) -> dict[str, str]:
    return {key: choice.name, f"{key}_version": RUNTIMES[choice.name].version()}


if __name__ == "__main__":
    raise SystemExit(main())
