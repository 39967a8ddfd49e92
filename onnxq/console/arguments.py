"""The arguments of `python -m onnxq` and their checks."""

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, cast

from onnxq.calibration import demo
from onnxq.calibration.dataset_yaml import SUFFIXES
from onnxq.config import Config
from onnxq.console.guards import add_guards
from onnxq.console.option_names import option_of
from onnxq.console.terminal import Parser, add_max_detections, image_size
from onnxq.console.used_files import UsedFiles, place
from onnxq.console.workers import add_workers
from onnxq.errors import ConfigError
from onnxq.evaluation.predictor import Settings
from onnxq.evaluation.runtime_choice import AUTO, CHOICES
from onnxq.ir import storage
from onnxq.remote.address import Location, location
from onnxq.report import build
from onnxq.version import VERSION

_EXAMPLES = """\
examples:
  python -m onnxq yolov8n.onnx --calib coco/train2017
  python -m onnxq yolov8n.onnx --calib coco/train2017 --target openvino
  python -m onnxq yolov8n.onnx --calib train.txt --save-calibration yolov8n.npz
  python -m onnxq yolov8n.onnx --calibration yolov8n.npz --method mse
"""


_AGREEMENT = "agreement"

_JUDGES = ("labels", _AGREEMENT)
"""Values of `--judge`; the first is the default."""

