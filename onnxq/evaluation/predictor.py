"""A detector that is ready to run on pictures, and how: what evaluation and comparison share."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import ConfigError, ModelError, OnnxqError
from onnxq.ir.storage import load_proto
from onnxq.runtime.session import Feed, Session, cores, open_session, run_named
from onnxq.yolo.decode import class_count, find_objects
from onnxq.yolo.detections import Outputs
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.preprocess import Letterbox

_MOST_THREADS = 16  # each holds the activations of one run

_S = TypeVar("_S")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Settings:
    """How detectors are run on pictures and read.

    Attributes:
        family: one of `families.family_names()`, or "auto".
        preprocess: a key of `images.PREPROCESSES`, or "auto".
        image_size: (height, width) in px, for models that take any.
        confidence: a (box, class) pair counts as a detection when its score is above this.
        iou: of two boxes of a class that overlap more than this, the one of lower score goes.
        max_images: at most so many pictures; None: all.
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

    def in_parallel(self, work: Callable[[_S], _T], pictures: Iterable[_S]) -> Iterator[_T]:
        """What `work` makes of each picture, in their order; so many at a time as `threads` says."""
        executor = ThreadPoolExecutor(self.threads or min(cores(), _MOST_THREADS))
        try:
            yield from executor.map(work, pictures)
        finally:
            executor.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Predictor:
    """A detector that is ready to run.

    Attributes:
        name: the file's, for messages.
        session: onnxruntime's; may be used from many threads at a time.
        batch: how many pictures the model wants at a time.
        detector: what the model was taken for.
        classes: how many the model tells apart; None where its outputs do not show it.
    """

    name: str
    session: Session
    batch: int
    detector: Detector
    classes: int | None

    @classmethod
    def load(cls, model: Path | onnx.ModelProto, settings: Settings, *, exact: bool = False) -> "Predictor":
        """Open a model, run it once on black and tell from its outputs' real shapes how to decode them.

        Args:
            model: a file, or a model in memory.
            settings: how to read it.
            exact: as `open_session` has it.

        Raises:
            ModelError: the model cannot be read or run, or its outputs are not those of the family that was given.
            ConfigError: a setting does not fit the model.
        """
        name = model.name if isinstance(model, Path) else "the model"
        graph = load_proto(model) if isinstance(model, Path) else model
        with _named(name):
            guess = detect(graph, image_size=settings.image_size, preprocess=settings.preprocess)
            # A picture at a time in each of many threads scales better than many threads within a picture.
            session = open_session(model, threads=1, exact=exact)
            declared = next(i.shape[0] for i in session.get_inputs() if i.name == guess.input_name)
            batch = declared if isinstance(declared, int) else 1
            black = np.zeros(guess.preprocess.shape(guess.size, batch), guess.preprocess.dtype)
            outputs = run_named(session, guess.feed(black))
            shapes = {output: array.shape for output, array in outputs.items()}
            detector = detect(
                graph,
                image_size=settings.image_size,
                preprocess=settings.preprocess,
                family=settings.family,
                output_shapes=shapes,
            )
            classes = class_count(detector, shapes)
        return cls(name, session, batch, detector, classes)

    def prepare(self, image: NDArray[np.uint8]) -> tuple[Feed, Letterbox]:
        """What the model takes for a picture, uint8 (height, width, 3), RGB, and where the picture is on it."""
        array, placed = self.detector.preprocess(image, self.detector.size)
        return self.detector.feed(np.repeat(array, self.batch, axis=0) if self.batch > 1 else array), placed

    def run(self, feed: Feed) -> Outputs:
        """The model's outputs by name.

        Raises:
            ModelError: the model cannot be run, or an output that is to be read has values that are not finite.
        """
        with _named(self.name):
            outputs = run_named(self.session, feed)
            for name in self.detector.outputs.tensors:
                if not np.isfinite(outputs[name]).all():
                    raise ModelError(f"output {name} has values that are NaN or infinite")
        return outputs

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
        feed, placed = self.prepare(image)
        found = find_objects(self.run(feed), self.detector, settings.confidence, settings.iou)
        height, width = image.shape[:2]
        inside = placed.undo(found.boxes).clip(0, np.array([width, height, width, height], np.float32))
        return np.column_stack([inside, found.scores, found.labels]).astype(np.float32)


@contextlib.contextmanager
def _named(model: str) -> Iterator[None]:
    """Put the model's name before the messages of errors from within."""
    try:
        yield
    except OnnxqError as error:
        raise type(error)(f"{model}: {error}") from error
