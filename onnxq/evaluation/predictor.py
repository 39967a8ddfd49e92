"""A detector that is ready to run on images, for evaluation and comparison."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calibration.dead_leaves import dead_leaves_image
from onnxq.errors import ConfigError, DataError, ModelError, OnnxqError
from onnxq.evaluation.runtime_choice import AUTO, CHOICES, choose_runtimes, may_misrun, misrun, target_of
from onnxq.ir import QDQ_OPS, ProtoIndex, embedded
from onnxq.ir.operators import CONVS
from onnxq.ir.repair import inlined
from onnxq.ir.storage import load_proto
from onnxq.ir.unsupported_tail import detach
from onnxq.runtime import RUNTIMES, OnnxRuntime, Runtime
from onnxq.runtime.base import ModelSource
from onnxq.runtime.session import Feed, cores
from onnxq.yolo.columns import parse_layout
from onnxq.yolo.confirm_outputs import UnclearOutputsError, confirm, confirm_given, unread
from onnxq.yolo.decode import class_count, find_objects
from onnxq.yolo.detections import Detections, Outputs
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.evidence import Look
from onnxq.yolo.looks import Region, chosen, look
from onnxq.yolo.nms import MOST_DETECTIONS
from onnxq.yolo.preprocess import Letterbox, parse_preprocess

_MOST_THREADS = 16
"""Most threads by default: each holds the activations of one run."""

FEW = 2
"""Pictures on which a runtime that is not the file's own is checked."""

Picture = Callable[[], NDArray[np.uint8]]
"""Returns a picture, uint8 (height, width, 3), RGB."""

_S = TypeVar("_S")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Settings:
    """How detectors run on images, and how their outputs are decoded.

    Attributes:
        family: one of `families.family_names()`, or "auto".
        layout: words that state what the columns of the outputs hold, as `columns.parse_layout` takes them; none: as
            recognized.
        preprocess: what `preprocess.parse_preprocess` takes.
        image_size: (height, width) in px, for models with a dynamic input size.
        confidence: a (box, class) pair is a detection if its score is above this.
        iou: NMS threshold: of two boxes of a class with a greater IoU, the one with the lower score is removed.
        max_images: most images; None: all.
        max_detections: most detections of a class per image that AP counts, the best first; COCO has 100.
        threads: images that run at the same time; 0: one per core, at most 16.
        runtime: key of `onnxq.runtime.RUNTIMES` ("ort", "openvino" or "exact": on integers that saturate on no CPU), or
            "auto": the runtime of the model's target, if it has one and it is installed.

    Raises:
        ConfigError: a value is out of range.
    """

    family: str = "auto"
    layout: tuple[str, ...] = ()
    preprocess: str = "auto"
    image_size: tuple[int, int] | None = None
    confidence: float = 0.001
    iou: float = 0.65
    max_images: int | None = None
    threads: int = 0
    runtime: str = AUTO
    max_detections: int = 100

    def __post_init__(self) -> None:
        if self.layout and self.family != AUTO:
            raise ConfigError("layout: --layout and --family exclude each other; give one of the two")
        if self.layout:
            parse_layout(self.layout)
        if not 0 <= self.confidence < 1:
            raise ConfigError(f"confidence: expected 0 or more and less than 1, got {self.confidence}")
        if not 0 < self.iou <= 1:
            raise ConfigError(f"iou: expected more than 0 and at most 1, got {self.iou}")
        if self.max_images is not None and self.max_images < 1:
            raise ConfigError(f"max_images: expected 1 or more, got {self.max_images}")
        if self.max_detections < 1:
            raise ConfigError(f"max_detections: expected 1 or more, got {self.max_detections}")
        if self.threads < 0:
            raise ConfigError(f"threads: expected 0 or more, got {self.threads}")
        parse_preprocess(self.preprocess)
        if self.runtime not in CHOICES:
            raise ConfigError(f"runtime: expected one of {', '.join(CHOICES)}, got {self.runtime!r}")

    @property
    def at_once(self) -> int:
        """Number of images that run at the same time."""
        return self.threads or min(cores(), _MOST_THREADS)

    def in_parallel(self, work: Callable[[_S], _T], images: Iterable[_S]) -> Iterator[_T]:
        """Yield the result of `work` for each image, in order; `at_once` of them at a time."""
        executor = ThreadPoolExecutor(self.at_once)
        try:
            yield from executor.map(work, images)
        finally:
            executor.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Found:
    """The objects that a detector found in an image.

    Attributes:
        objects: the objects, in px of the model's input.
        letterbox: placement of the image on that input.
        size: (height, width) of the image in px.
        prototypes: of the masks, float (coefficients, rows, columns); None if there are none.
    """

    objects: Detections
    letterbox: Letterbox
    size: tuple[int, int]
    prototypes: NDArray[np.generic] | None = None

    def inside(self) -> Detections:
        """Return the objects in px of the image, with boxes that are cut at its edges."""
        height, width = self.size
        limits = np.array([width, height, width, height], np.float32)
        return replace(self.objects, boxes=self.letterbox.undo(self.objects.boxes).clip(0, limits))

    def table(self) -> NDArray[np.float32]:
        """Return float32 (n, 6): x1, y1, x2, y2 in px of the image and inside it, score, class; by falling score."""
        found = self.inside()
        return np.column_stack([found.boxes, found.scores, found.labels]).astype(np.float32)


