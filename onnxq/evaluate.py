"""COCO average precision of detectors: `python -m onnxq.evaluate MODEL ... --annotations A.json --images DIR`.

Every picture is letterboxed, run by onnxruntime on the CPU, decoded as the model's family wants it, freed of duplicates
class by class, mapped back and scored by pycocotools, as YOLOv5 and Ultralytics measure their published numbers.
"""

import argparse
import contextlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from onnxq.coco import METRICS, GroundTruth, average_precisions
from onnxq.decode import MOST_DETECTIONS, class_count, decode, suppress
from onnxq.detector import FAMILIES, UNKNOWN, Detector, detect
from onnxq.errors import ConfigError, ModelError, OnnxqError
from onnxq.files import check_writable, replace_file
from onnxq.graph import load_proto
from onnxq.images import PREPROCESSES, read_image
from onnxq.progress import Progress, silent
from onnxq.session import cores, open_session, run
from onnxq.terminal import ERR, OUT, LogHandler, ProgressBar, guarded, image_size

_MOST_THREADS = 16  # each holds the activations of one run

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How detectors are evaluated.

    Attributes:
        family: one of `detector.FAMILIES`, or "auto".
        preprocess: a key of `images.PREPROCESSES`, or "auto".
        image_size: (height, width) in px, for models that take any.
        confidence: a (box, class) pair counts as a detection when its score is above this.
        iou: of two boxes of a class that overlap more than this, the one of lower score goes.
        max_images: evaluate on so many pictures, those of the lowest ids; None: on all.
        threads: pictures worked on at a time; 0: one per core.
    """

    family: str = "auto"
    preprocess: str = "auto"
    image_size: tuple[int, int] | None = None
    confidence: float = 0.001
    iou: float = 0.65
    max_images: int | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.confidence < 1:
            raise ConfigError(f"confidence {self.confidence} is not in 0 <= confidence < 1")
        if not 0 < self.iou <= 1:
            raise ConfigError(f"iou {self.iou} is not in 0 < iou <= 1")
        if self.max_images is not None and self.max_images < 1:
            raise ConfigError(f"max_images {self.max_images} is less than 1")
        if self.threads < 0:
            raise ConfigError(f"threads {self.threads} is less than 0")


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
        ModelError: the model cannot be read or run, is not recognised, or gives numbers that are not finite.
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
    network = Network.load(Path(model) if isinstance(model, str) else model, settings)
    categories = _category_ids(network, truth.categories)

    def find(path: Path) -> NDArray[np.float32]:
        return network.find(read_image(path), settings)

    detections: list[dict[str, Any]] = []
    executor = ThreadPoolExecutor(settings.threads or min(cores(), _MOST_THREADS))
    try:
        for done, (image, found) in enumerate(zip(truth.paths, executor.map(find, truth.paths.values())), start=1):
            detections += _records(image, found, categories, network)
            progress("evaluating", done, len(truth.paths))
    finally:
        executor.shutdown(cancel_futures=True)
    ap, ap50, ap75, ap_small, ap_medium, ap_large = average_precisions(truth, detections)
    return Scores(ap, ap50, ap75, ap_small, ap_medium, ap_large, len(truth.paths), network.detector)


def _records(
    image: int, found: NDArray[np.float32], categories: tuple[int, ...], network: "Network"
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


def _category_ids(network: "Network", categories: dict[int, str]) -> tuple[int, ...]:
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


@dataclass(frozen=True)
class Network:
    """A detector that is ready to run.

    Attributes:
        name: the file's, for messages.
        session: onnxruntime's; may be used from many threads at a time.
        batch: how many pictures the model wants at a time.
        detector: what the model was taken for; its family is known.
        classes: how many the model tells apart; None where its output does not show it.
    """

    name: str
    session: ort.InferenceSession
    batch: int
    detector: Detector
    classes: int | None

    @classmethod
    def load(cls, model: Path | onnx.ModelProto, settings: Settings) -> "Network":
        """Open a model, run it once on black and tell from its outputs' real shapes how to decode them.

        Raises:
            ModelError: the model cannot be read or run, or is not recognised.
            ConfigError: a setting does not fit the model.
        """
        name = model.name if isinstance(model, Path) else "the model"
        graph = load_proto(model) if isinstance(model, Path) else model

        def recognise(shapes: dict[str, tuple[int, ...]] | None) -> Detector:
            return detect(
                graph,
                image_size=settings.image_size,
                preprocess=settings.preprocess,
                family=settings.family,
                output_shapes=shapes,
            )

        with _named(name):
            guess = recognise(None)
            # A picture at a time in each of many threads scales better than many threads within a picture.
            session = open_session(model, threads=1)
            declared = next(i.shape[0] for i in session.get_inputs() if i.name == guess.input_name)
            batch = declared if isinstance(declared, int) else 1
            outputs = run(session, guess.feed(np.zeros((batch, 3, *guess.size), np.float32)))
            shapes = {output.name: array.shape for output, array in zip(session.get_outputs(), outputs)}
            detector = recognise(shapes)
            if detector.family == UNKNOWN:
                raise ModelError(f"is not recognised ({detector.why}): give --family, one of {', '.join(FAMILIES)}")
            classes = class_count(detector, shapes[detector.output_name])
        return cls(name, session, batch, detector, classes)

    def find(self, image: NDArray[np.uint8], settings: Settings) -> NDArray[np.float32]:
        """Detect the objects on a picture.

        Args:
            image: uint8 (height, width, 3), RGB.
            settings: of which `confidence` and `iou` count.

        Returns:
            float32 (n, 6): x1, y1, x2, y2 in px of the picture and inside it, score, class; best first.

        Raises:
            ModelError: the model cannot be run, or gives numbers that are not finite.
        """
        feed, placed = self.detector.preprocess(image, self.detector.size)
        boxes, scores, labels = decode(self._run(feed), self.detector, settings.confidence, self.classes)
        if self.detector.family == "end2end":
            kept = np.argsort(-scores, kind="stable")[:MOST_DETECTIONS]
        else:
            kept = suppress(boxes, scores, labels, settings.iou)
        height, width = image.shape[:2]
        inside = placed.undo(boxes[kept]).clip(0, np.array([width, height, width, height], np.float32))
        return np.column_stack([inside, scores[kept], labels[kept]]).astype(np.float32)

    def _run(self, feed: NDArray[np.float32]) -> NDArray[np.float32]:
        """The model's output for one picture, float32 (1, 3, height, width), without the batch axis."""
        output_name = self.detector.output_name
        with _named(self.name):
            batch = np.repeat(feed, self.batch, axis=0) if self.batch > 1 else feed
            [outputs] = run(self.session, self.detector.feed(batch), [output_name])
            output: NDArray[np.float32] = outputs[0].astype(np.float32, copy=False)
            if not np.isfinite(output).all():
                raise ModelError(f"output {output_name} has values that are NaN or infinite")
        return output


