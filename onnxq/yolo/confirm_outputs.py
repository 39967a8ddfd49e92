"""Confirms by the values of a few runs how a model's outputs are read, or finds the layout that explains them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq._text import plural, shape_text, size_text
from onnxq.errors import ModelError
from onnxq.yolo.columns import CORNERS
from onnxq.yolo.decode import decode, with_unnamed
from onnxq.yolo.detector import Detector, clues_of
from onnxq.yolo.evidence import (
    Best,
    BoxFit,
    Look,
    are_shares,
    box_fits,
    duplicates,
    falls,
    is_unit,
    is_whole,
    objectness_told,
    other_scale,
    share_inside,
)
from onnxq.yolo.families.columns import columns_layout
from onnxq.yolo.families.tables import rows_first, selects_boxes
from onnxq.yolo.looks import LOOKS, MOST_LOOKS
from onnxq.yolo.output_layout import UNKNOWN, UNKNOWN_FAMILY, OutputLayout, Shape
from onnxq.yolo.score_tables import LEAST_PERCENT, PERCENT, ROWS, ScoreTable, score_tables

_LEAST_SCORE = 0.001

_LEAST_OBJECTS = 0.6
"""Sum of the best scores of all looks below which there is nothing to judge by."""

_ENOUGH_OBJECTS = 1.5
"""Such a sum that is enough not to look at more pictures."""

_GOOD = 0.7
"""Least part of the boxes' area that lies where the picture is."""

_SURE = 0.9
"""Such a part that no other reading is needed."""

_CLEAR = 0.1
"""How much more of it than with another reading makes a reading the right one."""

_MANY_DUPLICATES = 0.2
"""Part of the boxes that are duplicates if the model does not remove them."""

_LISTED = 3
"""Most layouts that a question lists."""

_MOST_FINISHED = 1000
"""Rows of an output that are finished objects."""


class UnclearOutputsError(ModelError):
    """The outputs can be read in several ways, or in none that is known."""


@dataclass(frozen=True)
class _Reading:
    """A way to read the outputs, and how well it explains them.

    Attributes:
        table: where scores and boxes are.
        box: order of the columns of the boxes.
        rivals: other orders that explain the boxes nearly as well.
    """

    table: ScoreTable
    box: BoxFit
    rivals: tuple[BoxFit, ...]

    @property
    def is_good(self) -> bool:
        """Whether there are objects, and their boxes lie where the picture is."""
        return self.table.best.objects >= _LEAST_OBJECTS and min(self.box.share, 2 * self.box.valid) >= _GOOD

    @property
    def texts(self) -> list[str]:
        """The layout and those of its rivals, as `--layout` takes them."""
        return [self.table.columns(box.words, box.shares).text for box in (self.box, *self.rivals)]


@dataclass(frozen=True)
class _Recognized:
    """What the values say of the layout that the shapes show.

    Attributes:
        objects: number of looks that show an object, as the sum of their best scores.
        share: part of the boxes' area that lies where the picture is.
        contradiction: what cannot be if the layout is right; empty if nothing is.
        doubtful: the column of the objectness looks like another one, or the other way round.
        repeats: the model is to remove duplicates, and there are many.
        is_sorted: the objects stand by falling score.
        scale: what the boxes seem to be in px of, if it is not the input; empty if they are.
    """

    objects: float
    share: float
    contradiction: str = ""
    doubtful: bool = False
    repeats: bool = False
    is_sorted: bool = False
    scale: str = ""


def confirm(model: onnx.ModelProto, detector: Detector, look_at: Callable[[Sequence[int]], Sequence[Look]]) -> Detector:
    """Return the detector with the layout that the values of real runs show.

    The layout that the shapes show stays unless the values contradict it, or another one explains them clearly better.
    If the first few runs do not tell, more follow, fewer where no picture shows the least object.

    Args:
        model: the model; weights may be absent.
        detector: as `detect` recognized it.
        look_at: runs the model on the pictures of these numbers.

    Raises:
        UnclearOutputsError: the values contradict the layout, and no other one explains them, or several do alike.
    """
    if not detector.outputs.has_boxes and detector.outputs.family != UNKNOWN:
        return detector
    looks = list(look_at(range(LOOKS)))
    detector = _all_named(detector, looks)
    verdict = _verdict(model, detector, looks)
    seen = LOOKS
    for most in (2 * LOOKS, MOST_LOOKS) if verdict.is_empty else (MOST_LOOKS,):
        if verdict.is_certain or (verdict.is_empty and seen > LOOKS):
            break
        looks += look_at(range(seen, most))
        verdict, seen = _verdict(model, detector, looks), most
    if verdict.question:
        raise UnclearOutputsError(verdict.question)
    return _with(detector, verdict.layout)


