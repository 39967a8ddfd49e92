"""The command line: argv -> Config -> quantize -> files and a table."""

import argparse
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import onnx

from onnxq import evaluate
from onnxq._files import atomic_write
from onnxq.api import Quantized, cut_decode, open_data, plan, quantize
from onnxq.calibration import demo
from onnxq.calibration.samples import Samples
from onnxq.calibration.statistics_file import load_statistics, save_statistics
from onnxq.config import Config
from onnxq.console import summary
from onnxq.console.arguments import (
    check_files,
    check_options,
    greatest_loss,
    make_parser,
    output_path,
    read_config,
    search_record,
)
from onnxq.console.terminal import OUT, ProgressBar, guarded
from onnxq.errors import ConfigError, OnnxqError
from onnxq.evaluation import average_precision, ground_truth
from onnxq.evaluation.criteria import Criterion, PrecisionCriterion, SqnrCriterion
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.mixed_precision import SearchResult, refuse_shared, search
from onnxq.evaluation.predictor import Settings
from onnxq.facts import Plan, Sensitivities, Statistics
from onnxq.hooks import log_passes, save_each
from onnxq.ir import storage
from onnxq.ir.load import load
from onnxq.pipeline import Hook
from onnxq.progress import Progress
from onnxq.report import build
from onnxq.yolo.detector import detect


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 an error with its message, 2 wrong usage."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        config = read_config(args)
        check_options(args)
    except ConfigError as error:
        parser.error(str(error))
    level = logging.INFO if args.verbose else logging.ERROR if args.quiet else logging.WARNING
    return guarded(lambda: _plan(args, config) if args.dry_run else _quantize(args, config), args.debug, level)


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
    found: SearchResult | None
    truth: GroundTruth | None


def _plan(args: argparse.Namespace, config: Config) -> None:
    chosen, detector = plan(args.input, config)
    table = summary.planned(chosen, detector, config, args.verbose)
    table.add_row("output", f"{output_path(args, config)} (not written: --dry-run)")
    OUT.print(table)
    if args.verbose:
        summary.list_float(chosen)


def _quantize(args: argparse.Namespace, config: Config) -> None:
    start = time.perf_counter()
    output = output_path(args, config)
    run = _run(args, config, output)
    _write(args, run, output)
    if not args.quiet:
        _tell(args, run, output, time.perf_counter() - start)
    if args.verbose:
        summary.list_float(run.quantized.facts[Plan])
    evaluated = None
    if args.evaluate and run.truth is not None:
        evaluated = _evaluate(args, run, run.truth, output)
    if args.report:
        _write_report(args, run, output, evaluated)
    if not args.quiet and evaluated is None:
        head = run.quantized.detector.outputs
        summary.say_next(args.input, output, head, args.annotations, args.images, args.demo)


def _run(args: argparse.Namespace, config: Config, output: Path) -> _Run:
    hooks = [log_passes] + ([save_each(args.save_each)] if args.save_each else [])
    with ProgressBar(args.quiet) as progress:
        progress("loading", 0, 0)
        model = load(args.input)
        check_files(args, output)
        truth = _truth(args) if args.evaluate or args.max_drop is not None else None
        data = _data(args)
        if args.evaluate and truth is not None:
            data = _open_apart(args, config, model, truth)
        if greatest_loss(args) is not None:
            found = _search(args, config, model, data, truth, hooks, progress)
            return _Run(model, found.quantized, found.config, found, truth)
        given = [load_statistics(args.calibration)] if args.calibration else []
        quantized = quantize(
            model, data, config, facts=given, hooks=hooks, sensitivity=args.sensitivity, progress=progress
        )
        return _Run(model, quantized, config, None, truth)


def _write(args: argparse.Namespace, run: _Run, output: Path) -> None:
    run.quantized.save(output)
    if args.save_calibration:
        save_statistics(run.quantized.facts[Statistics], args.save_calibration)
    if args.cut_decode:
        storage.save(cut_decode(run.model, run.config), args.cut_decode)
        with atomic_write(args.cut_decode.with_suffix(".json")) as temporary:
            temporary.write_text(build.to_json(build.ranges(run.quantized)))


def _write_report(args: argparse.Namespace, run: _Run, output: Path, evaluated: dict[str, Any] | None) -> None:
    made = build.build(
        run.quantized,
        run.config,
        source=args.input.name,
        before=storage.size_on_disk(args.input),
        after=storage.size_on_disk(output),
        search=None if run.found is None else run.found.summary(),
        evaluation=evaluated,
    )
    build.write(made, args.report)


def _tell(args: argparse.Namespace, run: _Run, output: Path, seconds: float) -> None:
    facts = run.quantized.facts
    summary.say_warnings(run.quantized)
    table = summary.planned(facts[Plan], run.quantized.detector, run.config, args.verbose)
    summary.add_result(table, run.quantized, f"from {args.calibration}")
    summary.add_cost(table, args.input, output, seconds, run.quantized.timings.get("observe"))
    if run.found is not None:
        summary.add_found(table, run.found)
    OUT.print(table)
    if Sensitivities in facts:
        summary.say_sensitivities(facts[Sensitivities], args.verbose)


def _data(args: argparse.Namespace) -> object:
    """What to calibrate with, as `quantize` takes it."""
    return demo.CALIBRATION if args.demo else args.calib


def _truth(args: argparse.Namespace) -> GroundTruth:
    """What AP is measured by."""
    return GroundTruth.load(args.annotations, args.images) if args.annotations else ground_truth.demo_ground_truth()


def _open_apart(args: argparse.Namespace, config: Config, model: onnx.ModelProto, truth: GroundTruth) -> Samples:
    """The data to calibrate with, once it is known that AP can be measured, and on other pictures."""
    with _evaluating():
        average_precision.check_measurable(model, truth, _settings(config))
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
            measured.append((path, average_precision.measure_precision(each, truth, settings, progress)))
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


def _search(
    args: argparse.Namespace,
    config: Config,
    model: onnx.ModelProto,
    data: object,
    truth: GroundTruth | None,
    hooks: Sequence[Hook],
    progress: Progress,
) -> SearchResult:
    judge: Criterion
    if args.min_sqnr is None and truth is not None:
        judge = PrecisionCriterion(model, truth, _settings(config))
    else:
        judge = SqnrCriterion(model, args.images or demo.VALIDATION, config)
    return search(
        model,
        data,
        config,
        judge,
        cast("float", greatest_loss(args)),
        cache=search_record(output_path(args, config)),
        on_calibration=args.on_calibration,
        hooks=hooks,
        progress=progress,
    )
