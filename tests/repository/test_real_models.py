"""Detectors with real weights and images, and graphs of real exporters, which are not part of the repository."""

import functools
import importlib.util
import os
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from cases import paired
from graphs import initializers

from onnxq import Config, plan, quantize
from onnxq.evaluation.average_precision import measure_precision
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.predictor import Settings
from onnxq.facts import Plan, Verification
from onnxq.ir import Model
from onnxq.passes.normalize import MIN_OPSET, Normalize
from onnxq.pipeline import Facts
from onnxq.targets import TARGETS

ROOT = Path(__file__).parents[2]
DATA = (ROOT / os.environ.get("ONNXQ_DATA", "../shared")).resolve()
MODELS, COCO = DATA / "models", DATA / "coco"
SKELETONS = sorted(path.stem for path in MODELS.glob("skeletons/*.onnx"))

if not (MODELS / "yolov5n.onnx").is_file():
    pytest.skip(f"{DATA} has no models/yolov5n.onnx: set ONNXQ_DATA to the test data", allow_module_level=True)

pytestmark = pytest.mark.slow

IMAGES = 32
CALIBRATED_ON = 16

EXPECTED = {
    "yolov5n": {"ort": (60, 52, 0.32), "openvino": (60, 59, -0.48), "tensorrt": (60, 57, 0.03)},
    "yolox_nano": {"ort": (113, 4, -0.19), "openvino": (113, 75, 0.21), "tensorrt": (113, 74, 0.16)},
}
"""Name -> target -> Convs, how many of them run on integers, AP lost on 32 images."""

SPREAD = 0.8
"""Allowed difference from the usual loss of AP; other calibration images change the loss by up to 0.77."""

RUNS = [(name, target) for name, targets in EXPECTED.items() for target in targets]


@functools.cache
def float_model(name):
    return onnx.load(MODELS / f"{name}.onnx")


@functools.cache
def quantized(name, target):
    images = sorted(map(str, COCO.glob("train2017/*.jpg")))
    return quantize(MODELS / f"{name}.onnx", images, Config(target=target, count=CALIBRATED_ON))


@functools.cache
def truth():
    return GroundTruth.load(COCO / "instances_val2017.json", COCO / "val2017", IMAGES)


@functools.cache
def float_precision(name):
    return measure_precision(float_model(name), truth(), Settings(runtime="exact")).ap


def integer_convs(model):
    """Return the names of the Convs, and of the Gemms that replace them, whose weight comes from a DequantizeLinear."""
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm") and made_by.get(node.input[1]) == "DequantizeLinear"
    }