def unread(detector: Detector, why: str) -> Detector:
    """Return the detector as one whose outputs are not read, with the reason."""
    unknown = OutputLayout(UNKNOWN_FAMILY, "detect", (), why)
    return replace(detector, outputs=unknown, why=why)


def confirm_given(detector: Detector, look_at: Callable[[Sequence[int]], Sequence[Look]]) -> Detector:
    """Return the detector with what the values of a few real runs say of a layout that the user gives; it stays.

    Args:
        detector: its outputs fit the layout.
        look_at: runs the model on the pictures of these numbers.
    """
    looks = _comparable(list(look_at(range(LOOKS))), detector.size) if detector.outputs.has_boxes else []
    if not looks:
        return detector
    detector = _all_named(detector, looks)
    own = _judge(detector, looks)
    sure = "the values allow it" if own.objects >= _LEAST_OBJECTS else ""
    if own.contradiction:
        sure = f"but the values contradict it: {own.contradiction}"
    elif own.objects >= _LEAST_OBJECTS and own.share < _GOOD:
        sure = "but the boxes often lie where the pictures are empty"
    return _with(detector, replace(detector.outputs, sure=sure))


def _all_named(detector: Detector, looks: Sequence[Look]) -> Detector:
    """Return the detector with a name, maybe an empty one, for each class that the words or the scores show."""
    if detector.outputs.stated is not None or not looks:
        return detector
    named, count = with_unnamed(detector, looks[0].outputs), len(detector.names)
    if named is detector:
        return detector
    said = f"has {len(named.names)} classes, of which the metadata names {count},"
    own = detector.outputs.why
    told = own.replace(f"has {count} classes", said) if f"has {count} classes" in own else f"{own}, {said[:-1]}"
    layout = replace(detector.outputs, why=told)
    return replace(named, outputs=layout, why=detector.why.replace(own, told, 1))


@dataclass(frozen=True)
class _Verdict:
    """How the outputs are read.

    Attributes:
        layout: the layout.
        question: what to ask the user, if no layout is right; else empty.
        is_certain: more runs would tell no more.
        is_empty: the layout stays because no picture shows the least object.
    """

    layout: OutputLayout
    question: str = ""
    is_certain: bool = True
    is_empty: bool = False


def _verdict(model: onnx.ModelProto, detector: Detector, looks: Sequence[Look]) -> _Verdict:
    layout = detector.outputs
    if not looks:
        return _Verdict(layout)
    is_constant = len(looks) > 1 and _is_constant(looks)
    looks = _comparable(looks, detector.size)
    shapes = {name: np.shape(array) for name, array in looks[0].outputs.items()}
    clues = clues_of(model, detector.size, shapes)
    pictures = f"{len(looks)} picture{plural(len(looks))}"
    own = _judge(detector, looks) if layout.has_boxes else None
    readings = _readings(score_tables(clues, layout, looks))
    best = next((each for each in readings if each.is_good), None)
    if own is not None and own.scale and not own.contradiction and not (best is not None and best.box.share > _SURE):
        question = (
            f"outputs {_listed(shapes)} look like those of family {layout.family}, but the boxes are {own.scale}, "
            f"and not of {size_text(detector.size)}: export the model for the size of its input, or scale the boxes in "
            "the graph"
        )
        return _Verdict(layout, question, is_certain=own.objects >= _ENOUGH_OBJECTS)
    if own is not None and _stays(own, best, layout):
        is_certain = own.objects >= _ENOUGH_OBJECTS and not (best is not None and best.rivals)
        is_empty = own.objects == 0 and best is None
        return _Verdict(
            replace(layout, sure=_how_sure(own, best, pictures, is_constant)), is_certain=is_certain, is_empty=is_empty
        )
    if best is None:
        if own is None:
            return _Verdict(layout, is_certain=not readings)
        question = (
            f"outputs {_listed(shapes)} look like those of family {layout.family}, but {own.contradiction}: "
            f"state what the columns hold with --layout, as in --layout {' '.join(CORNERS)} score label"
        )
        return _Verdict(layout, question, is_certain=False)
    alike = [each for each in readings if each is not best and _is_rival(each, best)]
    texts = dict.fromkeys(text for each in (best, *alike) for text in each.texts)
    if len(texts) > 1:
        listed = ", or ".join(f"--layout {text}" for text in [*texts][:_LISTED])
        if len(texts) > _LISTED:
            listed += f", or one of {len(texts) - _LISTED} more that fit"
        question = f"outputs {_listed(shapes)} can be read in several ways, and {pictures} do not tell: give {listed}"
        return _Verdict(layout, question, is_certain=False)
    columns = best.table.columns(best.box.words, best.box.shares, _is_finished(best, model))
    found = columns_layout(columns, clues, f"read as --layout {columns.text}")
    repeats = columns.finished and duplicates(best.table.best, best.box.words, best.box.shares) > _MANY_DUPLICATES
    sure = f"told by the values on {pictures}{_remedy(best) if repeats else ''}"
    return _Verdict(replace(found, sure=sure), is_certain=best.table.best.objects >= _ENOUGH_OBJECTS)


