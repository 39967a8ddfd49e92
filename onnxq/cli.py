"""The command line: argv -> Config -> quantize -> files and a table."""

import argparse
import dataclasses
import logging
import math
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import onnx
from rich import box
from rich.table import Table
from rich.text import Text

from onnxq import demo, evaluate, report, storage
from onnxq.api import Quantized, cut_head, load, open_data, plan, quantize
from onnxq.budget import Found, Judge, NoiseJudge, PrecisionJudge, refuse_shared, search
from onnxq.coco import GroundTruth
from onnxq.config import Config
from onnxq.data import Samples
from onnxq.detector import Detector, detect
from onnxq.errors import ConfigError, OnnxqError
from onnxq.facts import Checked, Plan, Sensitivities, Statistics
from onnxq.files import check_writable, replace_file
from onnxq.hooks import log_passes, save_each
from onnxq.network import Settings
from onnxq.pipeline import Hook
from onnxq.progress import Progress
from onnxq.scheme import MAX_BITS
from onnxq.sources import plural
from onnxq.targets import TARGETS
from onnxq.terminal import OUT, LogHandler, ProgressBar, guarded, image_size, warn
from onnxq.version import VERSION

_EXAMPLES = """\
examples:
  python -m onnxq yolov8n.onnx --calib coco/train2017
  python -m onnxq yolov8n.onnx --calib coco/train2017 --target openvino -o yolov8n.ov.onnx
  python -m onnxq yolov8n.onnx --calib train.txt --save-calibration yolov8n.npz
  python -m onnxq yolov8n.onnx --calibration yolov8n.npz --method mse
"""

