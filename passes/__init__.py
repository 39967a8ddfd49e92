"""The passes: one file, one class, one name each; and their order, in stages.

`prepare`, `decide`, `migrate`, `calibrate`, `write`, `lower`, `check`: `default` runs them one after the other.
"""

import onnx

from onnxq.calibration.samples import Samples
from onnxq.config import BY_OUTPUTS, FEEDBACK, Config
from onnxq.errors import PipelineError
from onnxq.passes import normalize, pack_int4, to_float16
from onnxq.passes.choose_migration import ChooseMigration
from onnxq.passes.compute_qparams import ComputeQparams
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.cut_decode import CutDecode
from onnxq.passes.equalize import Equalize
from onnxq.passes.expand_softmax import ExpandSoftmax
from onnxq.passes.explicit_pads import ExplicitPads
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.find_sizes import FindSizes
from onnxq.passes.fit_ranges import FitRanges
from onnxq.passes.float_lost_channels import FloatLostChannels
from onnxq.passes.fold_batch_norm import FoldBatchNorm
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fold_focus import FoldFocus
from onnxq.passes.fold_pad import FoldPad
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.measure_sensitivity import MeasureSensitivity
from onnxq.passes.measure_speed import MeasureSpeed
from onnxq.passes.migrate_scales import MigrateScales
from onnxq.passes.normalize import Normalize
from onnxq.passes.observe import Observe
from onnxq.passes.own_dequantize import OwnDequantize
from onnxq.passes.pack_int4 import PackInt4
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.passes.pointwise_to_matmul import PointwiseToMatmul
from onnxq.passes.reconstruct import Reconstruct
from onnxq.passes.remove_unused import RemoveUnused
from onnxq.passes.scales_to_batch_norm import ScalesToBatchNorm
from onnxq.passes.separate_scales import SeparateScales
from onnxq.passes.sequence_to_split import SequenceToSplit
from onnxq.passes.split_max_pool import SplitMaxPool
from onnxq.passes.strip_qdq import StripQdq
from onnxq.passes.to_float16 import ToFloat16
from onnxq.passes.to_float32 import ToFloat32
from onnxq.passes.undo_lowering import UndoLowering
from onnxq.passes.upsample_to_concat import UpsampleToConcat
from onnxq.passes.verify import Verify
from onnxq.passes.write_docs import WriteDocs
from onnxq.pipeline import Pass, Rewrite
from onnxq.progress import Progress, silent
from onnxq.qdq.placement import ENDS_BITS
from onnxq.runtime.pool import IN_PROCESS, Pool
from onnxq.targets import Target
from onnxq.targets.base import ANY_CPU
from onnxq.yolo.detector import Detector

__all__ = ["default", "prepare_and_cut", "prepare_and_plan"]

if __name__ != "onnxq.passes":
    # A second import under another name would make a second copy of every class and fact.
    raise ImportError("import onnxq.passes, not passes")


LOWERING: dict[str, type[Rewrite]] = {
    step.name: step
    for step in (PointwiseToMatmul, UpsampleToConcat, ExpandSoftmax, ScalesToBatchNorm, OwnDequantize, SplitMaxPool)
}
"""The passes that `Target.lowering` can name."""


def prepare(config: Config, min_opset: int = normalize.MIN_OPSET, detector: Detector | None = None) -> list[Pass]:
    """Return the passes that bring a float model into a common form and find its decode."""
    return [
        Normalize(min_opset, quantized=config.requantize, detector=detector),
        *([StripQdq()] if config.requantize else []),
        InferShapes(),
        *([UndoLowering()] if config.requantize else []),
        ToFloat32(),
        FoldConstants(),
        SequenceToSplit(),
        ExplicitPads(),
        FoldPad(),
        FoldFocus(),
        FoldBatchNorm(),
        *([Equalize()] if config.equalize else []),
        FindDecode(),
    ]


def decide(config: Config, detector: Detector | None) -> list[Pass]:
    """Return the passes that plan the quantization; they need no data. Arguments as in `default`."""
    return [FindSizes(detector), _planning(config)]


def _planning(config: Config) -> PlanQuantization:
    return PlanQuantization(
        config.placement,
        weight_bits=config.weight_bits,
        act_bits=config.act_bits,
        symmetric=config.symmetric,
        exclude=config.exclude,
        include=config.include,
        bits=config.widths,
        half=config.is_half,
    )


def migrate(
    config: Config, samples: Samples | None, detector: Detector | None = None, progress: Progress = silent
) -> list[Pass]:
    """Return the passes that move scales from activations into weights, and then plan again."""
    chosen = ChooseMigration(
        samples,
        config.placement.scaling_stride,
        progress,
        required=bool(config.migrate),
        at_sources=config.divides_at_sources,
    )
    return [chosen, MigrateScales(), FindDecode(), *decide(config, detector)]