def _comparable(looks: Sequence[Look], size: tuple[int, int]) -> list[Look]:
    """Return the looks; if the outputs are the same on all pictures, the parts of the pictures tell nothing."""
    return [replace(each, region=(0, 0, size[1], size[0])) for each in looks] if _is_constant(looks) else list(looks)


def _is_constant(looks: Sequence[Look]) -> bool:
    first = looks[0].outputs
    return all(np.array_equal(array, each.outputs[name]) for each in looks[1:] for name, array in first.items())


def _listed(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {shape_text(shape)}" for name, shape in shapes.items())


def _with(detector: Detector, layout: OutputLayout) -> Detector:
    """Return the detector with another layout; its reason replaces the one of the layout before."""
    why = detector.why.replace(detector.outputs.why, layout.why, 1)
    return replace(detector, outputs=layout, why=f"{why}; {layout.sure}" if layout.sure else why)


# The layout that the shapes show


def _judge(detector: Detector, looks: Sequence[Look]) -> _Recognized:
    every = [decode(look.outputs, detector, _LEAST_SCORE) for look in looks]
    found = [each.take(np.argsort(-each.scores, kind="stable")[:ROWS]) for each in every]
    which = np.repeat(np.arange(len(looks)), [len(each) for each in found])
    best = Best(
        np.concatenate([each.boxes for each in found]),
        np.concatenate([each.scores for each in found]),
        np.concatenate([each.labels for each in found]),
        which,
        np.array([look.region for look in looks], np.float32)[which],
        detector.size,
    )
    share = share_inside(best, CORNERS, False)
    return _Recognized(
        best.objects,
        share,
        _contradiction(detector.outputs, len(detector.names), looks, best),
        doubtful=_doubtful(detector, looks),
        repeats=detector.outputs.is_finished and duplicates(best, CORNERS, False) > _MANY_DUPLICATES,
        is_sorted=all(falls(each.scores) for each in every),
        scale=_scale(best) if share < _GOOD and best.objects >= _LEAST_OBJECTS else "",
    )


def _scale(best: Best) -> str:
    found = None if are_shares(best.boxes) else other_scale(best)
    if found is None:
        return ""
    # Sizes that differ by a tenth cannot be told apart.
    also = {96: ", or percent", 100: ", or percent", 992: ", or thousandths", 1000: ", or thousandths"}
    return f"px of an input of about {found[0]} px{also.get(found[0], '')}"


def _contradiction(layout: OutputLayout, classes: int, looks: Sequence[Look], best: Best) -> str:
    if not is_unit(best.scores):
        return f"the scores {_beyond_unit(best.scores)}"
    if classes and len(best.labels) and best.labels.min() > 0 and best.labels.max() == classes:
        return f"the labels are {best.labels.min()} to {classes}, and the classes 0 to {classes - 1}"
    if are_shares(best.boxes) and len(best.boxes) > 1:
        return f"the boxes reach {np.abs(best.boxes).max():.3g} px, as if they were shares of the picture"
    if layout.family == "end2end":
        rows = np.concatenate([np.asarray(look.outputs[layout.outputs[0]])[0] for look in looks])
        if is_whole(rows[:, 4]) and not is_whole(rows[:, 5]):
            return "the fifth column has whole numbers and no scores, and the sixth no whole numbers"
        if not is_whole(rows[rows[:, 4] > _LEAST_SCORE, 5]):
            return "the classes are not whole numbers"
    return ""


def _beyond_unit(scores: NDArray[np.float32]) -> str:
    if scores.max() <= 1:
        return f"are as low as {scores.min():.3g}"
    percent = (
        " (--layout has the word percent)" if LEAST_PERCENT < scores.max() <= PERCENT and scores.min() >= 0 else ""
    )
    return f"reach {scores.max():.3g}{percent}"


def _doubtful(detector: Detector, looks: Sequence[Look]) -> bool:
    """Whether values speak against an objectness that only the number of rows shows, or for one."""
    layout = detector.outputs
    if layout.family not in ("v5", "v8") or detector.names or layout.task != "detect":
        return False
    tables = [rows_first(np.asarray(look.outputs[layout.outputs[0]])[0]) for look in looks]
    width = tables[0].shape[1]
    told = objectness_told(tables, 4, range(5, width)) if width > 5 else None
    return told is not None and told != (layout.family == "v5")


def _stays(own: _Recognized, best: _Reading | None, layout: OutputLayout) -> bool:
    """Whether the layout that the shapes show is the right one."""
    if best is None:
        return not own.contradiction
    reads_more = best.table.is_labelled and best.table.outputs > len(layout.outputs)
    if own.contradiction or own.doubtful or reads_more or (own.repeats and not own.is_sorted):
        return False
    if own.objects < _LEAST_OBJECTS:
        return best.table.best.objects < 2 * _LEAST_OBJECTS
    return own.share >= best.box.share - _CLEAR and 3 * own.objects >= best.table.best.objects


def _how_sure(own: _Recognized, best: _Reading | None, pictures: str, is_constant: bool) -> str:
    if own.objects < _LEAST_OBJECTS:
        return f"by shape alone: no object on {pictures} confirms it"
    if is_constant:
        return f"by shape alone: the outputs are the same on {pictures}"
    if own.share < _GOOD:
        return f"by shape: boxes on {pictures} often lie where the picture is empty (see --layout)"
    if best is not None and best.rivals:
        return f"by shape, as the values on {pictures} fit several layouts, also --layout {best.texts[1]}"
    if own.repeats:
        return f"confirmed by the values on {pictures}{'' if best is None else _remedy(best)}"
    return f"confirmed by the values on {pictures}"


def _remedy(reading: _Reading) -> str:
    """What to say of a model that is to remove duplicates and does not."""
    columns = reading.table.columns(reading.box.words, reading.box.shares, finished=False)
    return f", but many boxes repeat, which --layout {columns.text} removes"


# Other layouts


def _readings(tables: Iterable[ScoreTable]) -> list[_Reading]:
    """Return each way to read the outputs with the order of the boxes' columns that explains them best."""
    readings = []
    for table in tables:
        fits = box_fits(table.best, table.is_labelled, _CLEAR)
        rivals = tuple(each for each in fits[1:] if each.share >= _GOOD and each.total >= fits[0].total - _CLEAR)
        readings.append(_Reading(table, fits[0], rivals))
    good = [each for each in readings if each.is_good and each.table.is_labelled]
    return sorted(good or readings, key=lambda each: -round(each.box.share, 2))


def _is_rival(other: _Reading, best: _Reading) -> bool:
    """Whether another reading explains the outputs nearly as well."""
    return other.is_good and other.box.share >= best.box.share - _CLEAR


def _is_finished(reading: _Reading, model: onnx.ModelProto) -> bool:
    """Whether the model removes duplicates itself.

    Scores of all classes in no order are candidates also beside a suppression, which may give indices of them.
    """
    table = reading.table
    if table.is_sorted or (table.is_labelled and selects_boxes(model.graph)):
        return True
    return (
        duplicates(table.best, reading.box.words, reading.box.shares) <= _MANY_DUPLICATES
        and table.rows <= _MOST_FINISHED
    )
