"""Plots as SVG; the style sheet of the page colours them by class."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxq.report.xml import Markup, tag, together

_WIDTH = 420.0
"""Width of a histogram, px, as all lengths here."""

_LEFT, _RIGHT = 64.0, 12.0
"""Margins beside the bars."""

_TOP, _BARS = 8.0, 110.0
"""Margin above the bars, and height of the tallest one."""

_ROW = 14.0
"""Height of the row of a range method."""

_CURVE = 160.0
"""Width of a curve."""


@dataclass(frozen=True)
class _Axis:
    """Maps values to px, from left to right."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span > 0 else 0.5
        return _LEFT + min(1.0, max(0.0, share)) * (_WIDTH - _LEFT - _RIGHT)


def histogram(
    counts: Sequence[int],
    observed: tuple[float, float],
    chosen: tuple[float, float],
    others: Mapping[str, tuple[float, float]],
) -> Markup:
    """Plot a histogram with logarithmic counts, the chosen range over it and the ranges of other methods below it.

    Args:
        counts: values in each bin; bins have equal widths.
        observed: lower edge of the first bin and upper edge of the last one.
        chosen: the least and the greatest value that the integers represent.
        others: range method -> the bounds that it chooses.
    """
    axis = _Axis(min(observed[0], chosen[0]), max(observed[1], chosen[1]))
    floor = _TOP + _BARS
    height = floor + 22 + _ROW * len(others)
    left, right = axis(chosen[0]), axis(chosen[1])
    return _svg(
        height,
        "histogram of the values, with the chosen range and those of other methods",
        tag("rect", class_="band", x=_px(left), y=_px(_TOP), width=_px(max(right - left, 0.5)), height=_px(_BARS)),
        *_decades(max(counts, default=0)),
        _bars(counts, observed, axis),
        *(tag("line", class_="bound", x1=_px(x), x2=_px(x), y1=_px(_TOP), y2=_px(floor)) for x in (left, right)),
        *_ticks(axis, floor),
        *(_interval(name, bounds, axis, floor + 30 + _ROW * row) for row, (name, bounds) in enumerate(others.items())),
    )


def _bars(counts: Sequence[int], observed: tuple[float, float], axis: _Axis) -> Markup:
    width = (axis(observed[1]) - axis(observed[0])) / max(1, len(counts))
    most = max(counts, default=0)
    steps = [f"M{_px(axis(observed[0]))} {_px(_TOP + _BARS)}"]
    steps += [f"V{_px(_TOP + _BARS * (1 - _share(count, most)))}h{_px(width)}" for count in counts]
    return tag("path", class_="bars", d="".join([*steps, f"V{_px(_TOP + _BARS)}Z"]))


def _share(count: int, most: int) -> float:
    """Return the share of the full height; a count of 1 has some height, to differ from 0."""
    return math.log10(2 * count) / math.log10(2 * most) if count else 0.0


def _decades(most: int) -> Iterable[Markup]:
    """Draw lines at 1, 10, 100, ...; every second one if there are more than four."""
    decades = range(math.floor(math.log10(most)) + 1) if most else range(0)
    for decade in decades[:: 1 if len(decades) <= 4 else 2]:
        y = _TOP + _BARS * (1 - _share(10**decade, most)) if most > 1 else _TOP
        yield tag("line", class_="grid", x1=_px(_LEFT), x2=_px(_WIDTH - _RIGHT), y1=_px(y), y2=_px(y))
        yield tag("text", f"{10**decade:,}", x=_px(_LEFT - 5), y=_px(y + 3.5), text_anchor="end")


def _ticks(axis: _Axis, floor: float) -> Iterable[Markup]:
    yield tag("line", class_="axis", x1=_px(_LEFT), x2=_px(_WIDTH - _RIGHT), y1=_px(floor), y2=_px(floor))
    for value in _round_values(axis.low, axis.high):
        x = _px(axis(value))
        yield tag("line", class_="axis", x1=x, x2=x, y1=_px(floor), y2=_px(floor + 4))
        yield tag("text", f"{value:g}", x=x, y=_px(floor + 15), text_anchor="middle")


def _round_values(low: float, high: float) -> list[float]:
    """Return about four round values within an interval."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= max(factor for factor in (1, 2, 5) if factor * step <= (high - low) / 3)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _interval(name: str, bounds: tuple[float, float], axis: _Axis, y: float) -> Markup:
    left, right = axis(bounds[0]), axis(bounds[1])
    ends = f"M{_px(left)} {_px(y - 3)}v6M{_px(left)} {_px(y)}H{_px(right)}M{_px(right)} {_px(y - 3)}v6"
    label = tag("text", name, x=_px(_LEFT - 5), y=_px(y + 3.5), text_anchor="end")
    return together(label, tag("path", class_="other", d=ends))


def curve(values: Sequence[float], before: Sequence[float] = (), label: str = "scales of the channels") -> Markup:
    """Plot positive values, the greatest first, on a logarithmic scale over their ranks.

    Args:
        values: a curve, as shares of its greatest value.
        before: another curve to compare it with.
        label: what they are.
    """
    curves = [("curve before", before)] * bool(before) + [("curve", values)]
    span = max(0.5, *(math.log10(max(each) / min(each)) for _, each in curves))
    lines = (tag("polyline", class_=kind, points=_points(each, span)) for kind, each in curves)
    return tag("svg", *lines, class_="small", viewBox=f"0 0 {_CURVE:g} 48", role="img", aria_label=label)


def _points(values: Sequence[float], span: float) -> str:
    """Return the points of a curve that falls by as many decades as `span` on its whole height."""
    step, most = (_CURVE - 4) / max(1, len(values) - 1), max(values)
    points = [
        f"{_px(2 + step * rank)},{_px(4 + 40 * math.log10(most / value) / span)}" for rank, value in enumerate(values)
    ]
    return " ".join([*points, *([f"{_px(_CURVE - 2)},4"] if len(values) == 1 else [])])


def _svg(height: float, label: str, *inner: Markup) -> Markup:
    return tag("svg", *inner, viewBox=f"0 0 {_WIDTH:g} {_px(height)}", role="img", aria_label=label)


def _px(length: float) -> str:
    return f"{length:.1f}".removesuffix(".0")