@contextlib.contextmanager
def _named(model: str) -> Iterator[None]:
    """Put the model's name before the messages of errors from within."""
    try:
        yield
    except OnnxqError as error:
        raise type(error)(f"{model}: {error}") from error


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        settings = Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    except ConfigError as error:
        parser.error(str(error))
    return guarded(lambda: _evaluate_all(arguments, settings), arguments.debug)


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = argparse.ArgumentParser(
        "python -m onnxq.evaluate", description="COCO average precision of ONNX detectors, side by side."
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path, help="others are compared to the first")
    parser.add_argument("--annotations", metavar="JSON", type=Path, required=True, help="COCO detection file")
    parser.add_argument("--images", metavar="DIR", type=Path, required=True, help="the folder with its pictures")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers and settings to this file as well")
    parser.add_argument("--family", choices=("auto", *FAMILIES), default=default.family, help="how outputs are decoded")
    parser.add_argument("--preprocess", choices=("auto", *PREPROCESSES), default=default.preprocess)
    parser.add_argument("--image-size", metavar="N|HxW", type=image_size, help="for models that take any size")
    parser.add_argument("--conf", dest="confidence", metavar="SCORE", type=float, default=default.confidence)
    parser.add_argument("--iou", type=float, default=default.iou, help="boxes that overlap more are duplicates")
    parser.add_argument("--max-images", metavar="N", type=int, help="evaluate on the first N pictures")
    parser.add_argument("--threads", metavar="N", type=int, default=default.threads, help="0: one per core")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the table and nothing else")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    return parser


def _evaluate_all(arguments: argparse.Namespace, settings: Settings) -> None:
    logging.basicConfig(format="%(message)s", handlers=[LogHandler()], force=True)
    if arguments.json is not None:
        check_writable(arguments.json)
    truth = GroundTruth.load(arguments.annotations, arguments.images, settings.max_images)
    results: list[tuple[Path, Scores]] = []
    try:
        for model in arguments.models:
            with ProgressBar(arguments.quiet) as progress:
                results.append((model, measure(model, truth, settings, progress)))
    finally:  # what was measured before an error is worth seeing
        if results:
            OUT.print(_table(results))
    if not arguments.quiet:
        for model, scores in results:
            kind = scores.detector
            ERR.print(f"{model.name}: {kind.family}, {kind.preprocess.describe()}; {kind.why}", markup=False)
    if arguments.json is not None:
        summary = _summary(results, arguments.annotations, settings)
        with replace_file(arguments.json) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _table(results: list[tuple[Path, Scores]]) -> Table:
    first = results[0][1]
    caption = f"COCO AP in percent, {first.images} images"
    table = Table(
        box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, caption=caption, caption_justify="left"
    )
    table.add_column("model", overflow="fold")
    for title in (*METRICS.values(), "change"):
        table.add_column(title, justify="right", no_wrap=True)
    for model, scores in results:
        numbers = [getattr(scores, metric) for metric in METRICS]
        change = "" if scores is first else f"{scores.ap - first.ap:+.2f}"
        table.add_row(Text(model.name), *("-" if math.isnan(n) else f"{n:.2f}" for n in numbers), change)
    return table


def _summary(results: list[tuple[Path, Scores]], annotations: Path, settings: Settings) -> dict[str, Any]:
    """What `--json` writes: the table, unrounded, and what it was made with; null where the table has a dash."""
    first = results[0][1]
    return {
        "annotations": str(annotations),
        "images": first.images,
        "settings": asdict(settings),
        "models": [
            {
                "model": str(model),
                "family": scores.detector.family,
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
