"""The command line: argv -> Config -> quantize -> files and a table."""

import argparse
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import onnx

from onnxq import demo, evaluate, report, screens, storage
from onnxq.api import Quantized, cut_head, load, open_data, plan, quantize
from onnxq.budget import Found, Judge, NoiseJudge, PrecisionJudge, refuse_shared, search
from onnxq.coco import GroundTruth
from onnxq.config import Config
from onnxq.data import Samples
from onnxq.detector import detect
from onnxq.errors import ConfigError, OnnxqError
from onnxq.facts import Plan, Sensitivities, Statistics
from onnxq.files import check_writable, replace_file
from onnxq.hooks import log_passes, save_each
from onnxq.network import Settings
from onnxq.pipeline import Hook
from onnxq.progress import Progress
from onnxq.terminal import OUT, ProgressBar, guarded, image_size
from onnxq.version import VERSION

_EXAMPLES = """\
examples:
  python -m onnxq yolov8n.onnx --calib coco/train2017
  python -m onnxq yolov8n.onnx --calib coco/train2017 --target openvino
  python -m onnxq yolov8n.onnx --calib train.txt --save-calibration yolov8n.npz
  python -m onnxq yolov8n.onnx --calibration yolov8n.npz --method mse
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 an error with its message, 2 wrong usage."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        config = _config(args)
        _check_options(args)
    except ConfigError as error:
        parser.error(str(error))
    level = logging.INFO if args.verbose else logging.ERROR if args.quiet else logging.WARNING
    return guarded(lambda: _plan(args, config) if args.dry_run else _quantize(args, config), args.debug, level)


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
    loudness.add_argument("-q", "--quiet", action="store_true", help="only errors, and the table of --dry-run")
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


@dataclasses.dataclass(frozen=True)
class _Run:
    """A model that was quantized, and how.

    Attributes:
        model: the float one.
        quantized: what came of it.
        config: the options that this took in the end.
        found: how a search came to them; None where there was none.
        truth: what AP is measured by; None where it is not.
    """

    model: onnx.ModelProto
    quantized: Quantized
    config: Config
    found: Found | None
    truth: GroundTruth | None


def _plan(args: argparse.Namespace, config: Config) -> None:
    chosen, detector = plan(args.input, config)
    table = screens.planned(chosen, detector, config, args.verbose)
    table.add_row("output", f"{_output(args, config)} (not written: --dry-run)")
    OUT.print(table)
    if args.verbose:
        screens.list_float(chosen)


def _quantize(args: argparse.Namespace, config: Config) -> None:
    start = time.perf_counter()
    output = _output(args, config)
    run = _run(args, config, output)
    _write(args, run, output)
    if not args.quiet:
        _tell(args, run, output, time.perf_counter() - start)
    if args.verbose:
        screens.list_float(run.quantized.facts[Plan])
    evaluated = None
    if args.evaluate and run.truth is not None:
        evaluated = _evaluate(args, run, run.truth, output)
    if args.report:
        _write_report(args, run, output, evaluated)
    if not args.quiet and evaluated is None:
        head = run.quantized.detector.head
        screens.say_next(args.input, output, head, args.annotations, args.images, args.demo)


def _run(args: argparse.Namespace, config: Config, output: Path) -> _Run:
    hooks = [log_passes] + ([save_each(args.save_each)] if args.save_each else [])
    with ProgressBar(args.quiet) as progress:
        progress("loading", 0, 0)
        model = load(args.input)
        _check_files(args, output)
        truth = _truth(args) if args.evaluate or args.max_drop is not None else None
        data = _data(args)
        if args.evaluate and truth is not None:
            data = _open_apart(args, config, model, truth)
        if _limit(args) is not None:
            found = _search(args, config, model, data, truth, hooks, progress)
            return _Run(model, found.quantized, found.config, found, truth)
        given = [Statistics.load(args.calibration)] if args.calibration else []
        quantized = quantize(
            model, data, config, facts=given, hooks=hooks, sensitivity=args.sensitivity, progress=progress
        )
        return _Run(model, quantized, config, None, truth)


def _write(args: argparse.Namespace, run: _Run, output: Path) -> None:
    run.quantized.save(output)
    if args.save_calibration:
        run.quantized.facts[Statistics].save(args.save_calibration)
    if args.cut_head:
        storage.save(cut_head(run.model, run.config), args.cut_head)
        with replace_file(args.cut_head.with_suffix(".json")) as temporary:
            temporary.write_text(report.to_json(report.ranges(run.quantized)))


def _write_report(args: argparse.Namespace, run: _Run, output: Path, evaluated: dict[str, Any] | None) -> None:
    made = report.build(
        run.quantized,
        run.config,
        source=args.input.name,
        before=storage.size_on_disk(args.input),
        after=storage.size_on_disk(output),
        search=None if run.found is None else run.found.summary(),
        evaluation=evaluated,
    )
    report.write(made, args.report)


def _tell(args: argparse.Namespace, run: _Run, output: Path, seconds: float) -> None:
    facts = run.quantized.facts
    screens.say_warnings(run.quantized)
    table = screens.planned(facts[Plan], run.quantized.detector, run.config, args.verbose)
    screens.add_result(table, run.quantized, f"from {args.calibration}")
    screens.add_cost(table, args.input, output, seconds, run.quantized.timings.get("observe"))
    if run.found is not None:
        screens.add_found(table, run.found)
    OUT.print(table)
    if Sensitivities in facts:
        screens.say_sensitivities(facts[Sensitivities], args.verbose)


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


def _evaluate(args: argparse.Namespace, run: _Run, truth: GroundTruth, output: Path) -> dict[str, Any]:
    """Measure, show and sum up the AP of the float model and of the file that was written."""
    settings = _settings(run.config)
    measured = []
    for path, each in ((args.input, run.model), (output, output)):
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


def _output(args: argparse.Namespace, config: Config) -> Path:
    output: Path = args.output or args.input.parent / f"{args.input.stem}.{config.suffix}.onnx"
    return output


def _check_files(args: argparse.Namespace, output: Path) -> None:
    """Refuse names that cannot be written, or would replace what is read, before the work is done, not after."""
    if args.report:
        report.check_name(args.report)
    if args.save_each:
        there = next(path for path in (args.save_each, *args.save_each.parents) if path.exists())
        if not there.is_dir():
            raise ConfigError(f"--save-each {args.save_each}: {there} is a file; give the name of a folder")
    taken = {args.input.resolve(): "the input"}
    read = [(path, "calibration data") for path in args.calib or ()]
    read += [(args.calibration, "the given calibration"), (args.annotations, "the file of annotations")]
    taken.update({Path(path).resolve(): what for path, what in read if path is not None})
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


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.calibration and (args.calib or args.demo):
        raise ConfigError(f"{'--demo' if args.demo else '--calib'} and --calibration: give one of the two")
    limit = _limit(args)
    if limit is not None and not math.isfinite(limit):
        raise ConfigError(f"{'--min-sqnr' if args.max_drop is None else '--max-drop'} {abs(limit)}: give a number")
    labelled = bool(args.annotations), bool(args.images)
    for option, is_given in (("--max-drop", args.max_drop is not None), ("--evaluate", args.evaluate)):
        if is_given and not (all(labelled) or (args.demo and not any(labelled))):
            raise ConfigError(f"{option} measures AP: it needs --annotations JSON and --images DIR, or --demo alone")
    if args.min_sqnr is not None and not args.demo and not args.images:
        raise ConfigError("--min-sqnr compares outputs, for which it needs --images DIR")
    if args.calibration and (args.sensitivity or limit is not None):
        raise ConfigError("--calibration keeps no pictures, which --sensitivity and limits need; give --calib")
    measures = args.evaluate or limit is not None
    if not measures and (args.annotations or args.images or args.on_calibration):
        raise ConfigError(
            "--annotations, --images, --on-calibration: for --evaluate, --max-drop or --min-sqnr; give one of these"
        )
