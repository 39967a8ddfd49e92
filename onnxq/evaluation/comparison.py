"""Compares a quantized model with its float model, without labels."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import onnx

from onnxq._text import shape_text
from onnxq.calibration.dead_leaves import SyntheticImages
from onnxq.calibration.image_sources import ImageSource, image_sources
from onnxq.calibration.samples import spread
from onnxq.errors import ConfigError, ModelError
from onnxq.evaluation.agreement import Agreement, agree
from onnxq.evaluation.drawing import draw_outputs
from onnxq.evaluation.error_trace import ErrorTrace, TensorError
from onnxq.evaluation.predictor import FEW, Predictor, Settings
from onnxq.evaluation.runtime_choice import RuntimeChoice, choose_runtimes
from onnxq.evaluation.scoring.expected import Judged, UncertainObjects, expected_precision, why_not
from onnxq.ir.files import atomic_write
from onnxq.ir.load import load
from onnxq.ir.unsupported_tail import detach
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.progress import Progress, silent
from onnxq.remote.address import Location
from onnxq.runtime.pool import IN_PROCESS, Finished, Pool
from onnxq.runtime.streaming import workers
from onnxq.yolo.detector import Detector
from onnxq.yolo.output_layout import UNKNOWN

log = logging.getLogger(__name__)

DEFAULTS = Settings(confidence=0.25, max_images=100)
"""Settings of a comparison unless others are given."""

_QUALITY = 90
"""Quality of the JPEG files that are drawn."""

_TRACED = 16
"""Images of the error trace: noise averages over the positions of a tensor, so more images change it little."""


@dataclass(frozen=True)
class Comparison:
    """Differences of a quantized model from its float model.

    Attributes:
        images: number of images.
        detector: how inputs were prepared and outputs were decoded.
        outputs: float output -> signal-to-quantization-noise ratio, dB.
        agreement: agreement on objects or classes; None if the output layout is unknown.
        expected_ap_loss: loss of expected AP, in points: `scoring.expected`; nan if the float model detects nothing,
            None if it has no upright boxes.
        traced: error of each tensor that both models compute, in the order of the float graph.
        traced_images: number of images that `traced` was measured on.
        reference_runtime: what ran the float model.
        runtime: what ran the quantized model.
    """

    images: int
    detector: Detector
    outputs: Mapping[str, float]
    agreement: Agreement | None
    expected_ap_loss: float | None
    traced: tuple[TensorError, ...]
    traced_images: int
    reference_runtime: RuntimeChoice
    runtime: RuntimeChoice


def compare(
    reference: str | Path,
    model: str | Path,
    images: str | Location | SyntheticImages,
    *,
    settings: Settings = DEFAULTS,
    draw: Path | None = None,
    progress: Progress = silent,
    pool: Pool = IN_PROCESS,
) -> Comparison:
    """Compare a quantized model with its float model.

    Args:
        reference: file of the float model.
        model: file of the quantized model. If only the first is quantized, a warning is logged.
        images: a folder of images, a pattern, a list, a COCO file, a data set's YAML (its val split), or synthetic
            images.
        settings: how to run and decode the models; `max_images` are evenly spaced among all images.
        draw: folder for drawings of the detections of both models; None: nothing is drawn.
        progress: called after each image.
        pool: where the models run, but for the noise along the graph, and not if something is drawn. The result does
            not depend on it.

    Raises:
        ModelError: a model cannot be read or run, gives values that are not finite, or has other inputs or outputs than
            the other model.
        DataError: there are no images, or one is unreadable.
        ConfigError: a setting does not fit the model, the runtime is not installed, there is nothing to draw, or the
            folder cannot be made.
    """
    progress("loading", 0, 0)
    sources = spread(image_sources(images), settings.max_images)
    paths = Path(reference), Path(model)
    choices = choose_runtimes(paths, settings.runtime)
    pictures = [source.load for source in sources]
    first = Predictor.load(paths[0], replace(settings, runtime=choices[0].name), pictures, may_be_unread=True)
    second = Predictor.load(paths[1], replace(settings, runtime=choices[1].name), pictures, first.detector)
    _require_same_interface(first, second)
    if first.is_quantized and not second.is_quantized:
        log.warning("%s is quantized, %s is not: the float model comes first", first.name, second.name)
    for predictor in (first, second):
        if wrong := predictor.misrun(pictures[:FEW]):
            log.warning("%s: %s", predictor.name, wrong)
    if draw is not None:
        _prepare_drawing(draw, first.detector)
    compared = _compare_outputs(first, second, sources, settings, draw, progress, IN_PROCESS if draw else pool)
    few = spread(sources, _TRACED)
    return Comparison(
        images=len(sources),
        detector=first.detector,
        outputs=compared.meter.decibels(),
        agreement=compared.agreement if first.detector.family != UNKNOWN else None,
        expected_ap_loss=compared.precision_loss(),
        traced=_trace_errors(first, paths, few, settings, progress),
        traced_images=len(few),
        reference_runtime=choices[0],
        runtime=choices[1],
    )


def _require_same_interface(first: Predictor, second: Predictor) -> None:
    """Refuse models whose inputs or outputs differ."""
    for kind, a, b in (
        ("input", first.inputs, second.inputs),
        ("output", first.outputs, second.outputs),
    ):
        for name in dict.fromkeys((*a, *b)):
            if name not in a or name not in b or not _may_be_equal(a[name], b[name]):
                left, right = (_type_text(values[name]) if name in values else "none" for values in (a, b))
                raise ModelError(
                    f"{kind} {name} differs: {first.name} has {left}, {second.name} {right}; "
                    "give a float model and a model that was quantized from it"
                )


def _may_be_equal(a: onnx.TypeProto, b: onnx.TypeProto) -> bool:
    """Return whether two tensors have the same type, rank and known dimensions, as far as the models declare them."""
    if a.tensor_type.elem_type != b.tensor_type.elem_type:
        return False
    if not (a.tensor_type.HasField("shape") and b.tensor_type.HasField("shape")):
        return True
    m, n = ([dim.dim_value for dim in each.tensor_type.shape.dim] for each in (a, b))
    return len(m) == len(n) and all(i == j or not (i and j) for i, j in zip(m, n, strict=True))


def _type_text(value: onnx.TypeProto) -> str:
    tensor = value.tensor_type
    dims = [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"tensor({kind}) {shape_text(dims) if tensor.HasField('shape') else 'of unknown shape'}"


def _prepare_drawing(folder: Path, detector: Detector) -> None:
    if detector.family == UNKNOWN:
        raise ConfigError(f"--draw {folder}: there is nothing to draw, as the output layout is unknown; leave it out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--draw {folder}: cannot be made ({error.strerror}); choose another place") from None


class _Compared(NamedTuple):
    """What was compared of the outputs.

    Attributes:
        meter: noise in each output.
        agreement: agreement on objects or classes.
        expected: the objects that may be on each image; none if the models cannot be judged by them.
        judged: for each image the detections of the float and of the quantized model.
    """

    meter: SqnrMeter
    agreement: Agreement
    expected: list[UncertainObjects]
    judged: list[tuple[Judged, Judged]]

    def precision_loss(self) -> float | None:
        """Return the loss of expected AP, in points."""
        if not self.expected:
            return None
        first, second = zip(*self.judged, strict=True)
        return expected_precision(self.expected, first) - expected_precision(self.expected, second)


class _Comparing:
    """Measures noise in the outputs and agreement on objects on a chunk of the images; draws if there is a folder.

    Args:
        first, second: the float and the quantized model.
        sources: the images.
        settings: how to run and decode the models.
        folder: for drawings; None: nothing is drawn.
    """

    def __init__(
        self,
        first: Predictor,
        second: Predictor,
        sources: Sequence[ImageSource],
        settings: Settings,
        folder: Path | None,
    ) -> None:
        self._first, self._second = first, second
        self._sources = list(enumerate(sources, start=1))
        self._settings = settings
        self._folder = folder

    def __call__(self, chunk: slice, finished: Finished) -> list[_Compared]:
        """Return what was measured on each image."""
        found: list[_Compared] = []
        for one in self._settings.in_parallel(self._compare, self._sources[chunk]):
            found.append(one)
            finished(len(found))
        return found

    def _compare(self, numbered: tuple[int, ImageSource]) -> _Compared:
        number, source = numbered
        first, settings = self._first, self._settings
        is_known = first.detector.family != UNKNOWN
        decoding = first.detector, settings.confidence, settings.iou
        image = source.load()
        feed, letterbox = first.prepare(image)
        expected, actual = first.run(feed), self._second.run(feed)
        one = _Compared(SqnrMeter(), agree(expected, actual, *decoding) if is_known else Agreement(), [], [])
        one.meter.add(expected, actual)
        if not why_not(first.detector.outputs):
            size = (image.shape[0], image.shape[1])
            objects = UncertainObjects.of(expected, first.detector, settings.iou, letterbox, size)
            one.expected.append(objects)
            one.judged.append((objects.judge(expected), objects.judge(actual)))
        if is_known and self._folder is not None:
            canvas = draw_outputs(image, letterbox, expected, actual, *decoding)
            with atomic_write(self._folder / f"{number:03}-{source.name}.jpg") as temporary:
                # subsampling=0 keeps the colour of thin lines
                canvas.save(temporary, "JPEG", quality=_QUALITY, subsampling=0)
        return one


def _compare_outputs(
    first: Predictor,
    second: Predictor,
    sources: Sequence[ImageSource],
    settings: Settings,
    folder: Path | None,
    progress: Progress,
    pool: Pool,
) -> _Compared:
    """Measure noise in the outputs and agreement on objects over all images; draw into the folder."""
    count = len(sources)
    own = replace(settings, threads=pool.cores) if pool.is_remote else settings
    work = _Comparing(first, second, sources, own, folder)
    made = pool.in_order(work, pool.chunks(count), lambda done: progress("comparing", done, count))
    total = _Compared(SqnrMeter(), Agreement(), [], [])
    # Sums of floats are those of the images one by one, in their order.
    for one in (one for of_chunk in made for one in of_chunk):
        total.meter.merge(one.meter)
        total.expected.extend(one.expected)
        total.judged.extend(one.judged)
        total = total._replace(agreement=total.agreement + one.agreement)
    return total


def _trace_errors(
    first: Predictor,
    models: tuple[Path, Path],
    sources: Sequence[ImageSource],
    settings: Settings,
    progress: Progress,
) -> tuple[TensorError, ...]:
    """Measure the noise along the graph."""
    progress("tracing", 0, len(sources))
    reference, model = (detach(load(path))[0] for path in models)
    at_once = min(workers(reference), settings.threads or workers(reference))
    trace, meter = ErrorTrace(reference, model, at_once), SqnrMeter()

    def trace_one(source: ImageSource) -> SqnrMeter:
        feed, _ = first.prepare(source.load())
        return trace(feed)

    for done, one_meter in enumerate(replace(settings, threads=at_once).in_parallel(trace_one, sources), start=1):
        meter.merge(one_meter)
        progress("tracing", done, len(sources))
    return trace.result(meter)
