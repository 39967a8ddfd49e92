"""Finds what stands out in a report, and suggests options that may help."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean

from onnxq.report.schema import ActivationEntry, Finding, Report

_CLIPPED_SHARE = 0.002
"""Share of values outside a range above which it is reported."""

_LOW_SQNR = 30.0
"""SQNR below which a tensor is reported, dB."""

_CLEAR_GAP = 3.0
"""SQNR gap between kinds of layers, or between range methods, from which it is reported, dB."""

_MOST_NAMES = 3
"""Most names in a sentence."""


def findings(report: Report) -> tuple[Finding, ...]:
    """Return what stands out in a report, the most important first."""
    return tuple(finding for rule in _RULES for finding in rule(report))


def _synthetic(report: Report) -> Iterator[Finding]:
    if report.synthetic:
        yield Finding(
            "The ranges come from synthetic images, as no calibration images were given.",
            "`--calib DIR` with about 100 images of the kind that the model will see",
        )


def _unfused(report: Report) -> Iterator[Finding]:
    layers = report.layers.unfused
    if layers:
        yield Finding(f"{report.runtime} runs {_names(layers)} in float all the same.", f"`--exclude {layers[0]}`")


def _sensitive(report: Report) -> Iterator[Finding]:
    """Find the parts of the network that move boxes most, which lowers AP."""
    moved = [(part.nodes[0], part.moved) for part in report.sensitivity if part.moved is not None]
    total = sum(share for _, share in moved)
    if total:
        worst = [name for name, _ in moved[:_MOST_NAMES]]
        share = sum(share for _, share in moved[:_MOST_NAMES]) / total
        kept = _keep(worst, min(report.weight_bits, report.act_bits))
        yield Finding(
            f"{100 * share:.0f} % of the movement of boxes, summed over the layers quantized one by one, comes from "
            f"{_names(worst)}.",
            f"{kept}, or `--max-drop AP`, which finds how many layers to keep",
        )


def _unequal_kinds(report: Report) -> Iterator[Finding]:
    """Find the kind of layer whose inputs have the least SQNR on average."""
    sqnr = {user: a.own.sqnr for a in report.activations if a.own.sqnr is not None for user in a.users}
    by_kind: dict[str, list[float]] = defaultdict(list)
    for weight in report.weights:
        by_kind[weight.kind] += [sqnr[layer] for layer in weight.layers if layer in sqnr]
    means = {kind: fmean(values) for kind, values in by_kind.items() if len(values) > 1}
    if len(means) < 2:
        return
    worst = min(means, key=lambda kind: means[kind])
    others = fmean(value for kind, values in by_kind.items() if kind != worst for value in values)
    source = "the sensitivities" if report.sensitivity else "`--sensitivity`"
    if others - means[worst] >= _CLEAR_GAP:
        yield Finding(
            f"Inputs of {worst}s have the most noise: {means[worst]:.1f} dB on average, those of other layers "
            f"{others:.1f} dB.",
            f"{source}, to see whether that moves boxes",
        )


def _noisy(report: Report) -> Iterator[Finding]:
    """Find the tensors with the least SQNR, of those that share a scale the worst one."""
    noisy = [(a.own.sqnr, a) for a in report.activations if a.own.sqnr is not None and a.own.sqnr < _LOW_SQNR]
    by_group: dict[str, tuple[float, ActivationEntry]] = {}
    for sqnr, activation in sorted(noisy, key=lambda pair: pair[0]):
        by_group.setdefault(activation.group, (sqnr, activation))
    worst = list(by_group.values())[:_MOST_NAMES]
    if worst:
        listed = ", ".join(f"{a.tensor} ({sqnr:.1f} dB)" for sqnr, a in worst)
        _, first = worst[0]
        yield Finding(f"Tensors with the most rounding noise: {listed}.", _keep(first.users[:1], first.bits))


def _clipped(report: Report) -> Iterator[Finding]:
    """Find the tensor with the largest share of clipped values; in front of a SiLU clipping does no harm."""
    plain = [a for _, a in _with_sqnr(report) if not a.silu_input]
    worst = max(plain, key=lambda a: a.clipped, default=None)
    if worst is not None and worst.clipped > _CLIPPED_SHARE:
        whole = report.values[worst.group].methods["minmax"]
        yield Finding(
            f"The range of {worst.tensor}, {worst.low:.3g} to {worst.high:.3g}, clips {100 * worst.clipped:.2f} % of "
            f"its values, which reach from {whole.low:.3g} to {whole.high:.3g}.",
            "`--method minmax`, if rare values matter; the other methods weigh all values alike",
        )


def _better_method(report: Report) -> Iterator[Finding]:
    """Find the range method that gives clearly less noise in most tensors."""
    gains: dict[str, list[float]] = defaultdict(list)
    judged = [(sqnr, a) for sqnr, a in _with_sqnr(report) if a.method == report.method]
    for sqnr, activation in judged:
        for name, other in report.values[activation.group].methods.items():
            if other.sqnr is not None:
                gains[name].append(other.sqnr - sqnr)
    counts = {name: sum(gain >= _CLEAR_GAP for gain in values) for name, values in gains.items()}
    best = max(counts, key=lambda name: counts[name], default=None)
    if best is not None and counts[best]:
        yield Finding(
            f"{counts[best]} of {len(judged)} tensors would have at least {_CLEAR_GAP:g} dB less noise with {best}, up "
            f"to {max(gains[best]):.1f} dB.",
            f"`--method {best}`",
        )


def _unmeasured(report: Report) -> Iterator[Finding]:
    if not report.sensitivity and report.search is None:
        yield Finding(
            "The sensitivity of the layers was not measured.",
            "`--sensitivity`; or `--max-drop AP` (without labels: `--judge agreement`) or `--min-sqnr DB`, which keep "
            "only as many layers at a higher precision as necessary",
        )


def _with_sqnr(report: Report) -> list[tuple[float, ActivationEntry]]:
    """Return the first tensor of each group whose SQNR is known, with the SQNR of the group."""
    groups: dict[str, tuple[float, ActivationEntry]] = {}
    for activation in report.activations:
        if activation.sqnr is not None:
            groups.setdefault(activation.group, (activation.sqnr, activation))
    return list(groups.values())


def _keep(names: Iterable[str], bits: int) -> str:
    """Return the option that keeps nodes at a higher precision: 8 bits if they have fewer, else float."""
    return f"`--bits {' '.join(f'{name}=8/8' for name in names)}`" if bits < 8 else f"`--exclude {' '.join(names)}`"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


_RULES: tuple[Callable[[Report], Iterator[Finding]], ...] = (
    _synthetic, _unfused, _sensitive, _unequal_kinds, _noisy, _clipped, _better_method, _unmeasured,
)  # fmt: skip
