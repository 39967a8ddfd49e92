"""Opens the pool that `--workers` names: this process, processes on this machine, or the workers of a scheduler."""

import contextlib
import importlib
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from onnxq.cluster.sent import import_passes
from onnxq.errors import ConfigError
from onnxq.ir.temporary import temporary_folder
from onnxq.runtime.pool import IN_PROCESS, Pool

_PATIENCE = 20
"""Seconds in which a scheduler must answer, and then have a worker."""

_LOGGERS = ("distributed", "distributed.client", "asyncio", "tornado.application")
"""Loggers of Dask that tell of lost connections, which onnxq tells in its own words."""

_PRELOAD = ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"] if sys.platform == "win32" else []
"""What workers on this machine begin with: Ctrl+C on a terminal reaches them too, and the client stops them.

Elsewhere they are started with interrupts held back. Dask writes the code to a file, which a killed process leaves."""

_QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.disk": False,
}
"""Settings of Dask for processes on this machine: by default each looks after itself for 3 % of a core."""

Where = int | str
"""A number of processes on this machine, or the address of a scheduler."""


def parse_workers(text: str) -> Where:
    """Return what the value of `--workers` means.

    Raises:
        ValueError: it is neither a number from 1 to 999 nor an address.
    """
    if re.fullmatch("0*[1-9][0-9]{0,2}", text):
        return int(text)
    protocol, mark, host = text.partition("://")
    if protocol and mark and host:
        return text
    raise ValueError(
        f"expected a number of processes below 1000, or the address of a scheduler as tcp://HOST:8786, got {text!r}"
    )


@contextlib.contextmanager
def open_pool(where: Where | None, kept: Path | None = None) -> Iterator[Pool]:
    """Yield a pool; at the end what was started for it is stopped, and tasks that still run are cancelled.

    Args:
        where: a number of processes to start on this machine, each with one thread; the address of a scheduler, or a
            `distributed.LocalCluster` or other cluster of Dask; None: this process.
        kept: file in which finished calibration samples are kept if the scheduler is lost; the next run with the same
            model, data and options continues from it and removes it. None: they are lost.

    Raises:
        ConfigError: Dask is not installed, the scheduler does not answer, or it has no workers.
    """
    if where is None:
        yield IN_PROCESS
        return
    try:
        distributed: Any = importlib.import_module("distributed")
        from onnxq.cluster.dask_pool import DaskPool
    except ImportError:
        raise ConfigError("--workers: Dask is not installed; pip install 'onnxq[cluster]'") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_silent())
        # A model may be larger than what Dask takes for a mistake.
        dask: Any = importlib.import_module("dask")
        stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "8GB"}))
        name = f"{where} processes" if isinstance(where, int) else str(where)
        with _interrupted_later() if isinstance(where, int) else contextlib.nullcontext():
            cluster = stack.enter_context(_local(distributed, where)) if isinstance(where, int) else where
            try:
                client = distributed.Client(cluster, set_as_default=False, timeout=_PATIENCE)
            except (OSError, ValueError, TimeoutError) as error:
                why = str(error).splitlines()[0]
                raise ConfigError(
                    f"--workers {name}: no scheduler answers ({why}); start one with: dask scheduler"
                ) from None
            stack.callback(_close, client)
        # The modules are imported on the workers while the model is prepared here.
        workers = list(client.nthreads())
        importing = [client.submit(import_passes, workers=[each], pure=False) for each in workers]
        stack.callback(importing.clear)
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise ConfigError(
                f"--workers {name}: the scheduler has no workers; start some with: dask worker {name} --nthreads 1"
            ) from None
        yield DaskPool(client, name, kept)


@contextlib.contextmanager
def _local(distributed: Any, processes: int) -> Iterator[Any]:
    """Start processes on this machine."""
    dask: Any = importlib.import_module("dask")
    with (
        temporary_folder() as folder,
        dask.config.set({**_QUIET, "temporary-directory": str(folder)}),  # the scheduler makes a folder in it
        distributed.LocalCluster(
            n_workers=processes,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # --max-memory is the limit
            silence_logs=logging.CRITICAL,
            preload=_PRELOAD,
        ) as cluster,
    ):
        yield cluster


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Let Ctrl+C raise KeyboardInterrupt at the end of the block: while it starts processes, Dask leaves them behind.

    Threads and processes that are started in the block get no interrupt at all. Other threads may get it, for which
    Python calls the handler in the main thread.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # its start would let interrupts through again
    handler = signal.getsignal(signal.SIGINT)
    held: list[tuple[Any, ...]] = []
    is_held = callable(handler) and threading.current_thread() is threading.main_thread()
    if is_held:
        signal.signal(signal.SIGINT, lambda *interrupt: held.append(interrupt))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_held:
            signal.signal(signal.SIGINT, handler)
        if held and callable(handler):
            handler(*held[0])


def _close(client: Any) -> None:
    # A client whose scheduler is gone still waits for it.
    with contextlib.suppress(Exception):
        client.close(timeout=2)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep Dask's own log records off the terminal."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
