"""COCO average precision of detectors: `python -m onnxq.evaluate MODEL ... --annotations A.json --images DIR`.

Every picture is letterboxed, run by onnxruntime on the CPU, decoded as the model's family wants it, freed of duplicates
class by class, mapped back and scored by pycocotools, as YOLOv5 and Ultralytics measure their published numbers. Of
models that give masks or keypoints too, it is the boxes that are scored.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.text import Text

from onnxq import demo
from onnxq.coco import METRICS, GroundTruth, average_precisions
from onnxq.detector import Detector
from onnxq.errors import ConfigError, ModelError
from onnxq.files import check_writable, write_json
from onnxq.network import Network, Settings
from onnxq.progress import Progress, silent
from onnxq.sources import plural
from onnxq.terminal import ERR, OUT, Columns, Help, ProgressBar, add_settings, guarded, say, settings_of


@dataclass(frozen=True)
class Scores:
    """COCO's averages over IoU 0.50 to 0.95, at 0.50, at 0.75, and by the size of objects, in percent.

    A number is nan when there is no object to find. `detector` is what the model was taken for.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    images: int
    detector: Detector


def evaluate(
    model: str | Path | onnx.ModelProto,
    annotations: str | Path,
    images: str | Path,
    *,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Scores:
    """Measure a detector's average precision on COCO data.

    Args:
        model: a file, or a model in memory.
        annotations: COCO's JSON.
        images: the folder with its pictures.
        settings: defaults to `Settings()`.
        progress: told after each picture.

    Raises:
        ModelError: the model cannot be read or run, is not recognised, has no upright boxes or none that its file tells
            exactly, or gives numbers that are not finite.
        DataError: annotations or pictures are missing or unreadable.
        ConfigError: a setting does not fit the model, or its classes do not fit the categories.
    """
    settings = settings or Settings()
    truth = GroundTruth.load(Path(annotations), Path(images), settings.max_images)
    return measure(model, truth, settings, progress)


def measure(
    model: str | Path | onnx.ModelProto, truth: GroundTruth, settings: Settings, progress: Progress = silent
) -> Scores:
    """As `evaluate`, with the ground truth loaded already."""
    progress("loading", 0, 0)
    network, categories = _opened(model, truth, settings)

    def find(look: Callable[[], NDArray[np.uint8]]) -> NDArray[np.float32]:
        return network.find(look(), settings)

    detections: list[dict[str, Any]] = []
    for done, (image, found) in enumerate(
        zip(truth.pictures, settings.in_parallel(find, truth.pictures.values())), start=1
    ):
        detections += _records(image, found, categories, network)
        progress("evaluating", done, len(truth.pictures))
    progress("scoring", 0, 0)
    ap, ap50, ap75, ap_small, ap_medium, ap_large = average_precisions(truth, detections)
    return Scores(ap, ap50, ap75, ap_small, ap_medium, ap_large, len(truth.pictures), network.detector)


def check(model: str | Path | onnx.ModelProto, truth: GroundTruth, settings: Settings) -> None:
    """Find out before long work whether a model can be measured; it is run once, on black.

    Raises:
        ModelError, ConfigError: as `evaluate` does, but for what shows on pictures only.
    """
    _opened(model, truth, settings)


def _opened(
    model: str | Path | onnx.ModelProto, truth: GroundTruth, settings: Settings
) -> tuple[Network, tuple[int, ...]]:
    """The model, ready to run, and the category id of each of its classes."""
    network = Network.load(Path(model) if isinstance(model, str) else model, settings)
    reason = network.detector.head.why_no_precision
    if reason:
        raise ModelError(f"{network.name}: {reason}; python -m onnxq.compare needs no AP")
    return network, _category_ids(network, truth.categories)


def _records(
    image: int, found: NDArray[np.float32], categories: tuple[int, ...], network: Network
) -> list[dict[str, Any]]:
    unknown = set(found[:, 5].astype(int)) - set(range(len(categories)))
    if unknown:
        raise ModelError(f"{network.name}: finds class {min(unknown)}, but classes are 0 to {len(categories) - 1}")
    return [
        {
            "image_id": image,
            "category_id": categories[int(label)],
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "score": score,
            "iscrowd": 0,
        }
        for left, top, right, bottom, score, label in found.astype(float).tolist()
    ]


def _category_ids(network: Network, categories: dict[int, str]) -> tuple[int, ...]:
    """The category id of each of the model's classes: by name where all names are categories, else by order."""
    ids = {name: number for number, name in categories.items()}
    names = network.detector.names
    if names and len(set(names)) == len(names) and set(names) <= set(ids):
        return tuple(ids[name] for name in names)
    if network.classes not in (None, len(categories)):
        raise ConfigError(
            f"{network.name}: has {network.classes} classes, but the annotations have {len(categories)} categories, "
            "and its names metadata does not name them"
        )
    return tuple(categories)


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
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path, help="others are compared to the first")
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
                truth = demo.ground_truth(settings.max_images)
            else:
                truth = GroundTruth.load(arguments.annotations, arguments.images, settings.max_images)
            for model in arguments.models:
                results.append((model, measure(model, truth, settings, progress)))  # noqa: PERF401
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
                "task": scores.detector.head.task,
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
