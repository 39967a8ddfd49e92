"""Run graphs through onnxruntime, and stream chosen tensors of many samples with bounded memory."""

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

from onnxq.errors import ModelError
from onnxq.ir.storage import data_path, is_one_message, loadable

log = logging.getLogger(__name__)

Session = ort.InferenceSession
NodeArg = ort.NodeArg
Feed = Mapping[str, NDArray[np.generic]]

_FATAL_ONLY = 4

_FLOATS: Mapping[str, "np.dtype[Any]"] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}

_UNFUSED_QDQ = "session.disable_quant_qdq"

_WEIGHTS_BESIDE = "session.optimized_model_external_initializers_file_name"


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
) -> ort.InferenceSession:
    """Load a model into onnxruntime's CPU provider.

    Args:
        model: a model, or the path of one.
        threads: intra-op threads; 0 lets onnxruntime choose.
        optimized: with all graph optimizations, or with none.
        exact: layers between QuantizeLinear and DequantizeLinear are computed in float32 on the dequantized values, as
            ONNX defines them, and not by kernels for integers. Those saturate on CPUs without VNNI, which add products
            of 8 bits in pairs in 16 bits, so that their numbers depend on the machine. Whatever a file or a decision
            is made of must be exact; what is to show how a model runs must not. A float model runs the same way. Only
            the order of float sums still differs between CPUs, and from that without optimizations: where it turns the
            rounding of a value, later values differ by steps of their scales.
        optimized_path: where onnxruntime is to write the graph that it really runs.
        profile_prefix: first part of the path where it is to write the time of every node.
        resting: its threads rest between runs; else they spin for the next one, and slow down what runs meanwhile.
        frugal: memory is taken where it is needed, not planned ahead for all that a run needs at once.

    Raises:
        ModelError: onnxruntime cannot load the model; with its reason.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL_ONLY
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if exact:
        options.add_session_config_entry(_UNFUSED_QDQ, "1")
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
        if isinstance(model, onnx.ModelProto) and not is_one_message(model):
            options.add_session_config_entry(_WEIGHTS_BESIDE, data_path(optimized_path).name)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    options.enable_mem_pattern = not frugal
    if resting:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        with loadable(model) as source:
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        raise ModelError(f"onnxruntime cannot load the model: {first_line(error)}") from error


def run(session: ort.InferenceSession, feed: Feed, outputs: Sequence[str] | None = None) -> list[NDArray[np.generic]]:
    """Run one feed; float32 may be given as float16, and the other way round.

    Raises:
        ModelError: onnxruntime refuses the feed or fails; with its reason.
    """
    with _naming_errors():
        return list(session.run(outputs, _as_taken(session, feed)))


def _as_taken(session: ort.InferenceSession, feed: Feed) -> dict[str, NDArray[np.generic]]:
    return fitted(feed, {i.name: _FLOATS[i.type] for i in session.get_inputs() if i.type in _FLOATS})


def fitted(feed: Feed, floats: Mapping[str, "np.dtype[Any]"]) -> dict[str, NDArray[np.generic]]:
    """A feed with its floats in the types that a model takes.

    Args:
        feed: an array for each input.
        floats: input -> type; inputs that are not floats have none.
    """
    wanted = {name: floats.get(name, array.dtype) if array.dtype.kind == "f" else array.dtype
              for name, array in feed.items()}  # fmt: skip
    return {name: array.astype(wanted[name], copy=False) for name, array in feed.items()}


def run_named(session: ort.InferenceSession, feed: Feed) -> dict[str, NDArray[np.generic]]:
    """Run one feed, and give every output by its name.

    Raises:
        ModelError: as from `run`.
    """
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, run(session, feed, names), strict=True))


def iter_outputs(
    session: ort.InferenceSession, feed: Feed, names: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Run one feed, as `run` takes it, and give its outputs one after the other, each forgotten before the next.

    onnxruntime copies what it hands to numpy, so that all of them at once would be there twice.

    Raises:
        ModelError: as from `run`.
    """
    with _naming_errors():
        given = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in _as_taken(session, feed).items()}
        values = session.run_with_ort_values(names, given)
    values.reverse()
    for name in names:
        yield name, values.pop().numpy()


@contextlib.contextmanager
def _naming_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        raise ModelError(f"onnxruntime cannot run the model: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of what a runtime says, which is followed by its own stack."""
    return str(error).strip().splitlines()[0]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
