"""Models that are quantized and checked, as `Verify` does."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from inference import feed
from pipelines import quantized

from onnxq.facts import Plan, Probe, Verification
from onnxq.ir import Model
from onnxq.passes.verify import Verify
from onnxq.pipeline import Facts
from onnxq.targets import ORT, Target


def widths(weight_bits: int) -> dict[str, object]:
    """Return the options for weights of so many bits in all layers, the last ones too."""
    return {"bits": [("re:.", (weight_bits, 8))]}


ROOM = widths(7)
"""Options with which no sum of a runtime saturates on any CPU."""


def verify(
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    facts: Facts,
    target: Target = ORT,
    feeds: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> Verification:
    """Return what `Verify` finds of a quantized model, given the facts from its making."""
    probe = Probe((feed(original),) if feeds is None else tuple(feeds))
    return Verify(original, target).run(Model(result), Facts([facts[Plan], probe]))


def verified(
    model: onnx.ModelProto,
    target: Target = ORT,
    feeds: Sequence[Mapping[str, np.ndarray]] | None = None,
    **options: object,
) -> tuple[onnx.ModelProto, Plan, Verification]:
    """Quantize a model and check it."""
    after, facts = quantized(model, target, **options)
    return after, facts[Plan], verify(model, after, facts, target, feeds)


def edited(model: onnx.ModelProto, edit: Callable[[onnx.ModelProto], object]) -> tuple[onnx.ModelProto, Facts]:
    """Quantize a model and edit the result."""
    after, facts = quantized(model)
    edit(after)
    return after, facts