_MOST_SHOWN = 10
"""Pieces of the network whose sensitivity is shown without -v."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 an error with its message, 2 wrong usage."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        config = _config(args)
    except ConfigError as error:
        parser.error(str(error))
    _log_to_terminal(args.verbose, args.quiet)
    return guarded(lambda: _plan(args, config) if args.dry_run else _quantize(args, config), args.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onnxq",
        usage="onnxq INPUT.onnx [-o OUT] [--calib PATH ...] [options]   (-h lists them)",
        description="Quantize an exported YOLO detector: a float .onnx in, a fast QDQ .onnx out that keeps its mAP.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, metavar="INPUT.onnx", help="the float model")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="default: INPUT.int8.onnx beside the input")
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--calib", nargs="+", metavar="PATH",
        help="what to calibrate with: image folder, glob, .txt list, .npz, .npy, COCO .json; default: synthetic scenes",
    )  # fmt: skip
    data.add_argument("--demo", action="store_true", help="use pictures that onnxq paints, for models/demo.onnx")
    _add_config(parser.add_argument_group("how to quantize"))
    good = parser.add_argument_group("how good it has to be")
    good.add_argument("--sensitivity", action="store_true", help="measure what each layer costs, alone on integers")
    limit = good.add_mutually_exclusive_group()
    limit.add_argument(
        "--max-drop", type=float, metavar="AP",
        help="keep the most sensitive layers at a higher precision until no more than these points are lost",
    )  # fmt: skip
    limit.add_argument("--min-sqnr", type=float, metavar="DB", help="the same without labels, by noise in the outputs")
    good.add_argument("--evaluate", action="store_true", help="measure the AP of the float and of the quantized model")
    good.add_argument("--annotations", type=Path, metavar="JSON", help="COCO file that AP is measured by")
    good.add_argument("--images", type=Path, metavar="DIR", help="its pictures; others than are calibrated with")
    good.add_argument("--on-calibration", action="store_true", help="measure on pictures that are calibrated with too")
    files = parser.add_argument_group("other files")
    files.add_argument("--save-calibration", type=Path, metavar="FILE", help="keep what was observed, as .npz")
    files.add_argument("--calibration", type=Path, metavar="FILE", help="use what was kept instead of running data")
    files.add_argument("--save-each", type=Path, metavar="DIR", help="save the model after each pass that edits it")
    files.add_argument(
        "--cut-head", type=Path, metavar="FILE",
        help="save the float model without its decode, as .onnx, and the ranges of its tensors beside it, as .json",
    )  # fmt: skip
    files.add_argument("--report", type=Path, metavar="FILE", help="every range and reason, as .html, .md or .json")
    talk = parser.add_argument_group("what to say")
    talk.add_argument("--dry-run", action="store_true", help="only say what would be quantized, and why the rest not")
    loudness = talk.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="a line per pass, and every float node's reason")
    loudness.add_argument("-q", "--quiet", action="store_true", help="only errors")
    talk.add_argument("--debug", action="store_true", help="show the traceback of errors")
    talk.add_argument("--version", action="version", version=f"onnxq {VERSION}")
    return parser


def _add_config(group: "argparse._ArgumentGroup") -> None:
    """One flag per field of Config."""
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        help_text, choices, metavar = (field.metadata[key] for key in ("help", "choices", "metavar"))
        if field.default is False:
            group.add_argument(flag, action="store_true", help=help_text)
        elif field.default is True or field.type == bool | None:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=help_text)
        elif field.default == ():
            group.add_argument(flag, action="extend", nargs="+", default=[], metavar=metavar, help=help_text)
        elif field.type == int | None:
            group.add_argument(flag, type=int, metavar=metavar, help=help_text)
        elif field.name == "image_size":
            group.add_argument(flag, type=image_size, metavar=metavar, help=help_text)
        else:
            kind, default = type(field.default), field.default
            help_text = f"{help_text} ({default})"
            group.add_argument(flag, type=kind, default=default, choices=choices, metavar=metavar, help=help_text)


def _config(args: argparse.Namespace) -> Config:
    values: dict[str, Any] = {field.name: getattr(args, field.name) for field in dataclasses.fields(Config)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Config(**values)


def _log_to_terminal(verbose: bool, quiet: bool) -> None:
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, handlers=[LogHandler()], force=True)


def _plan(args: argparse.Namespace, config: Config) -> None:
    chosen, detector = plan(args.input, config)
    table = _table()
    _say_detector(table, detector)
    _say_plan(table, chosen, config)
    table.add_row("output", f"{_output(args, config)} (not written: --dry-run)")
    OUT.print(table)
    if args.verbose:
        _list_float(chosen)


def _quantize(args: argparse.Namespace, config: Config) -> None:
    start = time.perf_counter()
    model = load(args.input)
    output = _output(args, config)
    _check_files(args, output)
    truth = _truth(args) if args.evaluate or args.max_drop is not None else None
    data = _data(args)
    if args.evaluate and truth is not None:
        data = _open_apart(args, config, model, truth)
    given = [Statistics.load(args.calibration)] if args.calibration else []
    hooks = [log_passes] + ([save_each(args.save_each)] if args.save_each else [])
    found = None
    with ProgressBar(args.quiet) as progress:
        if _limit(args) is None:
            quantized = quantize(
                model, data, config, facts=given, hooks=hooks, sensitivity=args.sensitivity, progress=progress
            )
        else:
            found = _search(args, config, model, data, truth, hooks, progress)
            quantized, config = found.quantized, found.config
    quantized.save(output)
    if args.save_calibration:
        quantized.facts[Statistics].save(args.save_calibration)
    if args.cut_head:
        _save_cut(model, quantized, config, args.cut_head)
    if not args.quiet:
        _say_warnings(quantized)
        summary = _summary(args, config, quantized, output, time.perf_counter() - start)
        if found is not None:
            _say_found(summary, found)
        OUT.print(summary)
        if Sensitivities in quantized.facts:
            _say_sensitivities(quantized.facts[Sensitivities], None if args.verbose else _MOST_SHOWN)
    if args.verbose:
        _list_float(quantized.facts[Plan])
    evaluated = None
    if args.evaluate and truth is not None:
        evaluated = _evaluate(args, config, model, output, truth)
    if args.report:
        made = report.build(
            quantized,
            config,
            source=args.input.name,
            before=storage.size_on_disk(args.input),
            after=storage.size_on_disk(output),
            search=None if found is None else found.summary(),
            evaluation=evaluated,
        )
        report.write(made, args.report)
    if not args.quiet and evaluated is None:
        models = shlex.join([str(args.input), str(output)])
        measurable = not quantized.detector.head.why_no_precision
        pictures = "--demo" if args.demo else "--annotations A.json --images DIR" if measurable else "--images DIR"
        command = "evaluate" if measurable else "compare"
        OUT.print(f"next: python -m onnxq.{command} {models} {pictures}", soft_wrap=True)  # not wrapped, to be copied


def _data(args: argparse.Namespace) -> object:
    """What to calibrate with, as `quantize` takes it."""
    return demo.CALIBRATION if args.demo else args.calib


def _truth(args: argparse.Namespace) -> GroundTruth:
    """What AP is measured by."""
    return GroundTruth.load(args.annotations, args.images) if args.annotations else demo.ground_truth()


def _open_apart(args: argparse.Namespace, config: Config, model: onnx.ModelProto, truth: GroundTruth) -> Samples:
    """The data to calibrate with, once it is known that AP can be measured, and on other pictures."""
    with _evaluating():
        evaluate.check(model, truth, _settings(config))
    detector = detect(model, image_size=config.image_size, preprocess=config.preprocess)
    samples = open_data(_data(args), model, detector, config)
    if not args.on_calibration:
        refuse_shared(samples.files, truth.files)
    return samples


def _evaluate(
    args: argparse.Namespace, config: Config, model: onnx.ModelProto, output: Path, truth: GroundTruth
) -> dict[str, Any]:
    """Measure, show and sum up the AP of the float model and of the file that was written."""
    settings = _settings(config)
    measured = []
    for path, each in ((args.input, model), (output, output)):
        with _evaluating(f"; {output} is written all the same"), ProgressBar(args.quiet) as progress:
            measured.append((path, evaluate.measure(each, truth, settings, progress)))
    if not args.quiet:
        OUT.print(evaluate.table(measured))
    return evaluate.summary(measured, args.annotations or "demo", settings)


@contextmanager
def _evaluating(ending: str = "") -> Iterator[None]:
    """Say of errors from within which option they are of."""
    try:
        yield
    except OnnxqError as error:
        raise type(error)(f"--evaluate: {error}{ending}") from error


def _settings(config: Config) -> Settings:
    return Settings(preprocess=config.preprocess, image_size=config.image_size)


def _limit(args: argparse.Namespace) -> float | None:
    """The greatest loss, as the judge has it."""
    return cast("float | None", args.max_drop if args.min_sqnr is None else -args.min_sqnr)


def _search(
    args: argparse.Namespace,
    config: Config,
    model: onnx.ModelProto,
    data: object,
    truth: GroundTruth | None,
    hooks: Sequence[Hook],
    progress: Progress,
) -> Found:
    judge: Judge
    if args.min_sqnr is None and truth is not None:
        judge = PrecisionJudge(model, truth, _settings(config))
    else:
        judge = NoiseJudge(model, args.images or demo.VALIDATION, config)
    return search(
        model,
        data,
        config,
        judge,
        cast("float", _limit(args)),
        cache=_search_record(_output(args, config)),
        on_calibration=args.on_calibration,
        hooks=hooks,
        progress=progress,
    )


def _search_record(output: Path) -> Path:
    return output.with_suffix(".search.json")


def _say_found(table: Table, found: Found) -> None:
    wide = [piece.nodes[0] for piece in found.kept if piece.bits is not None]
    floats = [piece.nodes[0] for piece in found.kept if piece.bits is None]
    trials = f"{len(found.trials)} trial{plural(len(found.trials))}"
    table.add_row("measured", f"{found.said} on {found.pictures} picture{plural(found.pictures)}, after {trials}")
    for names, what in ((wide, f"at {MAX_BITS} bits"), (floats, "float")):
        if names:
            table.add_row("kept" if names is wide or not wide else "", f"{len(names)} {what}: {', '.join(names)}")


def _say_sensitivities(found: Sensitivities, most: int | None) -> None:
    shown = f"the {most} worst of {len(found.pieces)} (-v: all)" if most and most < len(found.pieces) else "all"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("alone on integers", overflow="fold")
    table.add_column("SQNR dB", justify="right")
    table.add_column("boxes moved %", justify="right")
    for piece in found.worst_first()[:most]:
        moved = "-" if math.isnan(piece.moved) else f"{100 * piece.moved:.2f}"
        table.add_row(Text(piece.nodes[0]), f"{piece.sqnr:.1f}", moved)
    OUT.print(f"\nsensitivity, {shown}, over {found.samples} picture{plural(found.samples)}")
    OUT.print(table)


def _save_cut(model: onnx.ModelProto, quantized: Quantized, config: Config, path: Path) -> None:
    storage.save(cut_head(model, config), path)
    with replace_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(report.to_json(report.ranges(quantized)))


def _output(args: argparse.Namespace, config: Config) -> Path:
    output: Path = args.output or args.input.parent / f"{args.input.stem}.{config.suffix}.onnx"
    return output


def _check_files(args: argparse.Namespace, output: Path) -> None:
    """Refuse names that cannot be written, or would replace what is read, before the work is done, not after."""
    if args.calibration and (args.calib or args.demo):
        raise ConfigError(f"{'--demo' if args.demo else '--calib'} and --calibration: give one of the two")
    _check_limit(args)
    if args.report:
        report.check_name(args.report)
    if args.save_each:
        there = next(path for path in (args.save_each, *args.save_each.parents) if path.exists())
        if not there.is_dir():
            raise ConfigError(f"--save-each {args.save_each}: {there} is a file; give the name of a folder")
    taken = {args.input.resolve(): "the input"}
    if args.calibration:
        taken[args.calibration.resolve()] = "the given calibration"
    written = [("-o", output), ("--save-calibration", args.save_calibration), ("--report", args.report)]
    if _limit(args) is not None:
        written.append(("-o", _search_record(output)))
    if args.cut_head:
        if args.cut_head.suffix != ".onnx":
            raise ConfigError(f"--cut-head {args.cut_head}: the name must end in .onnx")
        written += [("--cut-head", args.cut_head), ("--cut-head", args.cut_head.with_suffix(".json"))]
    for option, path in written:
        if path is None:
            continue
        if path.resolve() in taken:
            raise ConfigError(f"{path}: is {taken[path.resolve()]}; give another name with {option}")
        taken[path.resolve()] = f"written by {option} already"
        check_writable(path)


def _check_limit(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    labelled = bool(args.annotations), bool(args.images)
    for option, is_given in (("--max-drop", args.max_drop is not None), ("--evaluate", args.evaluate)):
        if is_given and not (all(labelled) or (args.demo and not any(labelled))):
            raise ConfigError(f"{option} measures AP, for which it needs --annotations JSON and --images DIR")
    if args.min_sqnr is not None and not args.demo and not args.images:
        raise ConfigError("--min-sqnr compares outputs, for which it needs --images DIR")
    if args.calibration and (args.sensitivity or _limit(args) is not None):
        raise ConfigError("--calibration keeps no pictures, which --sensitivity and limits need; give --calib")
    measures = args.evaluate or _limit(args) is not None
    if not measures and (args.annotations or args.images or args.on_calibration):
        raise ConfigError(
            "--annotations, --images, --on-calibration: for --evaluate, --max-drop or --min-sqnr; give one of these"
        )


def _table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _summary(args: argparse.Namespace, config: Config, quantized: Quantized, output: Path, seconds: float) -> Table:
    table = _table()
    _say_detector(table, quantized.detector)
    _say_plan(table, quantized.facts[Plan], config)
    checked = quantized.facts[Checked]
    samples = quantized.samples
    table.add_row("calibration", samples.description if samples else f"from {args.calibration}")
    if samples and samples.skipped:
        such_as = "," if len(samples.skipped) == 1 else ", such as"
        table.add_row("", f"{len(samples.skipped)} left out{such_as} {next(iter(samples.skipped))}")
    if checked.fused is not None:
        wanted = len(quantized.facts[Plan].layers)
        table.add_row(checked.runtime, f"runs {checked.fused} of these {wanted} on integers")
    for doubt in quantized.doubts:
        table.add_row(Text("warning", "bold yellow"), Text(doubt))
    for name, sqnr in checked.sqnr.items():
        table.add_row("SQNR", f"{sqnr:.1f} dB in {name}")
    before, after = storage.size_on_disk(args.input), storage.size_on_disk(output)
    table.add_row("size", f"{before / 1e6:.2f} MB -> {after / 1e6:.2f} MB")
    table.add_row("time", f"{seconds:.1f} s, calibration {quantized.timings.get('observe', 0.0):.1f} s of it")
    table.add_row("output", Text(str(output), "bold green"))
    return table


def _say_detector(table: Table, detector: Detector) -> None:
    height, width = detector.size
    table.add_row("model", f"{detector.title}, {height} x {width}: {detector.why}")
    table.add_row("images", detector.preprocess.describe())


def _say_plan(table: Table, chosen: Plan, config: Config) -> None:
    convs = [name for name, op in chosen.ops.items() if op in ("Conv", "ConvTranspose")]
    floats = Counter(_reason(chosen.skipped[name]) for name in convs if name in chosen.skipped)
    bits = f"W{config.weight_bits}A{config.act_bits}"
    table.add_row("target", f"{config.target} ({TARGETS[config.target].title}), {config.chosen_method}, {bits}")
    table.add_row("Convs", f"{len(convs) - floats.total()} of {len(convs)} on integers")
    for reason, count in floats.most_common():
        table.add_row("", f"{count} float: {reason}")
    others = len(chosen.skipped) - floats.total()
    table.add_row("other nodes", f"{others} of {len(chosen.ops) - len(convs)} float (-v says which and why)")


def _reason(text: str) -> str:
    """Of all that is excluded one line, however many names were given."""
    return "excluded" if text.startswith("excluded by") else text


def _list_float(chosen: Plan) -> None:
    for name, op in chosen.ops.items():
        if name in chosen.skipped:
            OUT.print(f"float: {name} ({op}): {chosen.skipped[name]}")


def _say_warnings(quantized: Quantized) -> None:
    if quantized.samples and quantized.samples.synthetic:
        warn(
            "calibrated on synthetic scenes, as no data was given; "
            "for the best accuracy give some 100 images of the kind the model will see with --calib"
        )
    for warning in quantized.facts[Checked].warnings:
        warn(warning)