@dataclass(frozen=True)
class Predictor:
    """A detector that is ready to run. A pickled copy has the model, and opens it again when it is unpickled.

    Attributes:
        name: name of the file, for messages.
        runtime: the loaded model; may be used from `Settings.at_once` threads at a time.
        runtime_name: key of its class in `RUNTIMES`.
        inputs, outputs: name -> declared type.
        batch: batch size of the model.
        detector: how inputs are prepared and outputs are decoded.
        classes: number of classes; None if the outputs do not show it.
        source: what `runtime` was made of.
        is_quantized: whether it has integers.
    """

    name: str
    runtime: Runtime
    runtime_name: str
    inputs: Mapping[str, onnx.TypeProto]
    outputs: Mapping[str, onnx.TypeProto]
    batch: int
    detector: Detector
    classes: int | None
    source: ModelSource
    is_quantized: bool = False

    def __getstate__(self) -> dict[str, Any]:
        model = load_proto(self.source) if isinstance(self.source, Path) else self.source
        return {**vars(self), "runtime": None, "source": embedded(model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, runtime=RUNTIMES[state["runtime_name"]](state["source"], threads=1))

    @classmethod
    def load(
        cls,
        model: Path | onnx.ModelProto,
        settings: Settings,
        pictures: Sequence[Picture] = (),
        like: Detector | None = None,
        only_quantized: bool = False,
        may_be_unread: bool = False,
    ) -> "Predictor":
        """Open a model, run it on a black image and a few pictures, and recognize how to decode its outputs.

        Operators at its end that onnxruntime does not know are left out, and local functions are inlined, as `quantize`
        does.

        Args:
            model: a file, or a model in memory.
            settings: how to run and decode it.
            pictures: functions that return pictures, uint8 (height, width, 3), RGB; a few are looked at, painted scenes
                if there are none.
            like: the float model. A model with its outputs is read as it is, because noise must not tell the layout.
            only_quantized: `like` is for a model with integers only.
            may_be_unread: outputs whose values do not tell how they are read make no error, but are not read.

        Raises:
            ModelError: the model cannot be read or run, or its outputs do not fit the family in `settings`.
            ConfigError: a setting does not fit the model, or the runtime is not installed.
        """
        name = model.name if isinstance(model, Path) else "the model"
        graph = load_proto(model) if isinstance(model, Path) else model
        with _named(name):
            if graph.functions:  # OpenVINO takes none
                model = graph = inlined(graph)
            guess = detect(graph, image_size=settings.image_size, preprocess=settings.preprocess)
            front, tail = detach(graph)
            if tail is not None and any(node.op_type in CONVS for node in front.graph.node):
                graph = front
            else:  # what runs it says best what it does not know
                tail = None
            inputs = {value.name: value.type for value in ProtoIndex(graph.graph).inputs}
            outputs = {value.name: value.type for value in graph.graph.output}
            batch = inputs[guess.input_name].tensor_type.shape.dim[0].dim_value or 1
            black = np.zeros(guess.preprocess.shape(guess.size, batch), guess.preprocess.dtype)
            [choice] = choose_runtimes([graph], settings.runtime)
            kind = RUNTIMES[choice.name]
            with _naming_a_remedy(kind):
                # Many threads with one image each scale better than many threads within one image.
                source = model if tail is None else graph
                runtime = kind(source, threads=1, at_once=settings.at_once)
                found = runtime.run(guess.feed(black))
            shapes = {output: found[output].shape for output in outputs}
            del found  # nothing reads the values; outputs are megabytes
            detector = detect(
                graph,
                image_size=settings.image_size,
                preprocess=settings.preprocess,
                family=settings.family,
                layout=settings.layout,
                output_shapes=shapes,
            )
            pictured = partial(_look_at, runtime, detector, batch, settings, pictures)
            is_copy = like is not None and set(like.outputs.tensors) <= set(outputs)
            if like is not None and is_copy and (_is_quantized(graph) or not only_quantized):
                detector = replace(detector, outputs=like.outputs, why=like.why, names=like.names)
            elif settings.layout or settings.family != AUTO:
                class_count(detector, shapes)  # they must fit
                detector = confirm_given(detector, pictured)
            else:
                try:
                    detector = confirm(graph, detector, pictured)
                except UnclearOutputsError as error:
                    if not may_be_unread:
                        raise
                    detector = unread(detector, str(error))
            classes = class_count(detector, shapes)
            if tail is not None:
                unknown = f"; up to {', '.join(tail.unsupported)}, which onnxruntime does not know"
                detector = replace(detector, why=detector.why.removesuffix(unknown) + unknown)
        return cls(name, runtime, choice.name, inputs, outputs, batch, detector, classes, source, _is_quantized(graph))

    def prepare(self, image: NDArray[np.uint8]) -> tuple[Feed, Letterbox]:
        """Return the model's inputs for an image, uint8 (height, width, 3), RGB, and the letterbox of the image."""
        array, letterbox = self.detector.preprocess(image, self.detector.size)
        return self.detector.feed(np.repeat(array, self.batch, axis=0) if self.batch > 1 else array), letterbox

    def run(self, feed: Feed) -> Outputs:
        """Run the model and return its outputs by name.

        Raises:
            ModelError: the model cannot be run, or a decoded output has values that are not finite.
        """
        with _named(self.name):
            found = self.runtime.run(feed)
            outputs = {name: found[name] for name in self.outputs}  # OpenVINO gives names of other tensors too
            for name in self.detector.outputs.tensors:
                if not np.isfinite(outputs[name]).all():
                    raise ModelError(f"output {name} has values that are NaN or infinite")
        return outputs

    def misrun(self, pictures: Iterable[Picture]) -> str:
        """Return how the runtime computes the file wrongly because it is for another one, empty if it does not.

        Args:
            pictures: a few, that the model runs on.
        """
        if not self.is_quantized or not may_misrun(target_of(self.source), self.runtime_name):
            return ""
        model = load_proto(self.source) if isinstance(self.source, Path) else self.source
        return misrun(model, self.runtime_name, [self.prepare(load())[0] for load in pictures])

    def detect(self, image: NDArray[np.uint8], settings: Settings, size: tuple[int, int] | None = None) -> Found:
        """Detect the objects in an image.

        Args:
            image: uint8 (height, width, 3), RGB.
            settings: `confidence`, `iou` and `max_detections` are used.
            size: (height, width) in px of the picture, if the image was decoded at a smaller scale.

        Raises:
            ModelError: the model cannot be run, or gives values that are not finite.
        """
        feed, letterbox = self.prepare(image)
        most = max(MOST_DETECTIONS, settings.max_detections)
        outputs, layout = self.run(feed), self.detector.outputs
        found = find_objects(outputs, self.detector, settings.confidence, settings.iou, most=most)
        prototypes = np.asarray(outputs[layout.prototypes])[0] if layout.prototypes else None
        decoded = image.shape[0], image.shape[1]
        placed = letterbox if size is None else letterbox.of_size(decoded, size)
        return Found(found, placed, size or decoded, prototypes)


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type in QDQ_OPS or "Integer" in node.op_type for node in model.graph.node)


