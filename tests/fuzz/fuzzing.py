"""Cases of a fuzzer: each writes faulty files into the working directory, and names the command that reads them.

A case is known by its kind and its seed. It needs the files that `prepare` writes.
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import faulty_data
import numpy as np
import onnx
from graphs import v8
from mutations import mutated
from odd_graphs import odd_graph
from PIL import Image

from onnxq.targets import TARGETS

SIDE = 32
"""Side of the input of the models, px."""

_SIZE = (48, 40)
"""Width and height of the pictures, px."""


class Command(NamedTuple):
    """A module with a `main`, and its arguments."""

    module: str
    arguments: list[str]


MODULES = ("onnxq.cli", "onnxq.compare", "onnxq.evaluate", "kept_run")
"""Each has a `main`."""

LIMIT = ("--max-memory", "500M")


def detector() -> onnx.ModelProto:
    """Return a small detector, two of whose classes are those of `faulty_data.annotations`."""
    model = v8()
    onnx.helper.set_model_props(model, {"names": str({0: "0", 1: "1", 2: "2"}), "task": "detect"})
    return model


def prepare(folder: Path, run: Callable[[Command], int]) -> None:
    """Write the sound files that cases change: a model, pictures, calibration, finished samples and a search."""
    onnx.save(detector(), folder / "sound.onnx")
    for number, kind in enumerate(("calib", "calib", "images", "images")):
        (folder / kind).mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
        Image.fromarray(pixels).resize(_SIZE).save(folder / kind / f"{number}.png")
    for arguments in (
        ["--save-calibration", "sound.npz", "--no-speed"],
        [*_SEARCH, "-o", "searched.onnx"],
    ):
        if run(Command("onnxq.cli", ["sound.onnx", "--calib", "calib", *arguments])) != 0:
            raise RuntimeError(f"the sound files could not be made: {arguments}")
    if run(Command("kept_run", [*_KEPT, "1"])) != 1 or not (folder / "finished.npz").exists():
        raise RuntimeError("no finished samples were kept")


_KEPT = ("sound.onnx", "calib", "finished.npz")

_SEARCH = ("--min-sqnr", "63", "--images", "images", "--no-speed")


def _model(rng: random.Random, seed: int) -> Command:
    content = mutated(seed).SerializeToString()
    Path("model.onnx").write_bytes(faulty_data.flipped(content, rng) if rng.random() < 0.3 else content)
    target = ["--target", list(TARGETS)[seed % len(TARGETS)]]
    what = rng.randrange(10)
    if what < 5:
        return Command("onnxq.cli", ["model.onnx", *target, "--dry-run", *LIMIT])
    if what < 8:
        return Command("onnxq.cli", ["model.onnx", *target, "--calib", "calib", "--no-speed", *LIMIT])
    if what == 8:
        return Command("onnxq.compare", ["sound.onnx", "model.onnx", "--images", "images", *LIMIT])
    return Command("onnxq.evaluate", ["model.onnx", *_labels(faulty_data.annotations(_names(), _SIZE)), *LIMIT])


def _odd(rng: random.Random, seed: int) -> Command:
    model = odd_graph(seed)
    onnx.save(model, "model.onnx")
    choices: tuple[tuple[str, ...], ...] = (
        ("--target", "openvino", "--migrate"), ("--target", "ort", "--migrate"), ("--weight-bits", "4"),
        ("--target", "openvino", "--reconstruct", "--migrate"), ("--target", rng.choice(list(TARGETS))),
    )  # fmt: skip
    return Command("onnxq.cli", ["model.onnx", *rng.choice(choices), "--calib", "calib", "--no-speed", *LIMIT])


def _names() -> list[str]:
    return sorted(path.name for path in Path("images").iterdir())


def _labels(content: object) -> list[str]:
    Path("labels.json").write_text(json.dumps(content))
    return ["--annotations", "labels.json", "--images", "images"]


def _array(rng: random.Random, seed: int) -> Command:
    archive = rng.random() < 0.5
    name = "data.npz" if archive else "data.npy"
    Path(name).write_bytes((faulty_data.faulty_archive if archive else faulty_data.faulty_array)(rng, SIDE))
    return Command("onnxq.cli", ["sound.onnx", "--calib", name, "--no-speed", *LIMIT])


def _picture(rng: random.Random, seed: int) -> Command:
    Path("faulty").mkdir()
    for number in range(rng.choice((1, 1, 3))):
        suffix, content = faulty_data.faulty_picture(rng)
        Path("faulty", f"{number}.{suffix}").write_bytes(content)
    if rng.random() < 0.3:
        names = sorted(path.name for path in Path("faulty").iterdir())
        labels = ["--annotations", "labels.json", "--images", "faulty"]
        Path("labels.json").write_text(json.dumps(faulty_data.annotations(names, _SIZE)))
        return Command("onnxq.evaluate", ["sound.onnx", *labels, *LIMIT])
    if rng.random() < 0.3:
        return Command("onnxq.compare", ["sound.onnx", "sound.onnx", "--images", "faulty", *LIMIT])
    return Command("onnxq.cli", ["sound.onnx", "--calib", "faulty", "--no-speed", *LIMIT])


def _annotation(rng: random.Random, seed: int) -> Command:
    sound = faulty_data.annotations(_names(), _SIZE)
    labels = _labels({})
    Path("labels.json").write_bytes(faulty_data.json_bytes(faulty_data.damaged(sound, rng), rng))
    if rng.random() < 0.1:
        return Command("onnxq.cli", ["sound.onnx", "--calib", "labels.json", "--dry-run", *LIMIT])
    return Command("onnxq.evaluate", ["sound.onnx", *labels, *LIMIT])


def _calibration(rng: random.Random, seed: int) -> Command:
    Path("faulty.npz").write_bytes(faulty_data.faulty_calibration(Path("sound.npz"), rng))
    return Command("onnxq.cli", ["sound.onnx", "--calibration", "faulty.npz", "--no-speed", *LIMIT])


def _finished(rng: random.Random, seed: int) -> Command:
    Path("finished.npz").write_bytes(faulty_data.faulty_finished(Path("finished.npz"), rng))
    return Command("kept_run", list(_KEPT))


def _search(rng: random.Random, seed: int) -> Command:
    record = json.loads(Path("searched.search.json").read_text())
    Path("searched.search.json").write_bytes(faulty_data.json_bytes(faulty_data.damaged(record, rng, 1), rng))
    return Command("onnxq.cli", ["sound.onnx", "--calib", "calib", *_SEARCH, "-o", "searched.onnx", *LIMIT])


KINDS: Mapping[str, Callable[[random.Random, int], Command]] = {
    "model": _model,
    "odd": _odd,
    "array": _array,
    "picture": _picture,
    "annotations": _annotation,
    "calibration": _calibration,
    "finished": _finished,
    "search": _search,
}
"""What has faults -> function that writes the files of a case and returns its command."""


def make(kind: str, seed: int, sound: Path, folder: Path) -> Command:
    """Write the files of a case into an empty folder, the working directory, and return its command.

    Args:
        kind: a key of `KINDS`.
        seed: the number of the case.
        sound: the folder of `prepare`.
        folder: the working directory.
    """
    shutil.copytree(sound, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.txt"))
    return KINDS[kind](random.Random(f"{kind} {seed}"), seed)
