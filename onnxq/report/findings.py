"""What stands out in a report, each with the options that may help."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from statistics import fmean
from typing import Any

Report = dict[str, Any]

Finding = dict[str, str]
"""`what` was found and what to `try`, a sentence each; options stand between backticks."""

_CLIPPED = 0.002
"""Share of the values outside a range from which on it is told."""

_LOUD = 30.0
"""dB below which rounding a tensor is told."""

_APART = 3.0
"""dB by which one kind of layer must lie below the others, or one method above another, to be told."""

_MOST = 3
"""Names in a sentence."""


def findings(report: Report) -> list[Finding]:
    """What stands out in a report, the weightiest first.

    Args:
        report: as `report.build` makes it.
    """
    return [{"what": what, "try": remedy} for rule in _RULES for what, remedy in rule(report)]


_Said = Iterator[tuple[str, str]]


def _synthetic(report: Report) -> _Said:
    if report["synthetic"]:
        yield (
            "The ranges are those of synthetic scenes, as no pictures were given.",
            "`--calib DIR` with some 100 pictures of the kind that the model will see",
        )


def _unfused(report: Report) -> _Said:
    layers = report["layers"]["unfused"]
    if layers:
        yield f"{report['runtime']} runs {_names(layers)} in float all the same.", f"`--exclude {layers[0]}`"


def _sensitive(report: Report) -> _Said:
    """By how far boxes move, which AP hangs on."""
    measured = [piece for piece in report["sensitivity"] if piece["moved"] is not None]
    worst = [piece["nodes"][0] for piece in measured[:_MOST]]
    total = sum(piece["moved"] for piece in measured)
    if total:
        share = sum(piece["moved"] for piece in measured[:_MOST]) / total
        kept = _keep(worst, min(report["weight_bits"], report["act_bits"]))
        yield (
            f"Of how far boxes move when layers are quantized one by one, {100 * share:.0f} % comes from "
            f"{_names(worst)}.",
            f"{kept}, or `--max-drop AP`, which finds how many it takes",
        )


def _unequal_kinds(report: Report) -> _Said:
    """Which kind of layer reads, on average, the tensors that rounding harms most."""
    read_by = {user: a["sqnr"] for a in report["activations"] if a["sqnr"] is not None for user in a["users"]}
    by_kind: dict[str, list[float]] = defaultdict(list)
    for weight in report["weights"]:
        by_kind[weight["kind"]] += [read_by[layer] for layer in weight["layers"] if layer in read_by]
    means = {kind: fmean(values) for kind, values in by_kind.items() if len(values) > 1}
    if len(means) < 2:
        return
    worst = min(means, key=lambda kind: means[kind])
    others = fmean(value for kind, values in by_kind.items() if kind != worst for value in values)
    told_by = "the sensitivities" if report["sensitivity"] else "`--sensitivity`"
    if others - means[worst] >= _APART:
        yield (
            f"{worst}s lose most: what they read has {means[worst]:.1f} dB on average, what other layers read "
            f"{others:.1f} dB.",
            f"{told_by}, for whether that matters for the objects",
        )


def _loud(report: Report) -> _Said:
    """Tensors that rounding harms much."""
    worst = sorted((a for a in _judged(report) if a["sqnr"] < _LOUD), key=lambda a: a["sqnr"])[:_MOST]
    if worst:
        said = ", ".join(f"{a['tensor']} ({a['sqnr']:.1f} dB)" for a in worst)
        yield f"Rounding costs most at {said}.", _keep(worst[0]["users"][:1], worst[0]["bits"])


def _clipped(report: Report) -> _Said:
    """The tensor of which the largest share is outside its range; in front of a SiLU that does no harm."""
    plain = [a for a in _judged(report) if not a["silu_input"]]
    worst = max(plain, key=lambda a: a["clipped"], default=None)
    if worst is not None and worst["clipped"] > _CLIPPED:
        reach = report["values"][worst["group"]]["methods"]["minmax"]
        yield (
            f"The range of {worst['tensor']}, {worst['low']:.3g} to {worst['high']:.3g}, cuts off "
            f"{100 * worst['clipped']:.2f} % of its values, which reach from {reach['low']:.3g} to "
            f"{reach['high']:.3g}.",
            "`--method minmax`, if what is rare counts; the others weigh each value alike",
        )


def _better_method(report: Report) -> _Said:
    """The method that would give most tensors clearly less noise."""
    gains: dict[str, list[float]] = defaultdict(list)
    judged = [a for a in _judged(report) if a["method"] == report["method"]]
    for activation in judged:
        for name, other in report["values"][activation["group"]]["methods"].items():
            if other["sqnr"] is not None:
                gains[name].append(other["sqnr"] - activation["sqnr"])
    counts = {name: sum(gain >= _APART for gain in values) for name, values in gains.items()}
    best = max(counts, key=lambda name: counts[name], default=None)
    if best is not None and counts[best]:
        gain = max(gains[best])
        yield (
            f"{counts[best]} of {len(judged)} tensors would have at least {_APART:g} dB less noise by {best}, up to "
            f"{gain:.1f} dB.",
            f"`--method {best}`",
        )


def _unmeasured(report: Report) -> _Said:
    if not report["sensitivity"] and report["search"] is None:
        yield (
            "What each layer costs was not measured.",
            "`--sensitivity`; or `--max-drop AP` (with labels) or `--min-sqnr DB`, which keep as few layers float as "
            "that takes",
        )


def _judged(report: Report) -> list[Report]:
    """A tensor of each group of which is known what its range costs."""
    known = [a for a in report["activations"] if a["sqnr"] is not None]
    return list({a["group"]: a for a in reversed(known)}.values())[::-1]


def _keep(names: Iterable[str], bits: int) -> str:
    """The option that keeps nodes at a higher precision: 8 bits where they have fewer, else float."""
    return f"`--bits {' '.join(f'{name}=8/8' for name in names)}`" if bits < 8 else f"`--exclude {' '.join(names)}`"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_MOST]) + (f" and {len(listed) - _MOST} more" if len(listed) > _MOST else "")


_RULES: tuple[Callable[[Report], _Said], ...] = (
    _synthetic, _unfused, _sensitive, _unequal_kinds, _loud, _clipped, _better_method, _unmeasured,
)  # fmt: skip
