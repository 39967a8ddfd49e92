"""Runs a compiler in a process of its own: it may crash, hang, or need another environment than onnxq's."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.compilers.base import Job
from onnxq.errors import ConfigError, ModelError
from onnxq.ir import storage
from onnxq.numerics.arrays import NamedArrays
from onnxq.runtime.session import cores

WORKERS = Path(__file__).with_name("workers")

_LAST_LINES = 6
"""Lines of a failed compiler that are shown."""

_LONGEST = 300
"""Characters of such a line."""

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""What changes the colour of a terminal."""

_LOOKING = 60.0
"""Time to look for a module, s."""


def has_module(python: str, module: str) -> bool:
    """Return whether the environment of an interpreter has a module.

    Raises:
        ConfigError: there is no such interpreter.
    """
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, timeout=_LOOKING, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--python {python}: cannot be run ({error}); give the path of an interpreter") from None
    return found.returncode == 0


def run_worker(script: Path, title: str, job: Job, options: Mapping[str, object]) -> tuple[dict[str, Any], str]:
    """Run a script with a job until it ends, and return what it tells and what it printed.

    The script finds `job.json` in its working folder, with the options, the names of the outputs and the number of
    feeds, beside `model.onnx` and `feed_0.npz`. It writes `result.json`, and `outputs_0.npz` if it runs the model.

    Args:
        script: one of `WORKERS`; it imports nothing of onnxq.
        title: name of the compiler in messages.
        job: what it is to build.
        options: what else it needs to know, to be written as JSON.

    Raises:
        ConfigError: the interpreter cannot be started.
        ModelError: the script failed, or took longer than the job's time; the message has its last words.
    """
    storage.save(job.model, job.folder / "model.onnx")
    for number, feed in enumerate(job.feeds):
        np.savez(job.folder / f"feed_{number}.npz", **feed)  # type: ignore[arg-type]  # numpy takes any array
    (job.folder / "job.json").write_text(json.dumps({**options, "feeds": len(job.feeds)}), encoding="utf-8")
    printed = job.folder / "printed.txt"
    failed = _run([job.python, str(script)], job.folder, printed, job.timeout)
    text = printed.read_text(encoding="utf-8", errors="replace")
    told = job.folder / "result.json"
    if failed or not told.is_file():
        raise ModelError(f"{title} {failed or 'ended without a result'}; its last words:", *last_words(text))
    return json.loads(told.read_text(encoding="utf-8")), text


def outputs_of(job: Job) -> list[NamedArrays]:
    """Return the outputs that a script wrote for each feed."""
    found: list[NamedArrays] = []
    for number in range(len(job.feeds)):
        with np.load(job.folder / f"outputs_{number}.npz") as arrays:
            found.append({value.name: arrays[str(place)] for place, value in enumerate(job.model.graph.output)})
    return found


def last_words(text: str) -> list[str]:
    """Return the last lines that a program printed, those that say something."""
    lines = [line.rstrip()[:_LONGEST] for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    return [f"  {line}" for line in lines[-_LAST_LINES:]] or ["  (none)"]


def _run(command: list[str], folder: Path, printed: Path, timeout: float) -> str:
    """Run a command and the processes that it starts; return how it failed, or an empty text."""
    start = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(cores())}
    with printed.open("wb") as stream:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"{command[0]}: cannot be run ({error.strerror}); check --python") from None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"was ended after {time.monotonic() - start:.0f} s (--timeout)"
        finally:
            _end(process)
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"failed (exit code {code})" if code else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and those of its session that are left."""
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
