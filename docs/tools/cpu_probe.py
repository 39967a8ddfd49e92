"""Run a model on feeds in one runtime and store its outputs, or the times of runs in turn with a second model.

    python cpu_probe.py ort model.onnx feeds.npz result.npz
    python cpu_probe.py openvino model.onnx feeds.npz result.npz --beside float.onnx --rounds 40

It needs only numpy and the runtime, so that any interpreter can run it: `docs/tools/cpus.py` starts it on other CPUs,
emulated ones included. An array `0/images` of the feeds is the input `images` of the first run; outputs are named
alike. With `--beside` the result has `seconds`, float64 (rounds, 2): the model, and the one beside it.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Arrays = Mapping[str, np.ndarray]
Model = Callable[[Arrays], dict[str, np.ndarray]]

_WARM_UP = 3
"""Runs of each model before those that count."""


def open_ort(path: str, threads: int, exact: bool = False) -> Model:
    """Load a model into onnxruntime; threads sleep between runs, as they would slow down a model beside it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def open_openvino(path: str, threads: int) -> Model:
    """Load a model into OpenVINO; float operators run in float32, whatever the CPU prefers."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()

    def run(feed: Arrays) -> dict[str, np.ndarray]:
        found = request.infer(dict(feed), share_inputs=True)
        return {name: np.asarray(values) for port, values in found.items() for name in port.names}

    return run


RUNTIMES: Mapping[str, Callable[[str, int], Model]] = {
    "ort": open_ort,
    "openvino": open_openvino,
    "exact": lambda path, threads: open_ort(path, threads, exact=True),
}


def grouped(arrays: Arrays) -> list[dict[str, np.ndarray]]:
    """Return the arrays of each run by name, from arrays named `RUN/NAME`."""
    runs: defaultdict[int, dict[str, np.ndarray]] = defaultdict(dict)
    for key in arrays:
        number, _, name = key.partition("/")
        runs[int(number)][name] = arrays[key]
    return [runs[number] for number in sorted(runs)]


def flat(runs: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Return the arrays of all runs, named `RUN/NAME`."""
    return {f"{number}/{name}": array for number, run in enumerate(runs) for name, array in run.items()}


def seconds(models: Sequence[Model], feeds: Sequence[Arrays], rounds: int) -> np.ndarray:
    """Return the time of each run, s, float64 (rounds, models); the models take turns."""
    found = np.empty((_WARM_UP + rounds, len(models)))
    for turn, row in enumerate(found):
        for column, model in enumerate(models):
            start = time.perf_counter()
            model(feeds[turn % len(feeds)])
            row[column] = time.perf_counter() - start
    return found[_WARM_UP:]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtime", choices=tuple(RUNTIMES))
    parser.add_argument("model")
    parser.add_argument("feeds")
    parser.add_argument("result")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--beside", metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    with np.load(args.feeds) as stored:
        feeds = grouped(dict(stored))
    model = RUNTIMES[args.runtime](args.model, args.threads)
    if args.beside is not None:
        beside = RUNTIMES[args.runtime](args.beside, args.threads)
        np.savez(args.result, seconds=seconds([model, beside], feeds, args.rounds))
    else:
        np.savez(args.result, **flat([model(feed) for feed in feeds]))


if __name__ == "__main__":
    main()
