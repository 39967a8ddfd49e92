"""Every command with all its outputs, ended at an operation on files, or on a disk that is full from there on.

`python -m tests.fuzz.file_faults` counts the operations of each command, breaks it off at the first and the last of
each kind, before, at half and after, and prints a table. It needs Linux and gcc. Exit code 1: a file was written in
part, something was left over after the next run, an input was changed, or a full disk was not told in one error.
`--python PATH` breaks off the vendors' compilers as well that the environment of this interpreter has.
"""

import argparse
import atexit
import contextlib
import json
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

sys.path[:0] = [str(ROOT / folder) for folder in (".", "tests/fuzz", "tests/support", "tests/support/models")]
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads do not survive a fork

import faulty_data  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402
from file_fault_cases import CASES, DATA, VENDORS, WORKER, Case, of_vendor  # noqa: E402
from fuzzing import detector  # noqa: E402
from PIL import Image  # noqa: E402

SOURCE = Path(__file__).with_suffix(".c")

STATE, FOLDER = "FILE_FAULTS", "FILE_FAULTS_ROOT"

WHENS = ("before", "half", "after")

HOWS = ("kill", "disk full")

OLD = b"what was here before"

EMPTY = b"an empty folder"

_FORMAT = "=qqiiii"
"""The state that the library shares: operations so far, the one that fails, when, how, whether the disk is full."""

_SIDE = (48, 40)


class Ended(NamedTuple):
    """How a run ended: its exit code, negative for a signal; stderr; files by name."""

    code: int
    said: str
    files: dict[str, bytes]