@pytest.mark.parametrize(("name", "target"), RUNS)
class TestQuantizedDetectors:
    def test_convs_are_on_integers(self, name, target):
        convs, on_integers, _ = EXPECTED[name][target]
        result = quantized(name, target)
        assert sum(op == "Conv" for op in result.facts[Plan].ops.values()) == convs
        assert integer_convs(result.model) == set(result.facts[Plan].layers)
        assert len(result.facts[Plan].layers) == on_integers

    def test_every_conv_is_on_integers_or_has_a_reason(self, name, target):
        chosen = quantized(name, target).facts[Plan]
        convs = {node for node, op in chosen.ops.items() if op == "Conv"}
        assert set(chosen.layers) | (convs & chosen.skipped.keys()) == convs
        assert not set(chosen.layers) & chosen.skipped.keys()

    def test_no_node_of_the_decode_is_quantized(self, name, target):
        result = quantized(name, target)
        skipped = result.facts[Plan].skipped
        decode = {node for node, reason in skipped.items() if reason.code == "decode"}
        assert len(decode) > 10
        pairs = [node for node in result.model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        quantized_tensors = {name for node in pairs for name in (*node.input, *node.output)}
        for node in result.model.graph.node:
            if node.name in decode:
                assert not quantized_tensors & {*node.output}
                assert not {name for pair in pairs for name in pair.output} & {*node.input}

    def test_inputs_outputs_and_metadata_stay(self, name, target):
        before, after = float_model(name), quantized(name, target).model
        stored = initializers(before).keys()
        assert list(after.graph.input) == [value for value in before.graph.input if value.name not in stored]
        assert list(after.graph.output) == list(before.graph.output)
        kept = {(entry.key, entry.value) for entry in after.metadata_props if not entry.key.startswith("onnxq.")}
        assert kept == {(entry.key, entry.value) for entry in before.metadata_props}

    def test_files_shrink(self, name, target):
        before, after = float_model(name).ByteSize(), quantized(name, target).model.ByteSize()
        # onnxruntime gains no time from most layers of a depthwise network: their weights stay float.
        assert after < (0.9 if (name, target) == ("yolox_nano", "ort") else 0.5) * before


MEASURED = {("yolov5n", "ort"), ("yolox_nano", "openvino"), ("yolox_nano", "tensorrt")}
"""Runs of which AP is measured before each change lands."""


@pytest.mark.parametrize(
    ("name", "target"), [pytest.param(*run, marks=pytest.mark.precision) if run in MEASURED else run for run in RUNS]
)
def test_precision_stays(name, target):
    quantized_model = quantized(name, target).model
    lost = float_precision(name) - measure_precision(quantized_model, truth(), Settings(runtime="exact")).ap
    assert lost == pytest.approx(EXPECTED[name][target][2], abs=SPREAD)


@pytest.mark.parametrize(("name", "target"), [run for run in RUNS if run[1] == "ort"])
def test_onnxruntime_fuses_every_integer_conv(tmp_path, name, target):
    result = quantized(name, target)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(result.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert optimized["QLinearConv"] + optimized["QGemm"] == len(result.facts[Plan].layers)
    assert result.facts[Verification].fused == len(result.facts[Plan].layers)
    assert not result.facts[Verification].warnings


def test_the_float_convs_of_yolov5n_on_onnxruntime_are_those_near_the_image_and_the_coarsest_last_one():
    chosen = quantized("yolov5n", "ort").facts[Plan]
    reasons = Counter(reason.code for name, reason in chosen.skipped.items() if chosen.ops[name] == "Conv")
    assert reasons == {"stem": 7, "last-layer": 1}


def test_the_float_model_is_as_precise_as_it_is_known_to_be():
    assert float_precision("yolov5n") == pytest.approx(32.32, abs=0.1)
    assert float_precision("yolox_nano") == pytest.approx(34.05, abs=0.1)


# --- every exporter's graph -------------------------------------------------------------------------------------------


@functools.cache
def skeleton():
    """Import the module that fills the skeletons with weights."""
    spec = importlib.util.spec_from_file_location("skeleton", MODELS / "skeleton.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(name):
    """Return a skeleton with weights, in an operator set that no target has to convert again."""
    model = skeleton().fill(onnx.load(MODELS / "skeletons" / f"{name}.onnx"))
    if model.opset_import[0].version >= MIN_OPSET:
        return model
    working = Model(model)
    Normalize().run(working, Facts())
    return working.to_proto()


BOTH = ("openvino", "tensorrt")
"""Targets whose plans are compared."""

OTHER_SIZES = ("yolov5m", "yolov5s", "yolov7x")
"""Larger networks of exports that are here too: two targets suffice."""


@pytest.mark.parametrize(("name", "third"), paired(SKELETONS, [name for name in TARGETS if name not in BOTH], each=1))
def test_a_plan_gives_each_node_of_an_export_integers_or_a_reason(name, third):
    model = filled(name)
    dynamic = not model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    counts = {}
    for target in BOTH if name in OTHER_SIZES else (*BOTH, third):
        chosen, detector = plan(model, Config(target=target, image_size=(640, 640) if dynamic else None))
        assert not chosen.integer & chosen.skipped.keys()
        assert chosen.integer | chosen.skipped.keys() == chosen.ops.keys()
        assert all(map(str, chosen.skipped.values()))
        assert set(chosen.layers) <= chosen.integer
        convs = [node for node, op in chosen.ops.items() if op == "Conv"]
        on_integers = sum(node in chosen.layers for node in convs)
        assert on_integers + sum(node in chosen.skipped for node in convs) == len(convs)
        unprofitable = sum(chosen.skipped[node].code == "behind-depthwise" for node in convs if node in chosen.skipped)
        assert on_integers + unprofitable > 0.7 * len(convs)
        assert unprofitable < 0.2 * len(convs)
        if not name.endswith("-cls"):
            assert detector.family != "unknown"
            if not TARGETS[target].quantizes_decode:
                assert "decode" in {reason.code for reason in chosen.skipped.values()}
        counts[target] = on_integers
    assert counts["tensorrt"] <= counts["openvino"]
