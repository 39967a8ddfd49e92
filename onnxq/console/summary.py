"""The summary that `python -m onnxq` prints: the model, the result, the cost of each layer, the next command."""

import math
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.text import Text

from onnxq._text import plural
from onnxq.api import Quantized
from onnxq.calibration.dataset_yaml import SUFFIXES
from onnxq.calibration.demo import CLASSES
from onnxq.calibration.find_files import kinds_text
from onnxq.config import AUTO, Config
from onnxq.console.terminal import OUT, Listing, NumberTable, say, warn
from onnxq.evaluation.annotations.class_keys import class_key
from onnxq.evaluation.mixed_precision import WIDENED_BITS, SearchResult
from onnxq.facts import Plan, QuantizationParameters, Sensitivities, Speed, Verification
from onnxq.ir import storage
from onnxq.qdq.reasons import summary_of
from onnxq.qdq.tensor_result import final_migration
from onnxq.remote.address import Location
from onnxq.yolo.detector import Detector
from onnxq.yolo.output_layout import UNKNOWN

_MOST_SHOWN = 10
"""Pieces of the network whose sensitivity is shown without -v."""

_ORDER_COUNTS = "; objects that stand in another order count as noise"

_SELECTED = ", before objects are selected"

_FEW_WIDTHS = 4
"""Widths of single nodes that a line names."""


def planned(plan: Plan, detector: Detector, config: Config, verbose: bool) -> Listing:
    """Return a table with the recognized model and the number of nodes that will run on integers."""
    table = Listing()
    height, width = detector.size
    table.add_row("model", f"{detector.title}, {height} x {width}: {detector.why}")
    is_guess = detector.family == UNKNOWN and config.preprocess == AUTO and detector.why == detector.outputs.why
    assumed = " (assumed, as the outputs are of no known family: --preprocess says otherwise)" if is_guess else ""
    table.add_row("images", f"{detector.preprocess.describe()}{assumed}")
    widths, singles = config.all_widths, len(config.bits)
    if singles > _FEW_WIDTHS and not verbose:
        widths = f"W{config.weight_bits}A{config.act_bits}, and {singles} nodes with other widths (-v says which)"
    table.add_row("target", f"{config.target} ({config.placement.title}), {config.method_used}, {widths}")
    convs = [name for name, op in plan.ops.items() if op in ("Conv", "ConvTranspose")]
    floats = Counter(summary_of(plan.skipped[name]) for name in convs if name in plan.skipped)
    table.add_row("Convs", f"{len(convs) - floats.total()} of {len(convs)} on integers")
    stored = Counter(weight.scheme.bits for weight in plan.weights for _ in weight.users)
    if len(stored) > 1:
        table.add_row("", ", ".join(f"{stored[bits]} with {bits}-bit weights" for bits in sorted(stored)))
    for reason, count in floats.most_common():
        table.add_row("", f"{count} float: {reason}")
    others = len(plan.skipped) - floats.total()
    more = " (-v says which and why)" if others and not verbose else ""
    table.add_row("other nodes", f"{others} of {len(plan.ops) - len(convs)} float{more}")
    return table


def add_result(table: Listing, quantized: Quantized, otherwise: str, verbose: bool) -> None:
    """Add the calibration data (`otherwise` if none was read), what runs on integers, and the noise."""
    checked, samples = quantized.facts[Verification], quantized.samples
    table.add_row("calibration", samples.description if samples else otherwise)
    if samples and samples.skipped:
        such_as = "," if len(samples.skipped) == 1 else ", such as"
        table.add_row("", f"{len(samples.skipped)} left out{such_as} {next(iter(samples.skipped))}")
    if samples and samples.other_kinds:
        table.add_row("", f"left out by kind: {kinds_text(samples.other_kinds)}")
    if checked.fused is not None:
        wanted = len(quantized.facts[Plan].layers)
        table.add_row(checked.runtime, f"runs {checked.fused} of {wanted} quantized layers on integers")
    migrated = final_migration(quantized.facts)
    if migrated.scales or migrated.why_none:
        count = len(migrated.scales)
        moved = f"scales of channels of {count} tensor{plural(count)} into weights"
        table.add_row("migrated", f"no scales: {migrated.why_none}" if migrated.why_none else moved)
    limited = quantized.facts[QuantizationParameters].limited
    if limited:
        channels = sum(limited.values())
        table.add_row(
            "any CPU",
            f"wider scales of {channels} output channel{plural(channels)} in {len(limited)} layer{plural(len(limited))}"
            f": CPUs without VNNI do not saturate{'' if verbose else ' (-v says which)'}",
        )
    if checked.checked_in:
        table.add_row("checked", f"{checked.checked_in}, {checked.cpu}{_nearness(checked)}")
    add_warnings(table, quantized.warnings)
    outputs = {output.name for output in quantized.model.graph.output}
    finished = _ORDER_COUNTS if quantized.detector.outputs.is_finished else ""
    for name, sqnr in checked.sqnr.items():
        table.add_row("SQNR", f"{sqnr:.1f} dB in {name}{finished if name in outputs else _SELECTED}")
    speed = quantized.facts.get(Speed)
    if speed is not None and speed.rounds:
        table.add_row("speed", f"{speed.ratio:.2f} times the float model's, in {speed.runtime} on this CPU")


def add_warnings(table: Listing, warnings: Iterable[str]) -> None:
    """Add a row for each warning."""
    for warning in warnings:
        table.add_row(Text("warning", "bold yellow"), Text(warning))


