"""The passes: one file, one class, one name each; and their order."""

import onnx

from onnxq.calibration.samples import Samples
from onnxq.config import Config
from onnxq.passes import normalize, pack_int4, to_float16
from onnxq.passes.compute_qparams import ComputeQparams
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.cut_decode import CutDecode
from onnxq.passes.equalize import Equalize
from onnxq.passes.expand_softmax import ExpandSoftmax
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.fit_ranges import FitRanges
from onnxq.passes.fold_batch_norm import FoldBatchNorm
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fold_pad import FoldPad
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.measure_sensitivity import MeasureSensitivity
from onnxq.passes.normalize import Normalize
from onnxq.passes.observe import Observe
from onnxq.passes.pack_int4 import PackInt4
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.passes.pointwise_to_matmul import PointwiseToMatmul
from onnxq.passes.reconstruct import Reconstruct
from onnxq.passes.remove_unused import RemoveUnused
from onnxq.passes.sequence_to_split import SequenceToSplit
from onnxq.passes.strip_qdq import StripQdq
from onnxq.passes.to_float16 import ToFloat16
from onnxq.passes.to_float32 import ToFloat32
from onnxq.passes.undo_lowering import UndoLowering
from onnxq.passes.upsample_to_concat import UpsampleToConcat
from onnxq.passes.verify import Verify
from onnxq.passes.write_docs import WriteDocs
from onnxq.pipeline import Pass
from onnxq.progress import Progress, silent
from onnxq.targets import TARGETS
from onnxq.yolo.detector import Detector

__all__ = ["cutting", "default", "planning"]

if __name__ != "onnxq.passes":
    # A second import under another name would make a second copy of every class and fact.
    raise ImportError("import onnxq.passes, not passes")


def _preparing(config: Config, least_opset: int = normalize.MIN_OPSET) -> list[Pass]:
    return [
        Normalize(least_opset, quantized=config.requantize),
        *([StripQdq()] if config.requantize else []),
        InferShapes(),
        *([UndoLowering()] if config.requantize else []),
        ToFloat32(),
        FoldConstants(),
        SequenceToSplit(),
        FoldPad(),
        FoldBatchNorm(),
        *([Equalize()] if config.equalize else []),
        FindDecode(),
    ]


def cutting(config: Config) -> list[Pass]:
    """The passes that make a float model without its decode."""
    return [*_preparing(config), CutDecode()]


def _least_opset(config: Config) -> int:
    wanted = [(config.is_half, to_float16.MIN_OPSET), (config.packs, pack_int4.MIN_OPSET)]
    return max([normalize.MIN_OPSET, *(opset for is_wanted, opset in wanted if is_wanted)])


def planning(config: Config) -> list[Pass]:
    """The passes that decide what will be quantized, for which no data is needed."""
    return [
        *_preparing(config, _least_opset(config)),
        PlanQuantization(
            TARGETS[config.target],
            weight_bits=config.weight_bits,
            act_bits=config.act_bits,
            symmetric=config.symmetric,
            exclude=config.exclude,
            bits=config.widths,
            half=config.is_half,
        ),
    ]


def _parameters(config: Config, samples: Samples | None, detector: Detector | None, progress: Progress) -> list[Pass]:
    """What finds weights and biases other than the model's own, rounded."""
    if config.reconstructs:
        return [Reconstruct(samples, detector=detector, ranges=config.ranges_by_outputs, progress=progress)]
    return [] if config.keep_bias else [CorrectBias()]


def default(
    config: Config,
    original: onnx.ModelProto,
    samples: Samples | None,
    *,
    detector: Detector | None = None,
    sensitivity: bool = False,
    progress: Progress = silent,
) -> list[Pass]:
    """All passes, in order.

    Args:
        config: the options.
        original: the float model, to compare the result with.
        samples: the calibration data; None where `Statistics` and `Probe` will be given.
        detector: what the model was taken for; reconstruction looks where it sees objects, and so does sensitivity.
        sensitivity: measure what each piece of the network costs.
        progress: told how far the work is.
    """
    target = TARGETS[config.target]
    return [
        *planning(config),
        Observe(samples, progress),
        FitRanges(config.range_method),
        ComputeQparams(config.weight_method),
        *_parameters(config, samples, detector, progress),
        *([MeasureSensitivity(samples, target, detector, progress)] if sensitivity else []),
        InsertQdq(),
        WriteDocs(),
        *([ToFloat16()] if config.is_half else []),
        *([PointwiseToMatmul()] if target.least_stride else []),
        *([UpsampleToConcat()] if target.upsample_to_concat else []),
        *([ExpandSoftmax()] if target.expand_softmax else []),
        RemoveUnused(),
        *([PackInt4()] if config.packs else []),
        Verify(original, target, progress),
    ]