class Bench:
    """Runs commands in a folder that is made anew for each, each in a process that is forked for it.

    Args:
        place: a folder for everything.
    """

    def __init__(self, place: Path) -> None:
        self._place, self._root = place, place / "root"
        self._sound = place / "sound"
        file = open(place / "state", "r+b")  # noqa: SIM115  # as long as the process
        self._state = mmap.mmap(file.fileno(), struct.calcsize(_FORMAT))
        self._log = place / "state.log"

    def make_sound_files(self) -> None:
        """Write the inputs of all commands."""
        (self._sound / "work").mkdir(parents=True)
        for name in ("tmp", "home"):
            (self._sound / name).mkdir()
        work = self._sound / "work"
        onnx.save(detector(), work / "model.onnx")
        (work / "worker.py").write_text(WORKER)
        for number, kind in enumerate(("calib", "calib", "images", "images")):
            (work / kind).mkdir(exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
            Image.fromarray(pixels).resize(_SIDE).save(work / kind / f"{number}.png")
        names = sorted(path.name for path in (work / "images").iterdir())
        (work / "labels.json").write_text(json.dumps(faulty_data.annotations(names, _SIDE)))
        for target, name in (("ort", "q.onnx"), *((each, f"q.{each}.onnx") for each in VENDORS.values())):
            made = self.run(Case("onnxq.cli", ["model.onnx", *DATA, "--target", target, "-o", name], ()))
            (work / name).write_bytes(made.files[f"work/{name}"])

    def reset(self, case: Case) -> None:
        """Make the folder anew, with old outputs."""
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.copytree(self._sound, self._root)
        for name in case.outputs:
            (self._root / "work" / name).write_bytes(OLD)

    def run(self, case: Case, fails: int = 0, when: int = 0, how: int = 0, again: bool = False) -> Ended:
        """Run a command, in a new folder unless it runs again."""
        if not again:
            self.reset(case)
        self._log.write_bytes(b"")
        self._state[:] = struct.pack(_FORMAT, 0, 0, 0, 0, 0, 0)
        child = os.fork()
        if not child:
            self._child(case, struct.pack(_FORMAT, 0, fails, when, how, 0, 0))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self._state[:] = struct.pack(_FORMAT, 0, 0, 0, 0, 0, 0)
        said = (self._place / "err.txt").read_text(errors="replace")
        return Ended(code, said, self.files())

    def operations(self) -> list[tuple[str, str]]:
        """Return the operations of the last run, and the files that they were on."""
        return [tuple(line.split("\t")) for line in self._log.read_text().splitlines()]  # type: ignore[misc]

    def files(self) -> dict[str, bytes]:
        """Return the files in the folder, and empty folders as well."""
        found = {}
        for path in sorted(self._root.rglob("*")):
            name = path.relative_to(self._root).as_posix()
            if path.is_file():
                found[name] = path.read_bytes()
            elif not any(path.iterdir()):
                found[name] = EMPTY
        return found

    def _child(self, case: Case, state: bytes) -> None:
        code = 70
        try:
            os.setsid()
            for number, name in ((1, "out.txt"), (2, "err.txt")):
                os.dup2(os.open(self._place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(self._root / "work")
            os.environ |= {"TMPDIR": str(self._root / "tmp"), "HOME": str(self._root / "home")}
            tempfile.tempdir = None
            case.prepare()
            module = sys.modules[case.module]
            self._state[:] = state
            code = int(module.main(case.arguments) or 0)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()  # as at the end of any process
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def kind_of(operation: tuple[str, str]) -> tuple[str, str]:
    """Return the kind of an operation: what is done, and on what without random names and numbers."""
    what, name = operation
    return what, re.sub(r"[0-9a-f]{8}-[0-9a-f]{16}|\d+", "#", name)


def chosen(operations: list[tuple[str, str]]) -> list[int]:
    """Return the numbers of the operations at which a command is broken off: the first and last of each kind."""
    places: dict[tuple[str, str], list[int]] = {}
    for number, operation in enumerate(operations, start=1):
        places.setdefault(kind_of(operation), []).append(number)
    return sorted({number for found in places.values() for number in (found[0], found[-1])})


def is_whole(name: str, content: bytes, before: dict[str, bytes], wanted: dict[str, bytes]) -> bool:
    """Return whether a file is as it was, or as a run leaves it."""
    if content in (before.get(name), wanted.get(name)):
        return True
    if content == EMPTY:  # a folder that the user asked for
        return any(each.startswith(f"{name}/") for each in wanted)
    if name not in wanted:
        return False
    # Some outputs have times in them, so that no two are equal.
    if name.endswith(".json"):
        with contextlib.suppress(ValueError):
            return bool(json.loads(content))
    return (
        content.rstrip().endswith(b"</html>") if name.endswith(".html") else name.endswith(".md") and len(content) > 99
    )


def faults(bench: Bench, case: Case, wanted: Ended, number: int, when: int, how: int) -> Iterator[str]:
    """Break a command off, and yield what is wrong."""
    bench.reset(case)
    before = bench.files()
    ended = bench.run(case, number, when, how)
    for name, content in ended.files.items():
        is_temporary = "onnxq-" in name
        if not is_temporary and not is_whole(name, content, before, wanted.files):
            yield f"{name} is {'written in part' if name in wanted.files else 'left over'} ({len(content)} bytes)"
    for name, content in before.items():
        if content != EMPTY and name not in ended.files:
            yield f"{name} is gone"
    left = [name for name in ended.files if "onnxq-" in name]
    if HOWS[how] == "disk full":
        for name in left:
            yield f"{name} is left over"
        if ended.code not in (0, 1):
            yield f"exit code {ended.code}"
        if ended.code == 0 and {*wanted.files} - {*ended.files}:
            yield f"exit code 0 without {sorted({*wanted.files} - {*ended.files})}"
        if ended.code == 1 and not re.search(r"^error: .*(No space|full|room)", ended.said, re.MULTILINE | re.DOTALL):
            yield f"says {ended.said[-200:]!r}"
        if "Traceback" in ended.said:
            yield f"a traceback: {ended.said[-200:]!r}"
    elif left:
        again = bench.run(case, again=True)
        if again.code != wanted.code:
            yield f"the next run: exit code {again.code}: {again.said[-200:]!r}"
        for name in again.files.keys() - wanted.files.keys():
            yield f"{name} is left over after the next run"


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """Yield what runs commands; this process was started with the library."""
    place = Path(os.environ[STATE]).parent
    made = Bench(place)
    for module in {case.module for case in CASES.values()}:
        __import__(module)
    Image.init()
    made.make_sound_files()
    yield made


def table(cases: Mapping[str, Case], most: int) -> bool:
    """Break off each command at up to so many operations, print the table, and return whether nothing is wrong."""
    sound = True
    print(f"{'command':<24} {'operations':>10} {'broken off':>10} {'kill':>6} {'full':>6} {'wrong':>6}", flush=True)
    with bench() as made:
        for name, case in cases.items():
            wanted = made.run(case)
            if wanted.code != 0:
                print(f"{name}: exit code {wanted.code}: {wanted.said[-300:]}")
                sound = False
                continue
            operations = made.operations()
            numbers = chosen(operations)
            numbers = numbers[:: max(1, -(-len(numbers) // most))] if most else numbers
            counts: Counter[str] = Counter()
            for number in numbers:
                for how in range(len(HOWS)):
                    for when in range(len(WHENS)):
                        counts[HOWS[how]] += 1
                        for fault in faults(made, case, wanted, number, when, how):
                            counts["wrong"] += 1
                            what, file = operations[number - 1]
                            print(f"  {name}: {HOWS[how]} {WHENS[when]} {number} ({what} {file}): {fault}", flush=True)
            row = (len(operations), len(numbers), *(counts[kind] for kind in (*HOWS, "wrong")))
            print(f"{name:<24} {row[0]:>10} {row[1]:>10} {row[2]:>6} {row[3]:>6} {row[4]:>6}", flush=True)
            sound &= not counts["wrong"]
    return sound


def with_library(arguments: list[str]) -> int:
    """Build the library, and run this module again in a process with it."""
    with tempfile.TemporaryDirectory(prefix="file-faults-") as folder:
        place = Path(os.path.realpath(folder))
        library = place / "file_faults.so"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
        (place / "state").write_bytes(bytes(struct.calcsize(_FORMAT)))
        (place / "state.log").touch()
        environment = {
            **os.environ, "LD_PRELOAD": str(library), STATE: str(place / "state"), FOLDER: str(place / "root"),
        }  # fmt: skip
        command = [sys.executable, str(Path(__file__).resolve()), *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.file_faults", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *VENDORS], metavar="COMMAND")
    parser.add_argument("--python", metavar="PATH", help="interpreter of an environment with vendors' compilers")
    parser.add_argument("--most", type=int, default=0, help="operations of a command at most (0: all that differ)")
    arguments = parser.parse_args()
    if STATE not in os.environ:
        return with_library(sys.argv[1:])
    cases = dict(CASES)
    if arguments.python:
        cases |= {name: of_vendor(target, arguments.python) for name, target in VENDORS.items()}
    names = arguments.cases or [*cases]
    if lacking := [name for name in names if name not in cases]:
        parser.error(f"--cases {', '.join(lacking)}: give --python PATH, an environment that has the compiler")
    return 0 if table({name: cases[name] for name in names}, arguments.most) else 1


if __name__ == "__main__":
    sys.exit(main())