def calibrate(
    config: Config,
    samples: Samples | None,
    detector: Detector | None = None,
    *,
    sensitivity: bool = False,
    progress: Progress = silent,
    pool: Pool = IN_PROCESS,
) -> list[Pass]:
    """Return the passes that find scales, zero points, weights and biases from data; arguments as in `default`."""
    adjusts_ranges = config.method_used == BY_OUTPUTS
    method = "mse" if adjusts_ranges else config.method_used
    passes: list[Pass] = [
        Observe(samples, progress, every_conv=config.rounds_with_feedback, pool=pool),
        FloatLostChannels(_planning(config), config.placement, method),
        SeparateScales(config.placement, method),
        FitRanges(method, every_conv=config.rounding == FEEDBACK),
        ComputeQparams(config.weight_method, limited=config.limits_weights, feedback=config.rounds_with_feedback),
    ]
    if config.reconstructs:
        limited = config.limits_weights
        passes.append(
            Reconstruct(
                samples,
                detector=detector,
                limited=limited,
                ranges=adjusts_ranges,
                scales=config.weight_bits < config.act_bits,
                progress=progress,
            )
        )
    elif not config.keep_bias:
        passes.append(CorrectBias())
    if sensitivity:
        passes.append(MeasureSensitivity(samples, config.placement, detector, progress, pool))
    return passes


def write(config: Config) -> list[Pass]:
    """Return the passes that put Q/DQ, integer weights and doc strings into the graph."""
    return [InsertQdq(), WriteDocs(), *([ToFloat16()] if config.is_half else [])]


def lower(target: Target) -> list[Pass]:
    """Return the passes that rewrite the quantized graph for one runtime and then remove unused nodes.

    Raises:
        PipelineError: the target names a pass that does not exist.
    """
    for name in target.lowering:
        if name not in LOWERING:
            known = ", ".join(LOWERING)
            raise PipelineError(f"{target.title}: its lowering has {name!r}, which is not a pass; passes are {known}")
    return [*(LOWERING[name]() for name in target.lowering), RemoveUnused()]


def check(
    original: onnx.ModelProto,
    target: Target,
    progress: Progress = silent,
    *,
    cpu: str = ANY_CPU,
    speed: bool = False,
) -> list[Pass]:
    """Return the passes that check the finished model; arguments as in `default` and `Verify`."""
    measured = [MeasureSpeed(original, target, progress)] if speed else []
    return [Verify(original, target, progress, cpu=cpu), *measured]


def prepare_and_plan(config: Config, detector: Detector | None = None) -> list[Pass]:
    """Return all passes up to the plan, none of which needs data. Arguments as in `default`."""
    return [*prepare(config, _min_opset(config), detector), *decide(config, detector)]


def prepare_and_cut(config: Config) -> list[Pass]:
    """Return the passes that turn a float model into one without its decode."""
    return [*prepare(config), CutDecode()]


def default(
    config: Config,
    original: onnx.ModelProto,
    samples: Samples | None,
    *,
    detector: Detector | None = None,
    sensitivity: bool = False,
    speed: bool = False,
    progress: Progress = silent,
    pool: Pool = IN_PROCESS,
) -> list[Pass]:
    """Return all passes, in order.

    Args:
        config: the options.
        original: the float model, to compare the result with.
        samples: the calibration data; None if `Statistics` and `Probe` are given.
        detector: the recognized inputs and outputs. The plan is made for its size of images; reconstruction and
            sensitivity use the objects that it detects.
        sensitivity: measure the effect of quantizing each piece of the network alone.
        speed: measure how much faster than the float model the result runs on this CPU.
        progress: called with the stage and its progress.
        pool: where samples are observed, and the sensitivity is measured.
    """
    target = config.placement
    return [
        *prepare_and_plan(config, detector),
        *(migrate(config, samples, detector, progress) if config.migrates else []),
        *calibrate(config, samples, detector, sensitivity=sensitivity, progress=progress, pool=pool),
        *write(config),
        *lower(target),
        *([PackInt4()] if config.packs else []),
        *check(original, target, progress, cpu=config.cpu, speed=speed),
    ]


def _min_opset(config: Config) -> int:
    """Return the lowest ONNX opset that the target, its integers of these widths and the options need."""
    target = config.placement
    # At both ends of the network a width is at least ENDS_BITS, as in `placement`.
    widths = [(bits, max(ENDS_BITS, bits)) for bits in (config.weight_bits, config.act_bits)]
    weight_widths = {*widths[0], *(weight for _, (weight, _) in config.widths)}
    act_widths = {*widths[1], *(activation for _, (_, activation) in config.widths)}
    schemes = [*map(target.weight_scheme, weight_widths), *map(target.activation_scheme, act_widths)]
    options = [(config.is_half, to_float16.MIN_OPSET), (config.packs, pack_int4.MIN_OPSET)]
    return max([normalize.MIN_OPSET, target.opset(schemes), *(opset for is_used, opset in options if is_used)])
