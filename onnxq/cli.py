"""The command line: parse arguments, quantize, write files, print the summary."""

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx

from onnxq import evaluate, prove
from onnxq.api import Quantized, cut_decode, open_data, plan, quantize
from onnxq.calibration import demo
from onnxq.calibration.samples import Samples
from onnxq.calibration.statistics_file import load_statistics, save_statistics
from onnxq.cluster import open_pool
from onnxq.compilers import Compiler
from onnxq.compilers.proof import DEFAULTS
from onnxq.config import Config
from onnxq.console import many, summary
from onnxq.console.arguments import (
    annotations,
    check_options,
    choose_input,
    greatest_loss,
    judged_images,
    judges_agreement,
    kept_samples,
    make_parser,
    output_path,
    read_config,
    search_record,
    used_files,
    without_effect,
)
from onnxq.console.terminal import ERR, OUT, ProgressBar, guarded, say, warn
from onnxq.console.used_files import UsedFiles
from onnxq.errors import ConfigError, OnnxqError
from onnxq.evaluation.annotations.yolo_labels import has_labels
from onnxq.evaluation.average_precision import (
    PrecisionSummary,
    Scores,
    check_measurable,
    measure_precision,
    summarize,
)
from onnxq.evaluation.criteria import AgreementCriterion, AgreementLoss, Criterion, PrecisionCriterion, SqnrCriterion
from onnxq.evaluation.ground_truth import GroundTruth, demo_ground_truth
from onnxq.evaluation.held_out import require_held_out
from onnxq.evaluation.mixed_precision import SearchResult, search
from onnxq.evaluation.predictor import Settings
from onnxq.evaluation.runtime_choice import AUTO, RuntimeChoice, choose_runtime, installed
from onnxq.facts import Plan, Sensitivities, Statistics
from onnxq.hooks import log_passes, save_each
from onnxq.ir import storage
from onnxq.ir.files import write_json
from onnxq.ir.load import load
from onnxq.pipeline import Hook
from onnxq.progress import Progress
from onnxq.remote.address import Location
from onnxq.report import build
from onnxq.runtime.pool import IN_PROCESS, Pool
from onnxq.yolo.detector import detect


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 success, 1 an error with a message, 2 wrong usage."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        config = read_config(args)
        check_options(args)
        choose_input(args, config)
        models = many.separate(args, config) if len(args.inputs) > 1 else []
    except ConfigError as error:
        parser.error(str(error))
    level = logging.INFO if args.verbose else logging.ERROR if args.quiet else logging.WARNING
    return guarded(lambda: _run_all(args, models, config), args.debug, level, args.max_memory)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A quantized model and how it was made.

    Attributes:
        model: the float model.
        quantized: the result.
        config: the options that give this result, those that a search added among them.
        search: result of the mixed-precision search; None without one.
        truth: ground truth for AP; None if AP is not measured.
        judge: what measures the result without labels; None if it is not measured so.
    """

    model: onnx.ModelProto
    quantized: Quantized
    config: Config
    search: SearchResult | None
    truth: GroundTruth | None
    judge: AgreementCriterion | None


@dataclasses.dataclass(frozen=True)
class _Measured:
    """The scores of the float and of the quantized model, each with its file, their summary, and what ran both."""

    results: list[tuple[Path, Scores]]
    precision: PrecisionSummary
    runtime: RuntimeChoice


def _run_all(args: argparse.Namespace, models: Sequence[argparse.Namespace], config: Config) -> None:
    """Run the command for its model, or for each of several models."""
    if not models and args.dry_run:
        _plan(args, config)
    elif args.dry_run:
        many.run_each(models, lambda one, _: _plan(one, config), IN_PROCESS)
    else:
        with open_pool(args.workers) as pool:
            if models:
                many.run_each(models, lambda one, pool: _quantize(one, config, pool, is_one=False), pool)
            else:
                _quantize(args, config, pool)


def _plan(args: argparse.Namespace, config: Config) -> None:
    quantization_plan, detector = plan(args.input, config)
    table = summary.planned(quantization_plan, detector, config, args.verbose)
    summary.add_warnings(table, detector.warnings)
    table.add_row("output", f"{output_path(args, config)} (not written: --dry-run)")
    OUT.print(table)
    if args.verbose:
        summary.list_float(quantization_plan)
    ignored = without_effect(args)
    if ignored and not args.quiet:
        warn(f"without effect, as --dry-run only plans: {', '.join(ignored)}")


def _quantize(args: argparse.Namespace, config: Config, pool: Pool, is_one: bool = True) -> many.Row:
    """Quantize a model; of one of several only what was asked for is printed."""
    start = time.perf_counter()
    compiler = _compiler(config) if args.prove else None
    output = output_path(args, config)
    if pool.is_remote:
        pool.kept = kept_samples(output)
    files = used_files(args, output)
    run = _run(args, config, files, pool)
    files.require_unchanged()
    _write(args, run, output)
    seconds = time.perf_counter() - start
    # Whatever was asked for as a file is written before anything is printed: the reader of a pipe may close it.
    measured: _Measured | None = None
    lost: AgreementLoss | None = None
    failure: OnnxqError | None = None
    try:
        if args.evaluate and run.truth is not None:
            measured = _evaluate(args, run, run.truth, output, files, pool)
        if run.judge is not None:
            lost = _judge(args, run, run.judge, output)
        if args.report:
            _write_report(args, run, output, measured.precision if measured else None, lost)
    except OnnxqError as error:
        failure = error
    is_shown = not args.quiet and (is_one or args.verbose)
    if is_shown:
        _print_summary(args, run, output, seconds)
    elif not args.quiet and Sensitivities in run.quantized.facts:
        summary.say_sensitivities(run.quantized.facts[Sensitivities], every=False)
    if args.verbose:
        summary.list_float(run.quantized.facts[Plan])
        summary.list_limited(run.quantized)
    if measured is not None and is_shown:
        _print_measured(args, run, measured)
    if lost is not None and is_shown:
        say(str(lost))
    if failure is not None:
        raise failure
    if compiler is not None:
        _prove(args, config, compiler, output)
    if is_shown and not args.evaluate:
        detector = run.quantized.detector
        labels = _next_annotations(args)
        summary.say_next(args.shown_input, output, detector, run.config, labels, args.images, args.demo)
    found, loss = measured.precision if measured else None, f"{lost.loss:+z.2f}" if lost else ""
    return many.Row.of(run.quantized, (args.input, output), seconds, found, loss)


def _run(args: argparse.Namespace, config: Config, files: UsedFiles, pool: Pool) -> _Run:
    hooks = [log_passes] + ([save_each(args.save_each)] if args.save_each else [])
    with ProgressBar(args.quiet) as progress:
        progress("loading", 0, 0)
        if args.runtime != AUTO:
            installed(args.runtime)
        model = load(args.input)
        files.check()
        measures = args.evaluate or args.max_drop is not None
        truth = _ground_truth(args) if measures and not judges_agreement(args) else None
        data = _calibration_data(args)
        judge: AgreementCriterion | None = None
        if args.evaluate:
            with _naming("--evaluate"):
                settings = replace(_settings(args, config), runtime=choose_runtime(config.target, args.runtime).name)
                if truth is not None:
                    check_measurable(model, truth, settings)
                    measured_on: Sequence[Location] = truth.files
                else:
                    judge = _agreement(args, model, settings)
                    measured_on = judge.files
            data = _open_held_out(args, config, model, measured_on)
        limit = greatest_loss(args)
        if limit is not None:
            result = _search(args, config, model, data, truth, limit, hooks, progress, pool)
            return _Run(model, result.quantized, result.config, result, truth, judge)
        given = [load_statistics(args.calibration)] if args.calibration else []
        quantized = quantize(
            model,
            data,
            config,
            facts=given,
            hooks=hooks,
            sensitivity=args.sensitivity,
            speed=args.speed,
            progress=progress,
            pool=pool,
        )
        return _Run(model, quantized, config, None, truth, judge)


def _write(args: argparse.Namespace, run: _Run, output: Path) -> None:
    run.quantized.save(output)
    if args.save_calibration:
        save_statistics(run.quantized.facts[Statistics], args.save_calibration)
    if args.cut_decode:
        cut = cut_decode(run.model, run.config)
        storage.save(cut, args.cut_decode)
        write_json(args.cut_decode.with_suffix(".json"), build.ranges(run.quantized, cut))


def _write_report(
    args: argparse.Namespace,
    run: _Run,
    output: Path,
    precision: PrecisionSummary | None,
    agreement: AgreementLoss | None,
) -> None:
    report = build.build(
        run.quantized,
        run.config,
        source=args.input.name,
        before=storage.size_on_disk(args.input),
        after=storage.size_on_disk(output),
        search=run.search,
        evaluation=precision,
        agreement=agreement,
    )
    build.write(report, args.report)


def _print_summary(args: argparse.Namespace, run: _Run, output: Path, seconds: float) -> None:
    facts = run.quantized.facts
    summary.say_warnings(run.quantized)
    table = summary.planned(facts[Plan], run.quantized.detector, run.config, args.verbose)
    summary.add_result(table, run.quantized, f"from {args.calibration}", args.verbose)
    summary.add_cost(table, args.input, output, seconds, run.quantized.timings.get("observe"))
    if run.search is not None:
        summary.add_found(table, run.search)
    OUT.print(table)
    if Sensitivities in facts:
        summary.say_sensitivities(facts[Sensitivities], args.verbose)


def _calibration_data(args: argparse.Namespace) -> object:
    """Return the calibration data as `quantize` takes it."""
    return demo.CALIBRATION if args.demo else args.calib


def _ground_truth(args: argparse.Namespace) -> GroundTruth:
    return GroundTruth.load(labels, args.images) if (labels := annotations(args)) else demo_ground_truth()


def _open_held_out(
    args: argparse.Namespace, config: Config, model: onnx.ModelProto, files: Sequence[Location]
) -> Samples:
    """Open the calibration data, and check that none of the files to measure on is among it."""
    detector = detect(model, image_size=config.image_size, preprocess=config.preprocess, layout=config.layout)
    samples = open_data(_calibration_data(args), model, detector, config)
    if not args.on_calibration:
        require_held_out(samples.files, files)
    return samples


def _evaluate(
    args: argparse.Namespace, run: _Run, truth: GroundTruth, output: Path, files: UsedFiles, pool: Pool
) -> _Measured:
    """Measure the AP of the float model and of the file that was written."""
    settings = _settings(args, run.config)
    choice = choose_runtime(run.config.target, args.runtime)
    results: list[tuple[Path, Scores]] = []
    for path, model in ((args.input, run.model), (output, output)):
        with _naming("--evaluate", f"; {output} was written"), ProgressBar(args.quiet) as progress:
            chosen = replace(settings, runtime=choice.name)
            first = results[0][1].detector if results else None
            results.append((path, measure_precision(model, truth, chosen, progress, first, pool)))
    with _naming("--evaluate", f"; {output} was written"):
        files.require_unchanged()
    return _Measured(results, summarize(results, annotations(args) or "demo", settings), choice)


def _agreement(args: argparse.Namespace, model: onnx.ModelProto, settings: Settings) -> AgreementCriterion:
    """Return what measures the agreement with the float model on the images that the options name."""
    return AgreementCriterion(model, judged_images(args) or demo.VALIDATION, settings)


def _judge(args: argparse.Namespace, run: _Run, judge: AgreementCriterion, output: Path) -> AgreementLoss:
    """Measure the loss of expected AP."""
    with _naming("--evaluate", f"; {output} was written"), ProgressBar(args.quiet) as progress:
        return judge.measured(run.quantized.model, progress)


def _compiler(config: Config) -> Compiler:
    """Return the compiler of the target.

    Raises:
        ConfigError: there is none, or it is not installed here.
    """
    with _naming("--prove"):
        compiler = prove.of_target(config.target)
        compiler.require(sys.executable)
    return compiler


def _prove(args: argparse.Namespace, config: Config, compiler: Compiler, output: Path) -> None:
    """Build the file that was written, and print what runs on integers."""
    settings = replace(_settings(args, config), confidence=DEFAULTS.confidence, max_images=DEFAULTS.max_images)
    images = args.images or (demo.VALIDATION if args.demo else None)
    with _naming("--prove", f"; {output} was written"):
        with ProgressBar(args.quiet) as progress:
            proof = prove.prove(output, compiler, images, settings=settings, progress=progress)
        if not args.quiet:
            prove.show(proof, settings, quiet=False)
        prove.require(proof)


def _print_measured(args: argparse.Namespace, run: _Run, measured: _Measured) -> None:
    OUT.print(evaluate.table(measured.precision))
    evaluate.say_doubts(measured.results, annotations(args) or "demo", _settings(args, run.config))
    say(measured.results[0][1].classes, ERR)
    say(f"both models: {measured.runtime.describe()}", ERR)


@contextmanager
def _naming(option: str, ending: str = "") -> Iterator[None]:
    """Put an option before the messages of errors raised in the block, and an ending after their first line."""
    try:
        yield
    except OnnxqError as error:
        first, *others = error.args
        raise type(error)(f"{option}: {first}{ending}", *others) from error


def _next_annotations(args: argparse.Namespace) -> Path | None:
    """Return the annotations that the next command can use; None if none are known."""
    labels = annotations(args)
    is_guess = labels is not None and args.annotations is None
    return None if labels is None or (is_guess and not has_labels(labels)) else labels


def _settings(args: argparse.Namespace, config: Config) -> Settings:
    return Settings(
        layout=config.layout,
        preprocess=config.preprocess,
        image_size=config.image_size,
        runtime=args.runtime,
        max_detections=args.max_detections,
    )


def _search(
    args: argparse.Namespace,
    config: Config,
    model: onnx.ModelProto,
    data: object,
    truth: GroundTruth | None,
    limit: float,
    hooks: Sequence[Hook],
    progress: Progress,
    pool: Pool,
) -> SearchResult:
    criterion: Criterion
    if args.min_sqnr is None and truth is not None:
        criterion = PrecisionCriterion(model, truth, _settings(args, config))
    elif args.min_sqnr is None:
        criterion = _agreement(args, model, _settings(args, config))
    else:
        criterion = SqnrCriterion(model, args.images or demo.VALIDATION, config, args.runtime)
    return search(
        model,
        data,
        config,
        criterion,
        limit,
        record_file=search_record(output_path(args, config)),
        on_calibration=args.on_calibration,
        hooks=hooks,
        progress=progress,
        pool=pool,
    )
