"""A long run of the fuzzer: `python -m tests.fuzz --cases 10000` prints a table of outcomes, and what is wrong.

Each case runs in a process of its own, which is ended after 60 s or beyond 2 GB. `--case model:17` runs one case again
in a folder that stays, and shows what it says. Exit code 1: a case ended in another way than with 0, 1 or 2.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

_SUPPORT = ("tests/fuzz", "tests/support", "tests/support/models", "tests/support/pools")

sys.path[:0] = [str(ROOT / folder) for folder in (".", *_SUPPORT)]
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads do not survive a fork

import fuzzing  # noqa: E402
from PIL import Image  # noqa: E402

MOST_SECONDS, MOST_BYTES = 60, 2 * 10**9

OUTCOMES = ("ok", "refused: 1", "usage: 2", "traceback", "signal", "other code", "over 60 s", "over 2 GB")

GOOD = OUTCOMES[:3]

_TRACEBACK = 70
"""Exit code of a process whose command raised an exception."""

_POLL = 0.02


class Outcome(NamedTuple):
    """How a case ended.

    Attributes:
        name: one of `OUTCOMES`.
        seconds: time.
        megabytes: peak of memory.
        said: its last line on stderr.
    """

    name: str
    seconds: float
    megabytes: float
    said: str


def call(command: fuzzing.Command) -> int:
    """Run a command in this process, and return its exit code."""
    try:
        return int(importlib.import_module(command.module).main(command.arguments) or 0)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return _TRACEBACK


def _child(folder: Path, kind: str, seed: int, sound: Path) -> None:
    """Run a case in a process that was forked for it; it does not return."""
    os.chdir(folder)
    _redirect()
    code = _TRACEBACK
    try:
        code = call(fuzzing.make(kind, seed, sound, folder))
    except BaseException:  # a fault of the fuzzer
        traceback.print_exc()
    os._exit(code)


def _redirect() -> None:
    """Let this process write to files in the working directory."""
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w"), write_through=True) for n in (1, 2))


def run(kind: str, seed: int, sound: Path, folder: Path) -> Outcome:
    """Run a case in a process of its own, in an empty folder."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        _child(folder, kind, seed, sound)
    killed = ""
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if not killed and time.monotonic() - start > MOST_SECONDS:
            killed = "over 60 s"
        if not killed and _resident(child) > MOST_BYTES:
            killed = "over 2 GB"
        if killed:
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL)
    megabytes = usage.ru_maxrss * 1024 / 1e6
    said = (
        (folder / "err.txt").read_text(errors="replace").strip().splitlines() if (folder / "err.txt").exists() else []
    )
    code = os.waitstatus_to_exitcode(status)
    name = killed or ("signal" if code < 0 else dict(enumerate(GOOD)).get(code, "other code"))
    if code == _TRACEBACK:
        name = "traceback"
    elif name in GOOD and megabytes * 1e6 > MOST_BYTES:
        name = "over 2 GB"
    return Outcome(name, time.monotonic() - start, megabytes, said[-1] if said else "")


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


@contextlib.contextmanager
def sound_files() -> Iterator[Path]:
    """Yield a folder with the sound files, which stays until the block ends."""
    with tempfile.TemporaryDirectory(prefix="onnxq-fuzz-") as folder:
        made = Path(folder)

        def in_child(command: fuzzing.Command) -> int:
            child = os.fork()
            if not child:
                os.chdir(made)
                _redirect()
                os._exit(call(command))
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        fuzzing.prepare(made, in_child)
        _import_all()
        yield made


def _import_all() -> None:
    """Import what the commands need, so that no case has to."""
    for module in fuzzing.MODULES:
        importlib.import_module(module)
    Image.init()


def long_run(kinds: list[str], first: int, cases: int) -> bool:
    """Run cases of all kinds in turn, print the table, and return whether all ended as they should."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    longest, largest = Counter[str](), Counter[str]()
    wrong: list[str] = []
    with sound_files() as sound:
        for number in range(cases):
            kind, seed = kinds[number % len(kinds)], first + number // len(kinds)
            with tempfile.TemporaryDirectory(prefix="onnxq-fuzz-") as folder:
                outcome = run(kind, seed, sound, Path(folder))
            counts[kind][outcome.name] += 1
            longest[kind], largest[kind] = max(longest[kind], outcome.seconds), max(largest[kind], outcome.megabytes)
            if outcome.name not in GOOD:
                wrong.append(f"{kind}:{seed} {outcome.name}: {outcome.said[:200]!r}")
                print(wrong[-1], flush=True)
    print(f"{'kind':<12}", *(f"{name:>11}" for name in (*OUTCOMES, "longest s", "most MB")))
    for kind in kinds:
        cells = [*(counts[kind][name] for name in OUTCOMES), round(longest[kind], 1), round(largest[kind])]
        print(f"{kind:<12}", *(f"{cell:>11}" for cell in cells))
    return not wrong


def one_case(kind: str, seed: int) -> bool:
    """Run one case again, and show its files and what it says."""
    folder = Path(tempfile.gettempdir(), f"onnxq-fuzz-{kind}-{seed}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with sound_files() as sound:
        outcome = run(kind, seed, sound, folder)
    print(folder, outcome.name, f"{outcome.seconds:.1f} s, {outcome.megabytes:.0f} MB")
    print(re.sub("[\x00-\x08\x0b-\x1f\x7f]", "?", (folder / "err.txt").read_text(errors="replace")))
    return outcome.name in GOOD


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=600, help="number of cases, shared by the kinds (600)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--kinds", nargs="+", choices=list(fuzzing.KINDS), default=list(fuzzing.KINDS))
    parser.add_argument("--case", metavar="KIND:SEED", help="run one case again")
    arguments = parser.parse_args()
    if arguments.case:
        kind, _, seed = arguments.case.partition(":")
        return 0 if one_case(kind, int(seed)) else 1
    return 0 if long_run(arguments.kinds, arguments.first, arguments.cases) else 1


if __name__ == "__main__":
    sys.exit(main())
