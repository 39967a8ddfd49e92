"""Plots of a histogram as SVG: the bounds that the unilateral histogram method chooses, and what each bound costs."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantization_error import squared_error
from onnxq.numerics.range_methods.unilateral_histogram import unilateral_histogram
from onnxq.numerics.scheme import Scheme
from onnxq.numerics.silu import SILU_MINIMUM

_WIDTH, _HEIGHT = 820, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 804, 92, 272
_COLUMN = 2
_GREY, _BLUE, _ORANGE, _GREEN, _PINK = "#848d97", "#4a8fd9", "#d9822b", "#2fa04e", "#c25a9e"
"""Mid-tones, legible on white and on black."""


def picture(name: str, histogram: Histogram) -> str:
    """Return an SVG of a SiLU output: its histogram, the extremes, and the upper bounds of `uh` at 8 and at 4 bits.

    Below it are the 16 levels of 4 bits, up to the maximum and up to the bound of `uh`. Same histogram, same bytes.

    Args:
        name: name of the tensor.
        histogram: its values; not empty.
    """
    low, high = histogram.low, histogram.high
    bound = {bits: float(unilateral_histogram(histogram, Scheme(bits), lower=SILU_MINIMUM).high) for bits in (8, 4)}
    margin = 0.02 * (high - low)
    x = partial(_place, low=low - margin, high=high + margin, start=_LEFT, end=_RIGHT)
    tops = _column_tops(histogram, x)
    least = math.floor(min(tops.values()))
    y = partial(_place, low=least, high=0, start=_BOTTOM, end=_TOP)
    shapes = [
        _text(_LEFT, 18, f"What a SiLU gives: {name}, {histogram.total:,} values", _GREY, "start", 14),
        *(_tick_y(y(power), f"{100 * 10.0**power:.{max(0, -power - 2)}f} %") for power in range(least, 1)),
        *(_tick_x(x(value), value) for value in _round_values(low, high)),
        _path([f"M{column} {_BOTTOM}V{y(top):.1f}h{_COLUMN}V{_BOTTOM}" for column, top in tops.items()], _BLUE),
        _text(14, (_TOP + _BOTTOM) / 2, "share of the values in a bin", _GREY, "middle", 12, turned=True),
    ]
    marks = [
        (low, f"min {low:.3f}", _ORANGE, 36, "start"),
        (bound[4], f"UH, 4 bits: {bound[4]:.2f}", _PINK, 54, "start"),
        (bound[8], f"UH, 8 bits: {bound[8]:.2f}", _GREEN, 72, "end"),
        (high, f"max {high:.2f}", _ORANGE, 36, "end"),
    ]
    for value, label, colour, height, anchor in marks:
        shapes.append(_rule(x(value), height, _BOTTOM, colour))
        shapes.append(_text(x(value) + (6 if anchor == "start" else -6), height + 10, label, colour, anchor))
    for top, greatest, what, colour in ((312, high, "to max", _ORANGE), (356, bound[4], "by UH", _PINK)):
        reach_low, _, step = (float(v) for v in Scheme(4).reach(SILU_MINIMUM, greatest))
        shapes += [_rule(x(reach_low + k * step), top, top + 12, colour) for k in range(16)]
        shapes.append(_text(_LEFT, top + 27, f"4 bits {what}: a level every {step:.2f}", colour, "start"))
    return _svg(_HEIGHT, shapes)


_ERROR_HEIGHT, _ERROR_TOP = 300, 36
_BOUNDS = 400
"""Number of upper bounds for which the error is drawn."""


def error_picture(name: str, histogram: Histogram) -> str:
    """Return an SVG of the mean squared error of a SiLU output over the upper bound, at 8 and at 4 bits.

    Each curve is marked at the bound of `uh` and ends at the maximum. Same histogram, same bytes.

    Args:
        name: name of the tensor.
        histogram: its values; not empty.
    """
    margin = 0.02 * (histogram.high - histogram.low)
    x = partial(_place, low=histogram.low - margin, high=histogram.high + margin, start=_LEFT, end=_RIGHT)
    highs = np.linspace(0, histogram.high, _BOUNDS + 1)[1:]
    errors = {bits: _mean_error(histogram, bits, highs) for bits in (8, 4)}
    least, most = (f(math.log10(v) for e in errors.values() for v in e) for f in (min, max))
    y = partial(_place, low=math.floor(least), high=math.ceil(most), start=_BOTTOM, end=_ERROR_TOP)
    shapes = [
        _text(_LEFT, 18, f"What the upper bound costs: {name}", _GREY, "start", 14),
        *(_tick_y(y(power), f"{10.0**power:g}") for power in range(math.floor(least), math.ceil(most) + 1)),
        *(_tick_x(x(value), value) for value in _round_values(histogram.low, histogram.high)),
        _text(14, (_ERROR_TOP + _BOTTOM) / 2, "mean squared error", _GREY, "middle", 12, turned=True),
    ]
    for bits, colour in ((8, _GREEN), (4, _PINK)):
        bound = float(unilateral_histogram(histogram, Scheme(bits), lower=SILU_MINIMUM).high)
        best = float(_mean_error(histogram, bits, np.array([bound]))[0])
        places = [f"{x(high):.1f} {y(math.log10(error)):.1f}" for high, error in zip(highs, errors[bits])]
        at_x, at_y = x(bound), y(math.log10(best))
        shapes += [
            f'<path d="M{"L".join(places)}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4" fill="{colour}"/>',
            _text(at_x, at_y - 10, f"UH, {bits} bits: {bound:.2f}", colour, "middle"),
            _text(_RIGHT, y(math.log10(errors[bits][-1])) + 18, f"minmax, {bits} bits", colour, "end"),
        ]
    return _svg(_ERROR_HEIGHT, shapes)


def _mean_error(histogram: Histogram, bits: int, highs: NDArray[np.float64]) -> NDArray[np.float64]:
    lows = np.full(highs.shape, SILU_MINIMUM)
    return squared_error(histogram, Scheme(bits), lows, highs) / histogram.total


def _svg(height: int, shapes: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">'
    return "\n".join([head, *shapes, "</svg>"]) + "\n"


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)


def _column_tops(histogram: Histogram, x: Any) -> dict[int, float]:
    """Map the left edge of each column of the plot to log10 of the largest share of a bin in it."""
    counts, edges = histogram.occupied()
    tops: dict[int, float] = {}
    for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist()):
        if count:
            column = int(x((left + right) / 2)) // _COLUMN * _COLUMN
            tops[column] = max(tops.get(column, -math.inf), math.log10(count / histogram.total))
    return tops


def _round_values(low: float, high: float) -> list[float]:
    """Return about eight round values between two numbers: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick_x(x: float, value: float) -> str:
    return _rule(x, _BOTTOM, _BOTTOM + 5, _GREY) + _text(x, _BOTTOM + 20, f"{value:g}", _GREY, "middle")


def _tick_y(y: float, text: str) -> str:
    line = f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="{_GREY}" stroke-opacity="0.35"/>'
    return line + _text(_LEFT - 8, y + 4, text, _GREY, "end")


def _rule(x: float, top: float, bottom: float, colour: str) -> str:
    return f'<path d="M{x:.1f} {top}V{bottom}" stroke="{colour}" stroke-width="1.5"/>'


def _path(parts: Iterable[str], colour: str) -> str:
    return f'<path d="{"".join(parts)}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, colour: str, anchor: str, size: int = 12, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    plain = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}"{turn}>{plain}</text>'
    )
