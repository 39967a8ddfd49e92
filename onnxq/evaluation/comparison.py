"""Compares a quantized model with its float model, without labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxq._files import atomic_write
from onnxq._text import shape_text
from onnxq.calibration.dead_leaves import SyntheticImages
from onnxq.calibration.find_files import IMAGES, find_files
from onnxq.calibration.samples import spread
from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.evaluation.agreement import Agreement, agree
from onnxq.evaluation.drawing import drawing
from onnxq.evaluation.error_trace import ErrorTrace, TensorError
from onnxq.evaluation.predictor import Predictor, Settings
from onnxq.ir.load import load
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.progress import Progress, silent
from onnxq.runtime.session import NodeArg
from onnxq.runtime.streaming import workers
from onnxq.yolo.detector import Detector
from onnxq.yolo.output_layout import UNKNOWN
from onnxq.yolo.preprocess import read_image

DEFAULTS = Settings(confidence=0.25, max_images=100)

_QUALITY = 90
"""Of the JPEG files that are drawn."""

_TRACED = 16
"""Pictures that the tensors are followed over: their noise is a mean over so many positions that more change little."""


@dataclass(frozen=True)
class Comparison:
    """How a quantized model differs from its float model.

    Attributes:
        images: pictures that both saw.
        detector: what both were taken for.
        outputs: signal-to-quantization-noise ratio of each float output, dB.
        agreement: on objects or classes; None where the outputs are not understood.
        traced: noise in each tensor that both compute, in the order of the float graph.
        traced_images: pictures that this was measured on.
    """

    images: int
    detector: Detector
    outputs: Mapping[str, float]
    agreement: Agreement | None
    traced: tuple[TensorError, ...]
    traced_images: int


def compare(
    reference: str | Path,
    model: str | Path,
    images: str | Path | SyntheticImages,
    *,
    settings: Settings = DEFAULTS,
    draw: Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Hold a quantized model against its float model.

    Args:
        reference: file of the float model.
        model: file of the quantized one.
        images: a folder of pictures, or a pattern, a list or a COCO file that names some; or painted ones.
        settings: how the models are run and read; of more pictures than `max_images` evenly spaced ones are taken.
        draw: folder for the pictures, each with what either model finds; None: nothing is drawn.
        progress: told after each picture.

    Raises:
        ModelError: a model cannot be read or run, gives numbers that are not finite, or differs from the other in its
            inputs or outputs.
        DataError: there are no pictures, or one is unreadable.
        ConfigError: a setting does not fit the model, there is nothing to draw, or no place for it.
    """
    progress("loading", 0, 0)
    pictures = spread(_pictures(images), settings.max_images)
    first, second = (Predictor.load(Path(each), settings) for each in (reference, model))
    _require_alike(first, second)
    if draw is not None:
        _prepare_drawing(draw, first.detector)
    noise, agreement = _see(first, second, pictures, settings, draw, progress)
    few = spread(pictures, _TRACED)
    return Comparison(
        images=len(pictures),
        detector=first.detector,
        outputs=noise.decibels(),
        agreement=agreement,
        traced=_follow(first, (Path(reference), Path(model)), few, settings, progress),
        traced_images=len(few),
    )


class _Picture(NamedTuple):
    """A picture that is read or painted when it is looked at, uint8 (height, width, 3), RGB."""

    name: str
    look: Callable[[], NDArray[np.uint8]]


def _pictures(source: str | Path | SyntheticImages) -> list[_Picture]:
    if isinstance(source, SyntheticImages):
        name = source.noun.replace(" ", "-")
        return [_Picture(f"{name}-{index}", partial(source.paint, index)) for index in range(source.count)]
    found = [path for path in find_files(str(source)).files if path.suffix.lower() in IMAGES]
    if not found:
        raise DataError(f"{source}: has no pictures ({', '.join(sorted(IMAGES))}); give another folder")
    return [_Picture(path.stem, partial(read_image, path)) for path in sorted(found)]


def _require_alike(first: Predictor, second: Predictor) -> None:
    """Refuse models of which one does not take or give what the other does."""
    for what, of_first, of_second in (
        ("input", first.session.get_inputs(), second.session.get_inputs()),
        ("output", first.session.get_outputs(), second.session.get_outputs()),
    ):
        a, b = ({value.name: value for value in values} for values in (of_first, of_second))
        for name in dict.fromkeys((*a, *b)):
            if name not in a or name not in b or not _is_alike(a[name], b[name]):
                left, right = (f"{_say(values[name])}" if name in values else "none" for values in (a, b))
                raise ModelError(
                    f"{what} {name} differs: {first.name} has {left}, {second.name} {right}; "
                    "give a float model and what was quantized from it"
                )


def _is_alike(a: NodeArg, b: NodeArg) -> bool:
    """Whether two tensors are of one type and shape, as far as that is known."""
    known = [(m, n) for m, n in zip(a.shape, b.shape) if isinstance(m, int) and isinstance(n, int)]
    return a.type == b.type and len(a.shape) == len(b.shape) and all(m == n for m, n in known)


def _say(value: NodeArg) -> str:
    return f"{value.type} {shape_text(value.shape)}"


def _prepare_drawing(folder: Path, detector: Detector) -> None:
    if detector.family == UNKNOWN:
        raise ConfigError(f"--draw {folder}: draws what is found, and the outputs are not understood; leave it out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--draw {folder}: cannot be made ({error.strerror}); choose another place") from None


def _see(
    first: Predictor,
    second: Predictor,
    pictures: Sequence[_Picture],
    settings: Settings,
    drawn: Path | None,
    progress: Progress,
) -> tuple[SqnrMeter, Agreement | None]:
    """Noise in the outputs and agreement on objects, over all pictures."""
    understood = first.detector.family != UNKNOWN
    reading = first.detector, settings.confidence, settings.iou
    drawings = {each: drawn / f"{number:03}-{each.name}.jpg" for number, each in enumerate(pictures, 1) if drawn}

    def look(picture: _Picture) -> tuple[SqnrMeter, Agreement]:
        image = picture.look()
        feed, placed = first.prepare(image)
        expected, actual = first.run(feed), second.run(feed)
        noise = SqnrMeter()
        noise.add(expected, actual)
        if not understood:
            return noise, Agreement()
        if picture in drawings:
            made = drawing(image, placed, expected, actual, *reading)
            with atomic_write(drawings[picture]) as temporary:
                made.save(temporary, "JPEG", quality=_QUALITY, subsampling=0)  # coloured lines keep their colour
        return noise, agree(expected, actual, *reading)

    noise, agreement = SqnrMeter(), Agreement()
    for done, (more, agreed) in enumerate(settings.in_parallel(look, pictures), start=1):
        noise.merge(more)
        agreement += agreed
        progress("comparing", done, len(pictures))
    return noise, agreement if understood else None


def _follow(
    first: Predictor, models: tuple[Path, Path], pictures: Sequence[_Picture], settings: Settings, progress: Progress
) -> tuple[TensorError, ...]:
    """Noise along the graph."""
    progress("tracing", 0, len(pictures))
    reference, model = (load(path) for path in models)
    at_once = min(workers(reference), settings.threads or workers(reference))
    trace, noise = ErrorTrace(reference, model, at_once), SqnrMeter()

    def follow(picture: _Picture) -> SqnrMeter:
        feed, _ = first.prepare(picture.look())
        return trace(feed)

    for done, more in enumerate(replace(settings, threads=at_once).in_parallel(follow, pictures), start=1):
        noise.merge(more)
        progress("tracing", done, len(pictures))
    return trace.result(noise)
