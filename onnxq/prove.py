"""Builds a quantized file in a vendor's compiler and tells what runs on integers: `onnxq.prove FILE --with COMPILER`.

Compilers and simulators of accelerators run on a plain CPU, so a file can be proven without the device. Where the
result runs here, its outputs are compared with the exact computation of the file.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from onnxq._text import plural, some
from onnxq.calibration import demo
from onnxq.compilers import COMPILERS, OF_TARGET, Compiler
from onnxq.compilers.proof import DEFAULTS, TIMEOUT, Proof, prove
from onnxq.console.agreement import agreement_rows
from onnxq.console.numbers import decibels, finite, show_numbers
from onnxq.console.terminal import (
    ERR,
    OUT,
    Help,
    NumberTable,
    Parser,
    ProgressBar,
    add_settings,
    guarded,
    model_file,
    say,
    settings_of,
)
from onnxq.console.used_files import UsedFiles
from onnxq.errors import ConfigError, ModelError
from onnxq.evaluation.predictor import Settings
from onnxq.evaluation.runtime_choice import target_of
from onnxq.ir.files import write_json
from onnxq.ir.storage import load_proto
from onnxq.targets import GENERIC

__all__ = ["Proof", "main", "prove"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 if every layer that should runs on integers."""
    parser = Parser(
        "python -m onnxq.prove",
        description="Build a quantized model in a vendor's compiler, and tell what runs on integers.",
        formatter_class=Help,
    )
    parser.add_argument("model", metavar="FILE", type=model_file, help="the quantized model")
    parser.add_argument(
        "--with", dest="compiler", choices=tuple(COMPILERS),
        help="compiler (that of the target that the file names)",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--images", metavar="DIR", help="images to run and compare objects on (painted scenes, without objects)"
    )
    source.add_argument("--demo", action="store_true", help="use the synthetic validation images of the demo model")
    helps = "; ".join(f"{each.name}: {each.device_help} ({each.device})" for each in COMPILERS.values() if each.device)
    parser.add_argument("--device", metavar="NAME", default="", help=f"what to build for; {helps}")
    parser.add_argument(
        "--python", metavar="PATH", default="",
        help="interpreter of the environment that has the compiler (this one)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=TIMEOUT,
        help=f"end the compiler and its simulator after so many seconds ({TIMEOUT:g})",
    )  # fmt: skip
    add_settings(parser, DEFAULTS, how_to_run=False)
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments, parser)
    if arguments.images is None and not arguments.demo:
        for option, field in (("--conf", "confidence"), ("--iou", "iou")):
            if getattr(arguments, field) != getattr(DEFAULTS, field):
                parser.error(f"{option}: for objects on images; give --images DIR or --demo, or leave {option} out")
    if not arguments.timeout > 0:
        parser.error(f"--timeout {arguments.timeout:g}: expected more than 0")
    return guarded(lambda: _prove(arguments, settings), arguments.debug, max_memory=arguments.max_memory)


def _prove(arguments: argparse.Namespace, settings: Settings) -> None:
    files = UsedFiles()
    files.reads_model("the quantized model", arguments.model)
    if arguments.images is not None:
        files.reads_data("an image", arguments.images, "val")
    files.writes("--json", arguments.json)
    files.check()
    compiler = _compiler(arguments)
    _check_fits(arguments, compiler)
    with ProgressBar(arguments.quiet) as progress:
        proof = prove(
            arguments.model,
            compiler,
            arguments.images or (demo.VALIDATION if arguments.demo else None),
            settings=settings,
            device=arguments.device,
            python=arguments.python,
            timeout=arguments.timeout,
            progress=progress,
        )
    files.require_unchanged()
    show(proof, settings, arguments.quiet)
    if arguments.json is not None:
        write_json(arguments.json, _as_json(proof, arguments, settings, compiler))
    require(proof, _meant_for_another(arguments.model, compiler))


def _compiler(arguments: argparse.Namespace) -> Compiler:
    if arguments.compiler is not None:
        return COMPILERS[arguments.compiler]
    target = target_of(arguments.model)
    if target is None:
        if not any(node.op_type == "DequantizeLinear" for node in load_proto(arguments.model).graph.node):
            raise ModelError(f"{arguments.model}: is not quantized, so there is nothing to prove; quantize it")
        raise ConfigError(f"{arguments.model}: names no target; say --with {', '.join(COMPILERS)}")
    return of_target(target)