def _nearness(checked: Verification) -> str:
    """Return how near the run is to the exact computation of the file, in the output that is furthest from it."""
    least = min(checked.against_exact.values(), default=math.nan)
    if math.isnan(least):
        return ""
    return ": equal to the exact result" if least == math.inf else f": {least:.1f} dB against the exact result"


def add_cost(table: Listing, before: Path, after: Path, seconds: float, observing: float | None) -> None:
    """Add the sizes of both files, the total time with the time of calibration, and the output."""
    sizes = [f"{storage.size_on_disk(path) / 1e6:.2f} MB" for path in (before, after)]
    table.add_row("size", " -> ".join(sizes))
    table.add_row(
        "time", f"{seconds:.1f} s" + ("" if observing is None else f", of which calibration {observing:.1f} s")
    )
    table.add_row("output", Text(str(after), "bold green"))


def add_found(table: Listing, found: SearchResult) -> None:
    """Add what a search measured, and which layers it kept at a higher precision."""
    wide = [piece.nodes[0] for piece in found.kept if piece.bits is not None]
    floats = [piece.nodes[0] for piece in found.kept if piece.bits is None]
    trials = f"{len(found.trials)} trial{plural(len(found.trials))}"
    table.add_row("measured", f"{found.loss_text} on {found.images} image{plural(found.images)}, after {trials}")
    for names, what in ((wide, f"at {WIDENED_BITS} bits"), (floats, "float")):
        if names:
            table.add_row("kept" if names is wide or not wide else "", f"{len(names)} {what}: {', '.join(names)}")


def say_sensitivities(found: Sensitivities, every: bool) -> None:
    """Print the loss that each piece of the network causes if it alone is quantized, the worst first."""
    most = len(found.pieces) if every else min(_MOST_SHOWN, len(found.pieces))
    shown = "all" if most == len(found.pieces) else f"the {most} worst of {len(found.pieces)} (-v: all)"
    table = NumberTable("alone on integers", ["SQNR dB", "boxes moved %"])
    for piece in found.worst_first()[:most]:
        moved = "-" if math.isnan(piece.moved) else f"{100 * piece.moved:.2f}"
        table.add_row(Text(piece.nodes[0]), f"{piece.sqnr:.1f}", moved)
    say("")
    say(f"sensitivity, {shown}, on {found.samples} image{plural(found.samples)}")
    OUT.print(table)


def list_float(plan: Plan) -> None:
    """Print each float node and its reason."""
    for name, op in plan.ops.items():
        if name in plan.skipped:
            say(f"float: {name} ({op}): {plan.skipped[name]}")


def list_limited(quantized: Quantized) -> None:
    """Print each layer of which output channels have wider scales, so that no CPU saturates."""
    limited = quantized.facts[QuantizationParameters].limited
    for weight in quantized.facts[Plan].weights:
        if weight.tensor in limited:
            count = limited[weight.tensor]
            say(f"held back: {', '.join(weight.users)}: {count} output channel{plural(count)}")


def speed_warning(speed: Speed) -> str | None:
    """Return what to say of a result that is slower than the float model on this CPU; None if it is not."""
    if not speed.gains_nothing:
        return None
    return (
        f"on this CPU {speed.runtime} runs the result at {speed.ratio:.2f} times the speed of the float model "
        f"(median {speed.median:.2f}): use the float model here"
    )


def say_warnings(quantized: Quantized) -> None:
    """Print the warnings about the result on stderr."""
    if quantized.samples and quantized.samples.synthetic:
        warn(
            "calibrated on synthetic scenes, as no data was given; "
            "for the best accuracy give --calib about 100 images of the kind that the model will see"
        )
    for warning in quantized.facts[Verification].warnings:
        warn(warning)
    slow = speed_warning(quantized.facts.get(Speed) or Speed())
    if slow is not None:
        warn(slow)


def _knows_demo(detector: Detector) -> bool:
    """Return whether a model finds the objects of the synthetic images."""
    return detector.outputs.task != "obb" and sorted(map(class_key, detector.names)) == sorted(map(class_key, CLASSES))


def say_next(
    before: Path,
    after: Path,
    detector: Detector,
    config: Config,
    annotations: Path | None,
    images: Location | None,
    demo: bool,
) -> None:
    """Print the command that measures what quantization cost, in one line to copy; none if images do not fit.

    It has the options that say what the model takes and returns, as they were given: it measures on such inputs.
    """
    if detector.preprocess.planes not in (1, 3):
        return
    measurable = not detector.outputs.why_no_precision and not (demo and images is None and not _knows_demo(detector))
    labels = ["--annotations", str(annotations or "A.json")] if measurable else []
    is_data_set = measurable and annotations is not None and annotations.suffix.lower() in SUFFIXES
    pictures = [] if is_data_set and images is None else ["--images", str(images or "DIR")]
    data = ["--demo"] if demo and images is None else [*labels, *pictures]
    if config.preprocess != AUTO:
        data += ["--preprocess", config.preprocess]
    if config.image_size is not None:
        data += ["--image-size", "x".join(map(str, config.image_size))]
    stated = detector.outputs.stated
    if stated is not None and detector.outputs.is_given:
        data += ["--layout", *stated.text.split()]
    command = "evaluate" if measurable else "compare"
    OUT.print(f"next: python -m onnxq.{command} {shlex.join([str(before), str(after), *data])}")
