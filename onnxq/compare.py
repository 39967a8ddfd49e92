"""What quantization changed, without labels: `python -m onnxq.compare FLOAT QUANTIZED --images DIR`.

Both models see the same pictures. Told is how much noise there is in each output and, along the graph, in each tensor
that both compute; and how well they agree on the objects, with those of the float model for the truth.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.text import Text

from onnxq import demo
from onnxq.agreement import Agreement, agree
from onnxq.api import load
from onnxq.data import spread
from onnxq.detector import Detector
from onnxq.draw import drawing
from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.files import check_writable, replace_file, write_json
from onnxq.heads import UNKNOWN, text
from onnxq.images import read_image
from onnxq.network import Network, Settings
from onnxq.noise import Noise
from onnxq.progress import Progress, silent
from onnxq.scenes import Painted
from onnxq.session import workers
from onnxq.sources import IMAGES, find_files, plural
from onnxq.terminal import ERR, OUT, Columns, Help, ProgressBar, add_settings, guarded, say, settings_of
from onnxq.trace import Trace, Traced, worst_first

DEFAULTS = Settings(confidence=0.25, max_images=100)

_QUALITY = 90
"""Of the JPEG files that are drawn."""

_TRACED = 16
"""Pictures that the tensors are followed over: their noise is a mean over so many positions that more change little."""

_PERCENT = {"found_again", "top1", "top5"}
_TITLES = {
    "objects": "objects that the float model finds",
    "found_again": "found again, same class, IoU 0.5 or more",
    "iou": "their mean IoU",
    "score_difference": "their mean difference of scores",
    "new": "objects that the float model does not find",
    "mask_iou": "mean IoU of the masks of the found",
    "keypoint_distance": "mean distance of keypoints, in sizes of the box",
    "keypoint_similarity": "mean object keypoint similarity",
    "top1": "same likeliest class",
    "top5": "likeliest class among the five likeliest",
}


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
    traced: tuple[Traced, ...]
    traced_images: int


def compare(
    reference: str | Path,
    model: str | Path,
    images: str | Path | Painted,
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
    first, second = (Network.load(Path(each), settings) for each in (reference, model))
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


def _pictures(source: str | Path | Painted) -> list[_Picture]:
    if isinstance(source, Painted):
        name = source.what.replace(" ", "-")
        return [_Picture(f"{name}-{index}", partial(source.paint, index)) for index in range(source.most)]
    found = [path for path in find_files(str(source)).files if path.suffix.lower() in IMAGES]
    if not found:
        raise DataError(f"{source}: has no pictures ({', '.join(sorted(IMAGES))}); give another folder")
    return [_Picture(path.stem, partial(read_image, path)) for path in sorted(found)]


def _require_alike(first: Network, second: Network) -> None:
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


def _is_alike(a: ort.NodeArg, b: ort.NodeArg) -> bool:
    """Whether two tensors are of one type and shape, as far as that is known."""
    known = [(m, n) for m, n in zip(a.shape, b.shape) if isinstance(m, int) and isinstance(n, int)]
    return a.type == b.type and len(a.shape) == len(b.shape) and all(m == n for m, n in known)


def _say(value: ort.NodeArg) -> str:
    return f"{value.type} {text(value.shape)}"


def _prepare_drawing(folder: Path, detector: Detector) -> None:
    if detector.family == UNKNOWN:
        raise ConfigError(f"--draw {folder}: draws what is found, and the outputs are not understood; leave it out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--draw {folder}: cannot be made ({error.strerror}); choose another place") from None


def _see(
    first: Network,
    second: Network,
    pictures: Sequence[_Picture],
    settings: Settings,
    drawn: Path | None,
    progress: Progress,
) -> tuple[Noise, Agreement | None]:
    """Noise in the outputs and agreement on objects, over all pictures."""
    understood = first.detector.family != UNKNOWN
    reading = first.detector, settings.confidence, settings.iou
    drawings = {each: drawn / f"{number:03}-{each.name}.jpg" for number, each in enumerate(pictures, 1) if drawn}

    def look(picture: _Picture) -> tuple[Noise, Agreement]:
        image = picture.look()
        feed, placed = first.prepare(image)
        expected, actual = first.look(feed), second.look(feed)
        noise = Noise()
        noise.add(expected, actual)
        if not understood:
            return noise, Agreement()
        if picture in drawings:
            made = drawing(image, placed, expected, actual, *reading)
            with replace_file(drawings[picture]) as temporary:
                made.save(temporary, "JPEG", quality=_QUALITY, subsampling=0)  # coloured lines keep their colour
        return noise, agree(expected, actual, *reading)

    noise, agreement = Noise(), Agreement()
    for done, (more, agreed) in enumerate(settings.in_parallel(look, pictures), start=1):
        noise.merge(more)
        agreement += agreed
        progress("comparing", done, len(pictures))
    return noise, agreement if understood else None


def _follow(
    first: Network, models: tuple[Path, Path], pictures: Sequence[_Picture], settings: Settings, progress: Progress
) -> tuple[Traced, ...]:
    """Noise along the graph."""
    progress("tracing", 0, len(pictures))
    reference, model = (load(path) for path in models)
    at_once = min(workers(reference), settings.threads or workers(reference))
    trace, noise = Trace(reference, model, at_once), Noise()

    def follow(picture: _Picture) -> Noise:
        feed, _ = first.prepare(picture.look())
        return trace(feed)

    for done, more in enumerate(replace(settings, threads=at_once).in_parallel(follow, pictures), start=1):
        noise.merge(more)
        progress("tracing", done, len(pictures))
    return trace.result(noise)


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m onnxq.compare",
        description="What quantization changed in a model, measured without labels.",
        formatter_class=Help,
    )
    parser.add_argument("reference", metavar="FLOAT", type=Path, help="the model that was quantized")
    parser.add_argument("model", metavar="QUANTIZED", type=Path, help="what came of it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="DIR", help="pictures: folder, glob, .txt list, COCO .json")
    source.add_argument("--demo", action="store_true", help="pictures that onnxq paints, for models/demo.onnx")
    parser.add_argument("--worst", metavar="N", type=int, default=10, help="tensors to list, most noise first (10)")
    parser.add_argument("--draw", metavar="DIR", type=Path, help="draw what both find, side by side")
    add_settings(parser, DEFAULTS)
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments, parser)
    if arguments.worst < 0:
        parser.error(f"--worst {arguments.worst}: give 0 or more")
    return guarded(lambda: _compare(arguments, settings), arguments.debug)


def _compare(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.json is not None:
        check_writable(arguments.json)
    with ProgressBar(arguments.quiet) as progress:
        found = compare(
            arguments.reference,
            arguments.model,
            arguments.images or demo.VALIDATION,
            settings=settings,
            draw=arguments.draw,
            progress=progress,
        )
    _show_outputs(found)
    if found.agreement is not None:
        _show_agreement(found, found.agreement, settings)
    if arguments.worst and worst_first(found.traced):
        _show_trace(found, arguments.worst)
    if not arguments.quiet:
        kind = found.detector
        unread = "; objects are not compared, as the outputs are not understood" if found.agreement is None else ""
        say(f"{kind.title}, {kind.preprocess.describe()}; {kind.why}{unread}", ERR)
        if kind.head.assumed:
            say(f"boxes are compared with anchors that may be others than the model's: {kind.head.assumed}", ERR)
    if arguments.json is not None:
        write_json(arguments.json, _summary(found, arguments, settings))


def _show(title: str, first: str, others: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Columns(first, others)
    for name, *cells in rows:
        table.add_row(Text(name), *cells)
    say(title)
    OUT.print(table)


def _show_outputs(found: Comparison) -> None:
    title = f"signal to quantization noise, {_pictures_of(found.images)}"
    _show(title, "output", ["SQNR dB"], ((name, f"{sqnr:.1f}") for name, sqnr in found.outputs.items()))


def _show_agreement(found: Comparison, agreement: Agreement, settings: Settings) -> None:
    scores = f", scores above {settings.confidence:g}" if found.detector.head.has_boxes else ""
    numbers = agreement.numbers(found.detector.head.task).items()
    rows = ((_TITLES[key], _said(number, key in _PERCENT)) for key, number in numbers)
    _show(f"agreement with the float model, {_pictures_of(found.images)}{scores}", "", [""], rows)


def _said(number: float, percent: bool) -> str:
    if math.isnan(number):
        return "-"
    if isinstance(number, int):
        return str(number)
    return f"{100 * number:.1f} %" if percent else f"{number:.4f}"


def _show_trace(found: Comparison, most: int) -> None:
    entering = worst_first(found.traced)
    shown = entering[:most]
    pictures = _pictures_of(found.traced_images)
    title = f"the {len(shown)} worst of {len(entering)} tensors with more noise than their inputs, {pictures}"
    rows = (
        (each.tensor, each.op, f"{each.sqnr:.1f}", _decibels(each.drop), f"{100 * each.added:.3f}") for each in shown
    )
    _show(title, "tensor", ["operator", "SQNR dB", "drop dB", "added %"], rows)


def _decibels(number: float) -> str:
    return f"{number:.1f}" if math.isfinite(number) else "-"


def _pictures_of(count: int) -> str:
    return f"{count} picture{plural(count)}"


def _summary(found: Comparison, arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What `--json` writes: everything, unrounded; null for what is infinite or has nothing to average."""
    numbers = found.agreement.numbers(found.detector.head.task) if found.agreement is not None else None
    return {
        "reference": str(arguments.reference),
        "model": str(arguments.model),
        "images": found.images,
        "settings": asdict(settings),
        "family": found.detector.family,
        "task": found.detector.head.task,
        "preprocess": found.detector.preprocess.name,
        "image_size": found.detector.size,
        "outputs": _finite(found.outputs),
        "agreement": None if numbers is None else _finite(numbers),
        "traced_images": found.traced_images,
        "tensors": [_finite({**asdict(each), "only_moves": each.only_moves}) for each in found.traced],
    }


def _finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}


if __name__ == "__main__":
    raise SystemExit(main())