def _look_at(
    runtime: Runtime,
    detector: Detector,
    batch: int,
    settings: Settings,
    pictures: Sequence[Picture],
    numbers: Sequence[int],
) -> list[Look]:
    """Run a model on halves of a few pictures, painted ones if there are none."""
    spread = chosen(len(pictures))

    def one(number: int) -> Look | None:
        try:
            image = pictures[spread[number]]() if pictures else dead_leaves_image(number, detector.size)
        except DataError:  # raised again when its turn comes
            return None
        array, placed = detector.preprocess(image, detector.size)
        images = np.repeat(array, batch, axis=0) if batch > 1 else array
        return look(runtime.run, detector, detector.feed(images), number, _content(image, placed))

    return [each for each in settings.in_parallel(one, numbers) if each is not None]


def _content(image: NDArray[np.uint8], placed: Letterbox) -> Region:
    height, width = image.shape[:2]
    left, top, ratio = placed.left, placed.top, placed.ratio
    return left, top, left + width * ratio, top + height * ratio


@contextlib.contextmanager
def _naming_a_remedy(runtime: type[Runtime]) -> Iterator[None]:
    """Name the runtime that runs most models in the messages of errors of another one."""
    try:
        yield
    except ModelError as error:
        if issubclass(runtime, OnnxRuntime):
            raise
        raise ModelError(f"{error}; --runtime ort runs it in {OnnxRuntime.title}") from error


@contextlib.contextmanager
def _named(model: str) -> Iterator[None]:
    """Put the model's name before the messages of errors raised in the block."""
    try:
        yield
    except OnnxqError as error:
        raise type(error)(f"{model}: {error}") from error