def _check_fits(arguments: argparse.Namespace, compiler: Compiler) -> None:
    """Check that the compiler has the choices that the options make.

    Raises:
        ConfigError: it has not.
    """
    if arguments.device and not compiler.device:
        raise ConfigError(f"--device {arguments.device}: {compiler.title} builds for this CPU; leave it out")
    if arguments.timeout != TIMEOUT and not compiler.in_own_process:
        raise ConfigError(
            f"--timeout {arguments.timeout:g}: {compiler.title} runs in the process of onnxq; leave it out"
        )
    if arguments.python and not compiler.in_own_process:
        raise ConfigError(
            f"--python {arguments.python}: {compiler.title} runs in the environment of onnxq; leave it out"
        )


def _meant_for_another(model: Path, compiler: Compiler) -> str:
    """Return a clause that names the compiler that a file is for; empty if it is this one, several, or not known."""
    target = target_of(model)
    wanted = OF_TARGET.get(target or "", compiler.name) if target != GENERIC.name else compiler.name
    return "" if wanted == compiler.name else f"; the file is for the target {target}: --with {wanted}"


def of_target(target: str) -> Compiler:
    """Return the compiler that files for a target are for.

    Raises:
        ConfigError: there is none.
    """
    if target not in OF_TARGET:
        raise ConfigError(f"no compiler is known for target {target}; say --with {', '.join(COMPILERS)}")
    return COMPILERS[OF_TARGET[target]]


def show(proof: Proof, settings: Settings, quiet: bool) -> None:
    """Print the layers, what fell off, the noise and the agreement."""
    OUT.print(_layer_table(proof))
    if proof.on_cpu:
        say(f"left to the CPU: {some(proof.on_cpu)}")
    if proof.images:
        _show_outputs(proof)
    if proof.agreement is not None:
        scores = f", scores above {settings.confidence:g}" if proof.detector.outputs.has_boxes else ""
        rows = agreement_rows(proof.agreement, proof.detector.outputs.task, "the exact computation", proof.title)
        show_numbers(f"agreement with the exact computation, {_images(proof)}{scores}", "", [""], rows)
    say(summary(proof))
    if not quiet:
        for note in proof.notes:
            say(note, ERR)


def require(proof: Proof, hint: str = "") -> None:
    """Check that every layer that is meant for integers runs on them.

    Args:
        proof: of a file.
        hint: the end of the message.

    Raises:
        ModelError: some do not.
    """
    if proof.fallen:
        names = some([layer.name for layer in proof.fallen])
        raise ModelError(f"{proof.title} does not run these layers on integers: {names}{hint}")


def summary(proof: Proof) -> str:
    """Return in a line how many layers run on integers."""
    wanted = Counter(layer.op for layer in proof.wanted)
    kept = Counter(layer.op for layer in proof.wanted if layer.on_integers)
    counts = ", ".join(f"{kept[op]} of {count} wanted {op}{plural(count)}" for op, count in wanted.items())
    return f"{proof.title} {proof.version}: {counts} on integers"


def _show_outputs(proof: Proof) -> None:
    order = "; objects that stand in another order count as noise" if proof.detector.outputs.is_finished else ""
    title = f"signal to noise against the exact computation, {_images(proof)}{order}"
    rows = ((name, decibels(sqnr)) for name, sqnr in proof.outputs.items())
    show_numbers(title, "output", ["SQNR dB"], rows)


def _images(proof: Proof) -> str:
    return f"{proof.images} image{plural(proof.images)}"


def _layer_table(proof: Proof) -> NumberTable:
    table = NumberTable("layer", [])
    table.add_column("operator")
    table.add_column("wanted")
    table.add_column("runs as")
    table.add_column("reason", overflow="fold")
    for layer in proof.layers:
        wanted = "integers" if layer.wanted else "float"
        table.add_row(Text(layer.name), layer.op, wanted, layer.types or "?", Text(layer.reason))
    return table


def _as_json(proof: Proof, arguments: argparse.Namespace, settings: Settings, compiler: Compiler) -> dict[str, Any]:
    """Return the content of `--json`, unrounded; None for numbers that are not finite."""
    numbers = proof.agreement.numbers(proof.detector.outputs.task) if proof.agreement is not None else None
    return {
        "model": str(arguments.model),
        "compiler": proof.title,
        "version": proof.version,
        "device": arguments.device or compiler.device or None,
        "settings": asdict(settings),
        "wanted": len(proof.wanted),
        "on_integers": len(proof.wanted) - len(proof.fallen),
        "layers": [asdict(layer) for layer in proof.layers],
        "on_cpu": list(proof.on_cpu),
        "notes": list(proof.notes),
        "images": proof.images,
        "outputs": finite(proof.outputs),
        "agreement": None if numbers is None else finite(numbers),
    }


if __name__ == "__main__":
    sys.exit(main())