_OLD_WORDS = {
    "--rest": "--float-type",
    "--cut-head": "--cut-decode",
    "--equalise": "--equalize",
    "--no-equalise": "--no-equalize",
}
"""Option before 0.2.0 -> its name."""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m onnxq`."""
    parser = _Parser(
        prog="onnxq",
        usage="onnxq INPUT.onnx [...] [-o OUT] [--calib PATH ...] [options]   (-h lists them)",
        description=(
            "Quantize an exported YOLO detector: a float .onnx in, a QDQ .onnx out that\n"
            "runs on integers and keeps its mAP."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="*", type=Path, metavar="INPUT.onnx",
        help="the float model, or several; not needed with --demo",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT",
        help="default: INPUT.int8.onnx beside the input; for several models a folder",
    )  # fmt: skip
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--calib", nargs="+", metavar="PATH",
        help="calibration data: image folder, glob, .txt list, COCO .json, data set's .yaml, video, .npz, .npy, or an "
        "address such as s3://bucket/folder; default: synthetic scenes",
    )  # fmt: skip
    data.add_argument(
        "--demo",
        action="store_true",
        help="use synthetic images with known objects; without INPUT.onnx, the demo model",
    )
    add_workers(parser, "run the calibration data")
    _add_config(parser.add_argument_group("how to quantize"))
    good = parser.add_argument_group("accuracy and speed")
    good.add_argument(
        "--sensitivity", action="store_true", help="measure the loss that each layer causes if it alone is quantized"
    )
    good.add_argument(
        "--speed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure how much faster than the float model the result runs on this CPU, for at most some 3 s (on, but "
        "for --max-drop and --min-sqnr)",
    )
    limit = good.add_mutually_exclusive_group()
    limit.add_argument(
        "--max-drop", type=float, metavar="AP",
        help="keep the most sensitive layers at a higher precision until at most this many AP points are lost",
    )  # fmt: skip
    limit.add_argument(
        "--min-sqnr", type=float, metavar="DB", help="the same by the SQNR of the outputs, without labels"
    )
    good.add_argument("--evaluate", action="store_true", help="measure the AP of the float and of the quantized model")
    good.add_argument(
        "--judge", choices=_JUDGES,
        help="what --max-drop and --evaluate take for true: labels (of --annotations; the default), or agreement: what "
        "the float model detects on --images without labels, each object with its score as its probability",
    )  # fmt: skip
    good.add_argument(
        "--annotations", type=Path, metavar="FILE", help="annotations to measure AP with: COCO .json, or data.yaml"
    )
    good.add_argument(
        "--images", type=place, metavar="DIR", help="images to measure on; must differ from the calibration images"
    )
    add_max_detections(good)
    good.add_argument("--on-calibration", action="store_true", help="allow measuring on calibration images")
    good.add_argument(
        "--runtime", choices=CHOICES, default=AUTO,
        help="what runs the models that are measured (auto: for --evaluate the runtime of the target, if it is "
        "installed; for --max-drop and --min-sqnr exact, which is the same on every CPU)",
    )  # fmt: skip
    good.add_argument(
        "--prove", action="store_true",
        help="at the end build the file in the compiler of its target, and fail if a layer that should run on integers "
        "does not: python -m onnxq.prove, which has more options",
    )  # fmt: skip
    files = parser.add_argument_group("other files")
    files.add_argument("--save-calibration", type=Path, metavar="FILE", help="save the observed statistics, as .npz")
    files.add_argument("--calibration", type=Path, metavar="FILE", help="use saved statistics instead of running data")
    files.add_argument("--save-each", type=Path, metavar="DIR", help="save the model after each pass that edits it")
    files.add_argument(
        "--cut-decode", type=Path, metavar="FILE",
        help="save the float model without its decode, as .onnx, and beside it the ranges of its tensors, as .json",
    )  # fmt: skip
    files.add_argument(
        "--report", type=Path, metavar="FILE", help="write a report with every range and reason, as .html, .md or .json"
    )
    talk = parser.add_argument_group("output on the console")
    talk.add_argument(
        "--dry-run", action="store_true", help="only show what would be quantized, and why the other nodes would not"
    )
    loudness = talk.add_mutually_exclusive_group()
    loudness.add_argument(
        "-v", "--verbose", action="store_true", help="print a line per pass, and the reason for every float node"
    )
    loudness.add_argument("-q", "--quiet", action="store_true", help="print only errors, and the table of --dry-run")
    add_guards(talk)
    talk.add_argument("--version", action="version", version=f"onnxq {VERSION}")
    return parser


def _add_config(group: "argparse._ArgumentGroup") -> None:
    """Add one flag per field of Config."""
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        help_text, choices, metavar = (field.metadata[key] for key in ("help", "choices", "metavar"))
        if field.default is False:
            group.add_argument(flag, action="store_true", help=help_text)
        elif field.default is True or field.type == bool | None:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=help_text)
        elif field.default == ():
            group.add_argument(flag, action="extend", nargs="+", default=[], metavar=metavar, help=help_text)
        elif field.type in (int, int | None):
            group.add_argument(flag, type=int, metavar=metavar, help=help_text)
        elif field.name == "image_size":
            group.add_argument(flag, type=image_size, metavar=metavar, help=help_text)
        else:
            kind, default = type(field.default), field.default
            help_text = f"{help_text} ({default})"
            group.add_argument(flag, type=kind, default=default, choices=choices, metavar=metavar, help=help_text)


class _Parser(Parser):
    """A parser that also takes the words that options had before 0.2.0; help and messages name the new ones."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words, those of old options as the new ones; as `argparse.ArgumentParser` does it."""
        words = (word.partition("=") for word in (sys.argv[1:] if args is None else args))
        return super().parse_known_args(["".join((_OLD_WORDS.get(w, w), *more)) for w, *more in words], namespace)


def read_config(args: argparse.Namespace) -> Config:
    """Build the Config that the arguments describe.

    Raises:
        ConfigError: a value is out of range, or values do not go together.
    """
    values: dict[str, Any] = {field.name: getattr(args, field.name) for field in dataclasses.fields(Config)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if args.cut_decode and values["migrate"]:
        raise ConfigError("--cut-decode writes the ranges of the float model's own tensors; leave --migrate out")
    if args.cut_decode:
        values["migrate"] = False
    return Config(**values)


def greatest_loss(args: argparse.Namespace) -> float | None:
    """Return the largest loss allowed, in the unit of the criterion; None without `--max-drop` and `--min-sqnr`."""
    return cast("float | None", args.max_drop if args.min_sqnr is None else -args.min_sqnr)


def choose_input(args: argparse.Namespace, config: Config) -> None:
    """Let `--demo` without an input quantize the demo model to a file in the current folder.

    `args.input` becomes the first input, and `args.shown_input` what names it for the other commands: `demo`, unless a
    file has this name.

    Raises:
        ConfigError: there is neither an input nor `--demo`.
    """
    args.input = args.shown_input = args.inputs[0] if args.inputs else None
    if args.input is None:
        if not args.demo:
            raise ConfigError("the following arguments are required: INPUT.onnx (--demo alone quantizes a small model)")
        args.input = demo.model_path()
        args.shown_input = args.input if Path("demo").is_file() else Path("demo")
        args.output = args.output or Path(f"demo.{config.suffix}.onnx")


def search_record(output: Path) -> Path:
    """Return the path of the record of a mixed-precision search, beside its output."""
    return output.with_suffix(".search.json")


def kept_samples(output: Path) -> Path:
    """Return the path of what workers have finished if the scheduler is lost, beside the output."""
    return output.with_suffix(".finished.npz")


def output_path(args: argparse.Namespace, config: Config) -> Path:
    """Return the path of the quantized model: `--output`, or beside the input."""
    output: Path = args.output or args.input.parent / f"{args.input.stem}.{config.suffix}.onnx"
    return output


def used_files(args: argparse.Namespace, output: Path) -> UsedFiles:
    """Return the files that a run with these arguments reads and writes.

    Raises:
        ConfigError: the name of an output has a suffix that cannot be.
    """
    if args.report:
        build.check_name(args.report)
    if args.cut_decode and args.cut_decode.suffix != ".onnx":
        raise ConfigError(f"--cut-decode {args.cut_decode}: the name must end in .onnx")
    files = UsedFiles()
    files.reads_model("the input", args.input)
    files.reads("the given calibration", [args.calibration])
    labels = annotations(args)
    files.reads("the file of annotations", [labels])
    for source in args.calib or ():
        files.reads_data("calibration data", source, "train")
    if args.images:
        files.reads_data("an image to measure on", args.images, "val")
    if labels is not None and labels.suffix.lower() in SUFFIXES and (args.evaluate or args.max_drop is not None):
        if not args.images:
            files.reads_data("an image to measure on", labels, "val")
        if not judges_agreement(args):
            files.reads_labels("the labels of an image")
    models = [("-o", output), ("--cut-decode", args.cut_decode)]
    is_large = storage.size_on_disk(args.input) > storage.LARGEST
    for option, path in models:
        files.writes(option, path)
        if path is not None and is_large:
            files.writes(option, storage.data_path(path))
    files.writes("--save-calibration", args.save_calibration)
    files.writes("--report", args.report)
    if greatest_loss(args) is not None:
        files.writes("-o", search_record(output))
    if args.workers is not None:
        files.writes("-o", kept_samples(output))
    if args.cut_decode:
        files.writes("--cut-decode", args.cut_decode.with_suffix(".json"))
    files.writes_into("--save-each", args.save_each, "[0-9]*-*.onnx*")
    return files


def annotations(args: argparse.Namespace) -> Path | None:
    """Return the file of annotations: as given, or the YAML file of the data set that calibrates; None without one."""
    if args.annotations is None and args.calib and len(args.calib) == 1 and not args.images:
        data_set = location(args.calib[0])
        return data_set if isinstance(data_set, Path) and data_set.suffix.lower() in SUFFIXES else None
    return cast("Path | None", args.annotations)


def judges_agreement(args: argparse.Namespace) -> bool:
    """Return whether `--max-drop` and `--evaluate` measure the agreement with the float model, not AP on labels."""
    return bool(args.judge == _AGREEMENT)


def judged_images(args: argparse.Namespace) -> Location | None:
    """Return what has the images to measure agreement on: `--images`, or the data set that calibrates; None without."""
    return args.images or annotations(args)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that exclude each other or need another one."""
    if args.calibration and (args.calib or args.demo):
        raise ConfigError(f"{'--demo' if args.demo else '--calib'} and --calibration: give one of the two")
    limit = greatest_loss(args)
    if limit is not None and not math.isfinite(limit):
        raise ConfigError(f"{'--min-sqnr' if args.max_drop is None else '--max-drop'} {abs(limit)}: expected a number")
    for option, is_given in (("--max-drop", args.max_drop is not None), ("--evaluate", args.evaluate)):
        if is_given:
            _require_truth(args, option)
    if args.judge and not args.evaluate and args.max_drop is None:
        raise ConfigError("--judge: for --max-drop or --evaluate; give one of these")
    if args.min_sqnr is not None and not args.demo and not args.images:
        raise ConfigError("--min-sqnr compares outputs, for which it needs --images DIR")
    if args.calibration and (args.sensitivity or limit is not None):
        raise ConfigError(
            "--calibration has no images, which --sensitivity, --max-drop and --min-sqnr need; give --calib"
        )
    if args.calibration and args.count is not None:
        raise ConfigError("--count: --calibration has its statistics already; leave --count out")
    if args.sensitivity and limit is not None:
        raise ConfigError(
            "--sensitivity: --max-drop and --min-sqnr measure it by themselves, for whole parts of the network (the "
            "record beside the result has their order); leave --sensitivity out"
        )
    _refuse_unread(args)
    measures = args.evaluate or limit is not None
    if not measures and (args.annotations or args.images or args.on_calibration or args.runtime != AUTO):
        raise ConfigError(
            "--annotations, --images, --on-calibration, --runtime: for --evaluate, --max-drop or --min-sqnr; "
            "give one of these"
        )


def _refuse_unread(args: argparse.Namespace) -> None:
    """Refuse options about labels where no AP on labels is measured."""
    measures_ap = args.evaluate or args.max_drop is not None
    if args.annotations and args.min_sqnr is not None and not measures_ap:
        raise ConfigError("--annotations: --min-sqnr compares outputs and reads no labels; leave --annotations out")
    if args.max_detections != Settings.max_detections and (not measures_ap or judges_agreement(args)):
        raise ConfigError(
            "--max-detections: for AP on labels, which --evaluate and --max-drop measure; give one of these, or leave "
            "--max-detections out"
        )


def without_effect(args: argparse.Namespace) -> list[str]:
    """Return the given options that a dry run leaves out: it reads no data, runs nothing and writes no file."""
    if not args.dry_run:
        return []
    names = (
        "calib", "calibration", "count", "sensitivity", "max_drop", "min_sqnr", "evaluate", "prove",
        "save_calibration", "save_each", "cut_decode", "report",
    )  # fmt: skip
    given = (name for name in names if getattr(args, name) is not None and getattr(args, name) is not False)
    return [option_of(name) for name in given]


def _require_truth(args: argparse.Namespace, option: str) -> None:
    """Refuse an option that measures the loss without what it takes for true."""
    if judges_agreement(args):
        if args.annotations:
            raise ConfigError("--judge agreement needs no labels: leave out --annotations, or --judge agreement")
        if judged_images(args) is None and not args.demo:
            raise ConfigError(f"{option} --judge agreement needs --images DIR, --calib data.yaml, or --demo alone")
        return
    labels = annotations(args)
    has_truth = labels is not None and (bool(args.images) or labels.suffix.lower() in SUFFIXES)
    if not has_truth and not (args.demo and not args.annotations and not args.images):
        raise ConfigError(
            f"{option} measures AP: it needs --annotations JSON and --images DIR, --annotations data.yaml, or --demo "
            "alone; without labels, give --judge agreement and --images DIR"
        )
