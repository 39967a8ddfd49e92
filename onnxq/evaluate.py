"""COCO average precision of detectors: `python -m onnxq.evaluate MODEL ... --annotations A.json --images DIR`.

Every picture is letterboxed, run by onnxruntime on the CPU, decoded as the model's family wants it, freed of duplicates
class by class, mapped back and scored by pycocotools, as YOLOv5 and Ultralytics measure their published numbers. Of
models that give masks or keypoints too, it is the boxes that are scored.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from onnxq._files import check_writable, write_json
from onnxq._text import plural
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
from onnxq.evaluation import ground_truth
from onnxq.evaluation.average_precision import METRICS, Scores, evaluate, measure_precision
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.predictor import Settings

__all__ = ["GroundTruth", "Scores", "Settings", "evaluate", "main"]

# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments, parser)
    if (arguments.images is None) != arguments.demo:
        parser.error("--annotations JSON goes with --images DIR, and --demo without")
    return guarded(lambda: _evaluate_all(arguments, settings), arguments.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m onnxq.evaluate",
        description="COCO average precision of ONNX detectors, side by side.",
        formatter_class=Help,
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", type=model_file, help="others are compared to the first")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--annotations", metavar="JSON", type=Path, help="COCO detection file")
    source.add_argument("--demo", action="store_true", help="pictures that onnxq paints, for models/demo.onnx")
    parser.add_argument("--images", metavar="DIR", type=Path, help="the folder with the pictures of the file")
    add_settings(parser, Settings())
    return parser


def _evaluate_all(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.json is not None:
        check_writable(arguments.json)
    results: list[tuple[Path, Scores]] = []
    try:
        with ProgressBar(arguments.quiet) as progress:
            progress("loading", 0, 0)
            if arguments.demo:
                truth = ground_truth.demo_ground_truth(settings.max_images)
            else:
                truth = GroundTruth.load(arguments.annotations, arguments.images, settings.max_images)
            for model in arguments.models:
                results.append((model, measure_precision(model, truth, settings, progress)))  # noqa: PERF401
    finally:  # what was measured before an error is worth seeing
        if results:
            OUT.print(table(results))
    if not arguments.quiet:
        for model, scores in results:
            kind = scores.detector
            say(f"{model.name}: {kind.title}, {kind.preprocess.describe()}; {kind.why}", ERR)
    if arguments.json is not None:
        write_json(arguments.json, summary(results, arguments.annotations or "demo", settings))


Results = Sequence[tuple[Path, Scores]]
"""What was measured of each model; of the first, which the others are compared to, first."""


def table(results: Results) -> Columns:
    """What was measured, for the terminal."""
    first = results[0][1]
    caption = f"COCO AP of boxes in percent, {first.images} image{plural(first.images)}"
    made = Columns("model", (*METRICS.values(), "change"), caption)
    for model, scores in results:
        numbers = [getattr(scores, metric) for metric in METRICS]
        change = "" if scores is first else f"{scores.ap - first.ap:+.2f}"
        made.add_row(Text(model.name), *("-" if math.isnan(n) else f"{n:.2f}" for n in numbers), change)
    return made


def summary(results: Results, annotations: Path | str, settings: Settings) -> dict[str, Any]:
    """What `--json` writes, and reports hold: the table, unrounded, and what it was made with; None for a dash."""
    first = results[0][1]
    return {
        "annotations": str(annotations),
        "images": first.images,
        "settings": asdict(settings),
        "models": [
            {
                "model": str(model),
                "family": scores.detector.family,
                "task": scores.detector.outputs.task,
                "preprocess": scores.detector.preprocess.name,
                "image_size": scores.detector.size,
                **{title: _number(getattr(scores, metric)) for metric, title in METRICS.items()},
                "change": _number(scores.ap - first.ap),
            }
            for model, scores in results
        ],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


if __name__ == "__main__":
    raise SystemExit(main())
