"""Sessions of onnxruntime: load a model, run one feed, translate errors."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxq import memory
from onnxq.errors import ModelError
from onnxq.ir.storage import data_path, is_one_message, linked, loadable

log = logging.getLogger(__name__)

Session = ort.InferenceSession
NodeArg = ort.NodeArg
Feed = Mapping[str, NDArray[np.generic]]

VERSION: str = ort.__version__

_FATAL_ONLY = 4
"""Log severity of onnxruntime."""

_FLOATS: Mapping[str, "np.dtype[Any]"] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}

_UNFUSED_QDQ = "session.disable_quant_qdq"

_WIDE_SUMS = "session.x64quantprecision"

_WEIGHTS_BESIDE = "session.optimized_model_external_initializers_file_name"

_WEIGHTS_FROM = "session.model_external_initializers_file_folder_path"


def open_session(
    model: onnx.ModelProto | Path,
    *,
    threads: int = 0,
    optimized: bool = True,
    exact: bool = False,
    optimized_path: Path | None = None,
    profile_prefix: Path | None = None,
    resting: bool = False,
    frugal: bool = False,
    brief: bool = False,
    wide_sums: bool = False,
) -> ort.InferenceSession:
    """Load a model into onnxruntime's CPU provider.

    Args:
        model: a model, or the path of one.
        threads: intra-op threads; 0 lets onnxruntime choose.
        optimized: run with all graph optimizations, or with none.
        exact: compute layers between QuantizeLinear and DequantizeLinear in float32 on the dequantized values, as ONNX
            defines them, instead of in integer kernels. On CPUs without VNNI the integer kernels add pairs of 8-bit
            products in 16 bits, which saturate, so the result depends on the machine. Results that enter a file or a
            decision must be exact; results that show how a model runs need not be. A float model is not affected. The
            order of float sums still differs between CPUs: if it changes the rounding of a value, later values differ
            by steps of their scales.
        optimized_path: onnxruntime writes the optimized graph to this file.
        profile_prefix: onnxruntime writes the time of every node to a file whose path begins with this.
        resting: the threads sleep between runs; otherwise they spin until the next run and slow down other work.
        frugal: allocate memory on demand instead of planning it for a whole run.
        brief: few runs follow: memory is allocated on demand too, and not kept for the next run.
        wide_sums: on x86 CPUs without VNNI add products of 8-bit integers in 32 bits, which is slower.

    Raises:
        ModelError: onnxruntime cannot load the model; the message has its reason.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL_ONLY
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if exact:
        options.add_session_config_entry(_UNFUSED_QDQ, "1")
    if wide_sums:
        options.add_session_config_entry(_WIDE_SUMS, "1")
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
        if isinstance(model, onnx.ModelProto) and not is_one_message(model):
            options.add_session_config_entry(_WEIGHTS_BESIDE, data_path(optimized_path).name)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    options.enable_mem_pattern = not (frugal or brief)
    options.enable_cpu_mem_arena = not brief
    if resting:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    found = linked(model) if isinstance(model, onnx.ModelProto) else None
    try:
        if found is not None:
            options.add_session_config_entry(_WEIGHTS_FROM, found[1])
            memory.give_back()
            session = ort.InferenceSession(found[0], options, providers=["CPUExecutionProvider"])
            memory.give_back()  # what the weights took before they were in the order of the kernels
            return session
        with loadable(model) as source:
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        raise ModelError(f"onnxruntime cannot load the model: {first_line(error)}") from error


def run(session: ort.InferenceSession, feed: Feed, outputs: Sequence[str] | None = None) -> list[NDArray[np.generic]]:
    """Run one feed; float32 inputs may be given as float16 and vice versa.

    Raises:
        ModelError: onnxruntime refuses the feed or fails; the message has its reason.
    """
    names = list(outputs) if outputs is not None else [output.name for output in session.get_outputs()]
    taken = _as_taken(session, feed)
    with _naming_errors():
        values = session.run(names, taken)
    # onnxruntime 1.25 returns an output that is an input as a view of the feed's memory, which it does not keep alive.
    return [value.copy() if name in taken else value for name, value in zip(names, values, strict=True)]


def _as_taken(session: ort.InferenceSession, feed: Feed) -> dict[str, NDArray[np.generic]]:
    return fitted(feed, {i.name: _FLOATS[i.type] for i in session.get_inputs() if i.type in _FLOATS})


def fitted(feed: Feed, floats: Mapping[str, "np.dtype[Any]"]) -> dict[str, NDArray[np.generic]]:
    """Return a feed with its floats in the types that a model takes.

    Args:
        feed: an array for each input.
        floats: input -> float type; other inputs are missing.
    """
    wanted = {name: floats.get(name, array.dtype) if array.dtype.kind == "f" else array.dtype
              for name, array in feed.items()}  # fmt: skip
    return {name: array.astype(wanted[name], copy=False) for name, array in feed.items()}


def run_named(session: ort.InferenceSession, feed: Feed) -> dict[str, NDArray[np.generic]]:
    """Run one feed and return every output by name.

    Raises:
        ModelError: as from `run`.
    """
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, run(session, feed, names), strict=True))


def iter_outputs(
    session: ort.InferenceSession, feed: Feed, names: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Run one feed and return an iterator of its outputs by name; each is freed once nobody holds it any more.

    Raises:
        ModelError: as from `run`.
    """
    with _naming_errors():
        inputs = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in _as_taken(session, feed).items()}
        values = session.run_with_ort_values(names, inputs)
    values.reverse()
    return ((name, values.pop().numpy()) for name in names)


@contextlib.contextmanager
def _naming_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        raise ModelError(f"onnxruntime cannot run the model: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return the first line of a runtime's message; the stack of the runtime follows it."""
    return str(error).strip().splitlines()[0]


_share = 0


@contextlib.contextmanager
def limited_cores(number: int) -> Iterator[None]:
    """Let `cores` return this number within the block; 0 leaves it as it is."""
    global _share
    before, _share = _share, number or _share
    try:
        yield
    finally:
        _share = before


def cores() -> int:
    """Return the number of cores that this process may use."""
    if _share:
        return _share
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
