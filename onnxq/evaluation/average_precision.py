"""COCO average precision of a detector."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.evaluation.classes import ClassMatch, match_classes
from onnxq.evaluation.ground_truth import GroundTruth, build_index
from onnxq.evaluation.predictor import FEW, Found, Picture, Predictor, Settings
from onnxq.evaluation.scoring.averages import Rules, averages
from onnxq.evaluation.scoring.displaced import displaced_remark
from onnxq.evaluation.scoring.kinds import Kind, kinds_of, records
from onnxq.progress import Progress, silent
from onnxq.remote.address import Location, location
from onnxq.runtime import RUNTIMES
from onnxq.runtime.pool import IN_PROCESS, Finished, Pool
from onnxq.yolo.detector import Detector

LEAST_AP = 1.0
"""AP, percent, that a trained detector reaches on images of its kind."""

_IMAGES_FOR_ORDER = 100
"""Images on which detections are scored without classes."""

_LEAST_WITHOUT_CLASSES = 10.0
"""AP50 without classes, percent, from which on the classes may be at fault."""


_MISTAKEN = 5
"""How many times greater AP50 without classes is if names do not tell the right classes."""


@dataclass(frozen=True)
class Scores:
    """COCO average precision in percent; nan if there is no object to find.

    Attributes:
        ap, ap50, ap75: averages over IoU 0.50 to 0.95, at 0.50, and at 0.75.
        ap_small, ap_medium, ap_large: averages over objects of a size.
        images: number of images.
        detector: how inputs were prepared and outputs were decoded.
        runtime: key in `onnxq.runtime.RUNTIMES` of what ran the model.
        classes: how the model's classes were matched with the categories.
        remarks: what to know of the numbers, a sentence each.
        measured: what the averages are of: "boxes" or "rotated boxes".
        others: the same averages of "masks" or "keypoints", in the order of `scoring.averages.METRICS`.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    images: int
    detector: Detector
    runtime: str
    classes: str = ""
    remarks: tuple[str, ...] = ()
    measured: str = "boxes"
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelPrecision:
    """Average precision of one of several models, in percent; None if there is no object to find.

    Attributes:
        model: path of its file.
        family: head family.
        task: task of the detector.
        preprocess: name of the preprocessing.
        image_size: height and width of the input, px.
        runtime: key in `onnxq.runtime.RUNTIMES` of what ran the model.
        runtime_version: its version.
        AP, AP50, AP75: averages over IoU 0.50 to 0.95, at 0.50 and at 0.75, as COCO names them.
        APs, APm, APl: averages over small, medium and large objects.
        change: difference of AP to the first model.
        classes: how its classes were matched with the categories.
        measured: what the averages are of: `boxes` or `rotated boxes`.
        others: the same averages, in the same order, of `masks` or `keypoints`.
    """

    model: str
    family: str
    task: str
    preprocess: str
    image_size: tuple[int, int]
    runtime: str
    runtime_version: str
    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    change: float | None
    classes: str = ""
    measured: str = "boxes"
    others: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[float | None, ...]:
        """The averages in the order of `METRICS`."""
        return self.AP, self.AP50, self.AP75, self.APs, self.APm, self.APl


@dataclass(frozen=True)
class PrecisionSummary:
    """Average precision of several models on the same images.

    Attributes:
        annotations: COCO file, or `demo`.
        images: number of images.
        settings: how the models were run.
        models: the models; the first is the one that others are compared with.
    """

    annotations: str
    images: int
    settings: Settings
    models: tuple[ModelPrecision, ...]

    @property
    def runtimes(self) -> str:
        """Title and version of the runtimes, in the order of the models."""
        return ", ".join(RUNTIMES[name].described() for name in dict.fromkeys(each.runtime for each in self.models))


