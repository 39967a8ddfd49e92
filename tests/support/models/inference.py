"""Make inputs for models, run them in onnxruntime, and compare the outputs."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from variants import copy

SIZES = {"batch": 2, "height": 32, "width": 64}


def feed(model: onnx.ModelProto, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> dict[str, np.ndarray]:
    """Return random values in [0, 1) for the inputs of a model; `sizes` gives the sizes of named dimensions."""
    rng = np.random.default_rng(seed)
    stored = {w.name for w in model.graph.initializer}
    inputs = [t for t in model.graph.input if t.name not in stored]
    values = {
        t.name: rng.random([d.dim_value or sizes[d.dim_param] for d in t.type.tensor_type.shape.dim], np.float32)
        for t in inputs
    }
    kinds = {t.name: helper.tensor_dtype_to_np_dtype(t.type.tensor_type.elem_type) for t in inputs}
    return {name: array.astype(kinds[name], copy=False) for name, array in values.items()}


def session(model: onnx.ModelProto, optimized: bool = False) -> ort.InferenceSession:
    """Open a model in onnxruntime, by default without graph optimizations."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(
    model: onnx.ModelProto,
    values: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] | None = None,
    optimized: bool = False,
) -> dict[str, np.ndarray]:
    """Return the outputs of a model by name; `outputs` may name inner tensors."""
    if outputs is not None:
        model = copy(model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    names = [t.name for t in model.graph.output]
    results = session(model, optimized).run(names, dict(feed(model) if values is None else values))
    return dict(zip(names, results, strict=True))


def assert_same_numbers(before: onnx.ModelProto, after: onnx.ModelProto, seeds: Sequence[int] = (0, 1)) -> None:
    """Assert that two models have the same inputs and outputs and compute the same numbers."""
    assert {t.name: t.type for t in before.graph.output} == {t.name: t.type for t in after.graph.output}
    for seed in seeds:
        values = feed(before, seed)
        assert values.keys() == feed(after, seed).keys()
        one, other = run(before, values), run(after, values)
        for name, expected in one.items():
            assert other[name].shape == expected.shape
            assert other[name].dtype == expected.dtype
            if expected.size:
                within = 1e-4 * float(np.abs(expected).max())
                assert np.abs(other[name].astype(np.float64) - expected).max() <= within, name


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the signal-to-quantization-noise ratio in dB; infinite if there is no noise."""
    noise = np.square(expected - actual, dtype=np.float64).sum()
    if noise == 0:
        return np.inf
    return 10 * float(np.log10(np.square(expected, dtype=np.float64).sum() / noise))


def ops(model: onnx.ModelProto) -> list[str]:
    """Return the operators of a model's nodes, in order."""
    return [node.op_type for node in model.graph.node]


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the nodes of a model by name."""
    return {node.name: node for node in model.graph.node}


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return tensor -> its producer."""
    return {name: node for node in model.graph.node for name in node.output}


def readers(model: onnx.ModelProto, tensor: str) -> list[onnx.NodeProto]:
    """Return the nodes that read a tensor."""
    return [node for node in model.graph.node if tensor in node.input]


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the values of the initializers by name."""
    return {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
