"""COCO average precision of detectors: `python -m onnxq.evaluate MODEL ... --annotations A.json --images DIR`.

Each image is letterboxed, run on the CPU in the runtime that the model is for, decoded for the model's head family,
reduced by NMS per class, mapped back to the original image and scored by pycocotools: the procedure of the numbers that
YOLOv5 and Ultralytics publish. Of models with masks or keypoints, the boxes are scored.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.text import Text

from onnxq._text import plural
from onnxq.calibration.dataset_yaml import SUFFIXES
from onnxq.cluster import open_pool
from onnxq.console.terminal import (
    ERR,
    OUT,
    Help,
    NumberTable,
    Parser,
    ProgressBar,
    add_max_detections,
    add_settings,
    guarded,
    model_file,
    say,
    settings_of,
    warn,
)
from onnxq.console.used_files import UsedFiles, place
from onnxq.console.workers import add_workers
from onnxq.evaluation.average_precision import (
    PrecisionSummary,
    Scores,
    evaluate,
    measure_precision,
    summarize,
)
from onnxq.evaluation.ground_truth import GroundTruth, demo_ground_truth
from onnxq.evaluation.plausibility import doubts
from onnxq.evaluation.predictor import Settings
from onnxq.evaluation.runtime_choice import choose_runtimes
from onnxq.evaluation.scoring.averages import METRICS
from onnxq.ir.files import write_json
from onnxq.ir.storage import require_file

__all__ = ["GroundTruth", "Scores", "Settings", "evaluate", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments, parser)
    is_data_set = arguments.annotations is not None and arguments.annotations.suffix.lower() in SUFFIXES
    if (arguments.images is None) != arguments.demo and not is_data_set:
        parser.error("--annotations JSON needs --images DIR; --annotations data.yaml and --demo need no images")
    return guarded(lambda: _evaluate(arguments, settings), arguments.debug, max_memory=arguments.max_memory)


def _parser() -> Parser:
    parser = Parser(
        "python -m onnxq.evaluate",
        description="COCO average precision of ONNX detectors, side by side.",
        formatter_class=Help,
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        type=model_file,
        help="model files, or demo for the demo model; the others are compared with the first",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--annotations",
        metavar="FILE",
        type=Path,
        help="COCO detection annotations, .json, or data.yaml, of which the val split is used",
    )
    source.add_argument("--demo", action="store_true", help="use the synthetic validation images of the demo model")
    parser.add_argument(
        "--images", metavar="DIR", type=place, help="folder with the images of the annotations; data.yaml names its own"
    )
    add_max_detections(parser)
    add_workers(parser, "run the images")
    add_settings(parser, Settings())
    return parser


def _evaluate(arguments: argparse.Namespace, settings: Settings) -> None:
    files = _used_files(arguments)
    files.check()
    for model in arguments.models:
        require_file(model)
    results: list[tuple[Path, Scores]] = []
    annotations = arguments.annotations or "demo"
    choices = choose_runtimes(arguments.models, settings.runtime)
    try:
        with open_pool(arguments.workers) as pool, ProgressBar(arguments.quiet) as progress:
            progress("loading", 0, 0)
            if arguments.demo:
                truth = demo_ground_truth(settings.max_images)
            else:
                truth = GroundTruth.load(arguments.annotations, arguments.images, settings.max_images)
            for model, choice in zip(arguments.models, choices, strict=True):
                chosen = replace(settings, runtime=choice.name)
                first = results[0][1].detector if results else None
                results.append((model, measure_precision(model, truth, chosen, progress, first, pool)))
    except BaseException:
        if results:  # show what was measured before the error
            _print(results, annotations, settings)
        raise
    files.require_unchanged()
    _print(results, annotations, settings)
    if arguments.json is not None:
        write_json(arguments.json, asdict(summarize(results, annotations, settings)))
    if not arguments.quiet:
        for (model, scores), choice in zip(results, choices, strict=True):
            detector = scores.detector
            say(f"{model.name}: {detector.title}, {detector.preprocess.describe()}; {detector.why}", ERR)
            say(f"{model.name}: {scores.classes}", ERR)
            say(f"{model.name}: {choice.describe()}", ERR)


def _used_files(arguments: argparse.Namespace) -> UsedFiles:
    files = UsedFiles()
    for model in arguments.models:
        files.reads_model("a model", model)
    if arguments.annotations is not None:
        files.reads("the file of annotations", [arguments.annotations])
        files.reads_data("an image", arguments.images or arguments.annotations, "val")
        if arguments.annotations.suffix.lower() in SUFFIXES:
            files.reads_labels("the labels of an image")
    files.writes("--json", arguments.json)
    return files


def _print(results: Sequence[tuple[Path, Scores]], annotations: Path | str, settings: Settings) -> None:
    OUT.print(table(summarize(results, annotations, settings)))
    say_doubts(results, annotations, settings)


def say_doubts(results: Sequence[tuple[Path, Scores]], annotations: Path | str, settings: Settings) -> None:
    """Warn of what makes the numbers other than they seem, and of numbers that cannot be true; each once."""
    remarks: dict[str, list[str]] = {}
    for model, scores in results:
        for remark in scores.remarks:
            remarks.setdefault(remark, []).append(model.name)
    for remark, models in remarks.items():
        warn(f"{', '.join(models)}: {remark}")
    for doubt in doubts(summarize(results, annotations, settings).models):
        warn(doubt)


def table(summary: PrecisionSummary) -> NumberTable:
    """Return the average precision of each model as a table for the terminal; masks and keypoints have rows below."""
    kinds = dict.fromkeys(model.measured for model in summary.models)
    others = dict.fromkeys(name for model in summary.models for name in model.others)
    what = ", ".join((*kinds, *others))
    caption = f"COCO AP of {what} in percent, {summary.images} image{plural(summary.images)}, in {summary.runtimes}"
    several = len({model.runtime for model in summary.models}) > 1
    rows = NumberTable("model", (*METRICS.values(), "change", *(["runtime"] if several else [])), caption)
    first = summary.models[0]
    for name in ("", *others):
        for model in summary.models:
            metrics = model.others.get(name, ()) if name else model.metrics
            if not metrics:
                continue
            start = first.others.get(name, (None,))[0] if name else first.AP
            title = Path(model.model).name + (f" {name}" if name else "")
            change = "" if model is first else _signed(_difference(metrics[0], start))
            cells = ("-" if n is None else f"{n:.2f}" for n in metrics)
            rows.add_row(Text(title), *cells, change, *([model.runtime] if several else []))
    return rows


def _difference(value: float | None, start: float | None) -> float | None:
    return None if value is None or start is None else value - start


def _signed(change: float | None) -> str:
    return "-" if change is None else f"{change:+z.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
