"""Run single passes and pipelines on a model."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
from inference import assert_same_numbers, feed
from variants import copy

from onnxq.calibration.feeds import Sample
from onnxq.calibration.samples import Samples
from onnxq.facts import FittedRanges, Plan, QuantizationParameters, Statistics
from onnxq.ir import Model
from onnxq.passes.compute_qparams import ComputeQparams
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.find_sizes import FindSizes
from onnxq.passes.fit_ranges import FitRanges
from onnxq.passes.fold_batch_norm import FoldBatchNorm
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.normalize import MIN_OPSET, Normalize
from onnxq.passes.observe import Observe
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.passes.pointwise_to_matmul import PointwiseToMatmul
from onnxq.passes.remove_unused import RemoveUnused
from onnxq.passes.to_float16 import MIN_OPSET as HALF_OPSET
from onnxq.passes.to_float16 import ToFloat16
from onnxq.passes.to_float32 import ToFloat32
from onnxq.pipeline import Facts, Pass, Pipeline, Rewrite
from onnxq.targets import ORT, TENSORRT, Target

NARROW_TENSORRT = replace(TENSORRT, few_channels=None)
"""TensorRT, but with integer kernels for Convs with the 4 and 8 channels that they have in these graphs."""


def rewrite(step: Rewrite, model: onnx.ModelProto, facts: Facts | None = None) -> tuple[onnx.ModelProto, int]:
    """Return the model after a rewrite, and its number of edits."""
    working = Model(copy(model))
    edits = step.run(working, facts or Facts())
    return working.to_proto(), edits


def assert_untouched(step: Rewrite, model: onnx.ModelProto) -> None:
    """Assert that a rewrite makes no edit and leaves the model as it is, byte for byte."""
    after, edits = rewrite(step, model)
    assert edits == 0
    assert after.SerializeToString(deterministic=True) == Model(model).to_proto().SerializeToString(deterministic=True)
    assert [node.name for node in after.graph.node] == [node.name for node in model.graph.node]


def rewrite_checked(step: Rewrite, model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Rewrite, and assert what must hold for each rewrite: same numbers, a valid model, no edit by a second run."""
    after, edits = rewrite(step, model)
    onnx.checker.check_model(after, full_check=True)
    assert_same_numbers(model, after)
    assert_untouched(step, after)
    return after, edits


def preparing(least_opset: int = MIN_OPSET) -> list[Pass]:
    """Return the rewrites before all analyses."""
    return [Normalize(least_opset), InferShapes(), ToFloat32(), FoldConstants(), FoldBatchNorm()]


def prepared(model: onnx.ModelProto) -> Model:
    """Return a model after the rewrites before all analyses."""
    working = Model(copy(model))
    Pipeline(preparing()).run(working)
    return working


def planned(model: onnx.ModelProto, target: Target = ORT, **options: object) -> tuple[Model, Plan]:
    """Return a prepared model and its plan; the options are those of PlanQuantization."""
    working = Model(copy(model))
    facts = Pipeline([*preparing(), FindDecode(), FindSizes(), PlanQuantization(target, **options)]).run(working)
    return working, facts[Plan]


def samples(feeds: Iterable[Mapping[str, np.ndarray] | None]) -> Samples:
    """Return calibration data with these feeds; None is a sample that cannot be read."""
    unreadable: dict[str, str] = {}
    loaders = tuple(partial(_load, unreadable, number, values) for number, values in enumerate(feeds))
    return Samples(loaders, len(loaders), "made up", unreadable=unreadable)


def _load(unreadable: dict[str, str], number: int, values: Mapping[str, np.ndarray] | None) -> Sample | None:
    if values is None:
        unreadable[f"{number}.jpg"] = f"{number}.jpg is cut short"
        return None
    return Sample(dict(values), next(iter(values.values())).shape[0])


def quantizing(
    model: onnx.ModelProto,
    target: Target = ORT,
    method: str = "minmax",
    weight_method: str = "minmax",
    matmul: bool = True,
    limited: bool = True,
    feedback: bool = False,
    **options: object,
) -> list[Pass]:
    """Return all passes but correct-bias and verify, calibrated on the feeds with seeds 0 to 3.

    Without `matmul` 1x1 Convs stay Convs for every target; unless `limited`, weights use all 8 bits, with which sums
    saturate on some CPUs; with `feedback` they are rounded with error feedback; further options are those of
    PlanQuantization.
    """
    data = samples([feed(model, seed) for seed in range(4)])
    return [
        *preparing(max(MIN_OPSET, target.min_opset, target.activations[0].opset)),
        FindDecode(),
        FindSizes(),
        PlanQuantization(target, **options),
        Observe(data, every_conv=feedback),
        FitRanges(method),
        ComputeQparams(weight_method, limited=limited, feedback=feedback),
        InsertQdq(),
        *([PointwiseToMatmul()] if matmul and target.lowers_pointwise else []),
        RemoveUnused(),
    ]


def quantized(
    model: onnx.ModelProto, target: Target = ORT, facts: Iterable[object] = (), **options: object
) -> tuple[onnx.ModelProto, Facts]:
    """Return a quantized model and the facts of the pipeline; the options are those of `quantizing`."""
    working = Model(copy(model))
    found = Pipeline(quantizing(model, target, **options), pinned=facts).run(working)
    assert all(kind in found for kind in (Plan, Statistics, FittedRanges, QuantizationParameters))
    return working.to_proto(), found


def quantized_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that is quantized for TensorRT, and computes in float16 what is not."""
    working = Model(copy(model))
    passes = quantizing(working.to_proto(), replace(NARROW_TENSORRT, min_opset=HALF_OPSET), half=True)
    Pipeline([*passes, ToFloat16()]).run(working)
    return working.to_proto()