def summarize(results: Sequence[tuple[Path, Scores]], annotations: Path | str, settings: Settings) -> PrecisionSummary:
    """Summarize the scores of several models, at least one, beside those of the first.

    Args:
        results: path and scores of each model.
        annotations: the COCO file, or a name of the data.
        settings: how the models were run.
    """
    first = results[0][1]
    return PrecisionSummary(
        annotations=str(annotations),
        images=first.images,
        settings=settings,
        models=tuple(
            ModelPrecision(
                model=str(path),
                family=scores.detector.family,
                task=scores.detector.outputs.task,
                preprocess=scores.detector.preprocess.name,
                image_size=scores.detector.size,
                runtime=scores.runtime,
                runtime_version=RUNTIMES[scores.runtime].version(),
                AP=_number(scores.ap),
                AP50=_number(scores.ap50),
                AP75=_number(scores.ap75),
                APs=_number(scores.ap_small),
                APm=_number(scores.ap_medium),
                APl=_number(scores.ap_large),
                change=_number(scores.ap - first.ap),
                classes=scores.classes,
                measured=scores.measured,
                others={name: tuple(map(_number, numbers)) for name, numbers in scores.others.items()},
            )
            for path, scores in results
        ),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def evaluate(
    model: str | Path | onnx.ModelProto,
    annotations: str | Path,
    images: str | Location | None = None,
    *,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Scores:
    """Measure a detector's average precision on COCO data.

    Args:
        model: a file, or a model in memory.
        annotations: COCO detection annotations, JSON, or the YAML file of a data set with the label files of YOLO.
        images: folder with the images; of a data set the images of its validation split, unless it is given.
        settings: defaults to `Settings()`.
        progress: called after each image.

    Raises:
        ModelError: the model cannot be read or run, is not recognized, has no boxes or none that can be decoded
            exactly, or gives values that are not finite.
        DataError: annotations or images are missing or unreadable, or the boxes of the annotations are upright and the
            model's are rotated.
        ConfigError: a setting does not fit the model, or its classes do not fit the categories.
    """
    settings = settings or Settings()
    truth = GroundTruth.load(Path(annotations), None if images is None else location(images), settings.max_images)
    return measure_precision(model, truth, settings, progress)


def measure_precision(
    model: str | Path | onnx.ModelProto,
    truth: GroundTruth,
    settings: Settings,
    progress: Progress = silent,
    like: Detector | None = None,
    pool: Pool = IN_PROCESS,
) -> Scores:
    """Measure a detector's average precision as `evaluate` does, with ground truth that is loaded already.

    Args:
        model: a file, or a model in memory.
        truth: images and their objects.
        settings: how to run and decode the model.
        progress: called after each image.
        like: of a quantized model, the float model.
        pool: where the model runs; the numbers do not depend on it.
    """
    progress("loading", 0, 0)
    predictor, match = _open(model, truth, settings, like)
    kinds, detector, count = _kinds(predictor, truth), predictor.detector, len(truth.images)
    work = _Detecting(predictor, settings, match, truth, kinds, pool)
    made = pool.in_order(work, pool.chunks(count), lambda done: progress("evaluating", done, count))
    found = [record for of_chunk in made for record in of_chunk]
    progress("scoring", 0, 0)
    rules = Rules(settings.max_detections, match.measured)
    main, *more = kinds
    index = main.index(truth, found)
    remarks = [
        *detector.warnings,
        predictor.misrun([*truth.images.values()][:FEW]),
        match.remark,
        _limit_remark(truth, settings.max_detections),
        *(kind.remark for kind in kinds),
    ]
    ap, ap50, ap75, ap_small, ap_medium, ap_large = averages(main.truth, index, rules, main.matcher)
    remark = ""
    if match.is_by_order or ap < _LEAST_WITHOUT_CLASSES:
        remark = _order_remark(truth, index, match, rules, main)
        stated = detector.outputs.stated
        is_labelled = detector.outputs.is_finished or (stated is not None and "label" in stated.words)
        remarks.append(f"{remark}; {_from_one(detector)}" if remark and is_labelled else remark)
    if not remark:
        remarks.append(displaced_remark(main.truth, index, truth.categories))
    return Scores(
        ap=ap,
        ap50=ap50,
        ap75=ap75,
        ap_small=ap_small,
        ap_medium=ap_medium,
        ap_large=ap_large,
        images=len(truth.images),
        detector=detector,
        runtime=predictor.runtime_name,
        classes=match.how,
        remarks=tuple(remark for remark in remarks if remark),
        measured=main.name,
        others={kind.name: tuple(averages(kind.truth, kind.index(truth, found), rules, kind.matcher)) for kind in more},
    )


class _Detecting:
    """Detects the objects on a chunk of the images.

    Args:
        predictor: the model.
        settings: how to run and decode it.
        match: the categories of its classes.
        truth: the images.
        kinds: what is scored.
        pool: where it runs: a task of another process has few cores.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        match: ClassMatch,
        truth: GroundTruth,
        kinds: Sequence[Kind],
        pool: Pool,
    ) -> None:
        self._predictor = predictor
        self._settings = replace(settings, threads=pool.cores) if pool.is_remote else settings
        self._match = match
        self._images = list(truth.images.items())
        self._large = truth.large
        # The objects of the ground truth are not needed to find others.
        self._kinds = [replace(kind, truth=None) for kind in kinds]

    def __call__(self, chunk: slice, finished: Finished) -> list[dict[str, Any]]:
        """Return the records of the detections, in the order of the images."""
        found: list[dict[str, Any]] = []
        for done, made in enumerate(self._settings.in_parallel(self._detect, self._images[chunk]), start=1):
            found += made
            finished(done)
        return found

    def _detect(self, image: tuple[int, Picture]) -> list[dict[str, Any]]:
        number, load = image
        found = self._predictor.detect(load(), self._settings, self._large.get(number))
        _require_known(found, self._match, self._predictor)
        return records(number, found, self._match.categories, self._predictor.detector, self._kinds)


def check_measurable(model: str | Path | onnx.ModelProto, truth: GroundTruth, settings: Settings) -> None:
    """Check before long work that a model can be measured; it runs on a black image and a few of the images.

    Raises:
        ModelError, ConfigError: as from `evaluate`, except errors that only show on images.
    """
    predictor, _ = _open(model, truth, settings)
    _kinds(predictor, truth)


def _kinds(predictor: Predictor, truth: GroundTruth) -> list[Kind]:
    """Return what can be scored of a model, as `kinds_of`; its errors name the model."""
    try:
        return kinds_of(predictor.detector, truth)
    except DataError as error:
        raise DataError(f"{predictor.name}: {error}") from None


def _open(
    model: str | Path | onnx.ModelProto, truth: GroundTruth, settings: Settings, like: Detector | None = None
) -> tuple[Predictor, ClassMatch]:
    """Return the model, ready to run, and the categories of its classes."""
    opened = Path(model) if isinstance(model, str) else model
    # Images with objects tell most about the outputs.
    shown = {annotation["image_id"] for annotation in truth.coco.dataset["annotations"]}
    pictures = [load for number, load in truth.images.items() if number in shown] or list(truth.images.values())
    predictor = Predictor.load(opened, settings, pictures, like, only_quantized=True)
    reason = predictor.detector.outputs.why_no_precision
    if reason:
        raise ModelError(f"{predictor.name}: {reason}; python -m onnxq.compare needs no AP")
    try:
        names = predictor.detector.names
        return predictor, match_classes(names, predictor.classes, truth.categories, truth.owned, truth.groups)
    except ValueError as error:
        raise ConfigError(f"{predictor.name}: {error}") from None


def _require_known(found: Found, match: ClassMatch, predictor: Predictor) -> None:
    unknown = set(found.objects.labels.tolist()) - set(range(len(match.categories)))
    if unknown:
        count = len(match.categories)
        raise ModelError(
            f"{predictor.name}: finds class {min(unknown)}, but classes are 0 to {count - 1}"
            f": {_from_one(predictor.detector)}; if they are ids of categories, number them from 0 in the graph"
        )


def _from_one(detector: Detector) -> str:
    """Return what to do if labels count from 1."""
    stated = detector.outputs.stated
    words = stated.text if stated is not None else "x1 y1 x2 y2 score label"
    return f"if its labels count from 1, give --layout {words} from-1"


def average_precisions(truth: GroundTruth, detections: list[dict[str, Any]]) -> list[float]:
    """Score detections.

    Args:
        truth: images and their objects.
        detections: COCO result records.

    Returns:
        Percent, in the order of `scoring.averages.METRICS`; nan if there is no object to find.
    """
    return averages(truth.coco, build_index(truth.images, truth.categories, detections), Rules())


def _limit_remark(truth: GroundTruth, most: int) -> str:
    """Return what to say of images with more objects of a class than detections count; empty if there are none."""
    objects: Mapping[tuple[int, int], int] = Counter(
        (each["image_id"], each["category_id"]) for each in truth.coco.dataset["annotations"] if not each["iscrowd"]
    )
    crowded = {image for (image, _), count in objects.items() if count > most}
    if not crowded:
        return ""
    greatest = max(objects.values())
    return (
        f"{len(crowded)} of {len(truth.images)} images have more than {most} objects of a class, up to {greatest}, and "
        f"only the best {most} detections of a class per image count, as in pycocotools: --max-detections {greatest}"
    )


def _order_remark(truth: GroundTruth, index: Any, match: ClassMatch, rules: Rules, kind: Kind) -> str:
    """Return what to say if boxes are found and their classes are not; empty otherwise."""
    if len(match.categories) < 2:
        return ""
    images = [number for number in truth.images if truth.coco.imgToAnns[number]][:_IMAGES_FOR_ORDER]
    few = Rules(rules.most, rules.categories, images)
    with_classes, without = (
        averages(kind.truth, index, rule, kind.matcher)[1] for rule in (few, replace(few, ignore_classes=True))
    )
    # Classes that are right by name are often mistaken for each other where there are many.
    least = without / (2 if match.is_by_order else _MISTAKEN)
    if not (without > _LEAST_WITHOUT_CLASSES and with_classes < least):
        return ""
    return (
        f"AP50 is {without:.1f} if classes are ignored, and {with_classes:.1f} with them: boxes are right and classes "
        f"are not ({match.how}): check the names in the model's metadata and the order of the categories"
    )
