import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import fast_first
from compared import finding
from graphs import quantized, v8, with_metadata
from installed import needs_openvino
from onnx import helper, numpy_helper
from raw_outputs import demo_with
from tables import BOX, TWO, always, bright_rectangle, build, constant, table_of, write_coco

from onnxq.calibration import demo
from onnxq.errors import ConfigError, ModelError
from onnxq.evaluation.average_precision import Scores, evaluate, measure_precision
from onnxq.evaluation.comparison import compare
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.predictor import Predictor, Settings
from onnxq.runtime import RUNTIMES


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two pictures with one object each, at `BOX`, of the second of two categories."""
    return write_coco(tmp_path, TWO, {1: "person", 3: "car"})


@pytest.fixture
def finds_all(tmp_path: Path) -> Path:
    """A model file that scores 100 on `two`."""
    path = tmp_path / "all.onnx"
    onnx.save(finding((*BOX, 0.9, 1)), path)
    return path


def scores(model: onnx.ModelProto | Path, data: tuple[Path, Path], **settings: object) -> Scores:
    return evaluate(model, *data, settings=Settings(**settings))


class TestModelErrors:
    def test_missing(self, two: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"none\.onnx"):
            scores(tmp_path / "none.onnx", two)

    def test_not_onnx(self, two: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"hello")
        with pytest.raises(ModelError, match=r"bad\.onnx"):
            scores(tmp_path / "bad.onnx", two)

    def test_not_recognized(self, two: tuple[Path, Path]) -> None:
        with pytest.raises(ModelError, match=r"the model: is not recognized \(outputs \(1, 9, 7\) .*: give --family"):
            scores(always(np.zeros((9, 7), np.float32)), two)

    @pytest.mark.parametrize(
        ("family", "table"),
        [("end2end", (9, 5)), ("v8", (4, 9)), ("v5", (9, 5)), ("yolox-raw", (252, 7))],
    )
    def test_given_family_does_not_fit(self, two: tuple[Path, Path], family: str, table: tuple[int, int]) -> None:
        message = rf"the model: output out \(1, {table[0]}, {table[1]}\) is not one of family {family}"
        with pytest.raises(ModelError, match=message):
            scores(always(np.zeros(table, np.float32)), two, family=family)

    def test_given_family_has_no_table(self, two: tuple[Path, Path]) -> None:
        flat = build([helper.make_node("Flatten", ["images"], ["out"])], [1, 12288], [1, 3, 64, 64])
        with pytest.raises(ModelError, match=r"output out \(1, 12288\) is not one of family v8"):
            scores(flat, two, family="v8")

    def test_cannot_be_loaded(self, two: tuple[Path, Path]) -> None:
        model = build([helper.make_node("Nonsense", ["images"], ["out"])], [1, 9, 84], [1, 3, 64, 64])
        with pytest.raises(ModelError, match=r"the model: onnxruntime cannot load the model: .*Nonsense"):
            scores(model, two)

    def test_cannot_be_run(self, two: tuple[Path, Path]) -> None:
        nodes = [constant("shape", [7, 11], np.int64), helper.make_node("Reshape", ["images", "shape"], ["out"])]
        with pytest.raises(ModelError, match="the model: onnxruntime cannot run the model: "):
            scores(build(nodes, [7, 11], ["n", 3, 64, 64]), two)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, two: tuple[Path, Path], value: float) -> None:
        table = table_of([(*BOX, 0.9, 1)], "v8", 2)
        table[3, 5] = value
        with pytest.raises(ModelError, match="the model: output out has values that are NaN or infinite"):
            scores(always(table), two)

    def test_size_unknown(self, two: tuple[Path, Path]) -> None:
        with pytest.raises(ConfigError, match=r"the model: .* dynamic, .*: give --image-size 640"):
            scores(bright_rectangle(["n", 3, "h", "w"]), two)


class TestRuntime:
    @pytest.fixture(params=RUNTIMES)
    def runtime(self, request: pytest.FixtureRequest) -> str:
        if not RUNTIMES[request.param].is_installed():
            pytest.skip(f"{RUNTIMES[request.param].title} is not installed")
        return str(request.param)

    def test_is_the_one_of_the_settings(self, runtime: str) -> None:
        loaded = Predictor.load(quantized(v8())[0], Settings(runtime=runtime))
        assert type(loaded.runtime) is RUNTIMES[runtime]
        assert loaded.runtime_name == runtime

    @pytest.mark.parametrize(("target", "runtime"), [("ort", "ort"), ("tensorrt", "exact")])
    def test_is_the_target_s_unless_another_one_is_asked_for(self, target: str, runtime: str) -> None:
        model = with_metadata(v8(), {"onnxq.target": target})
        assert Predictor.load(model, Settings()).runtime_name == runtime
        assert Predictor.load(model, Settings(runtime="ort")).runtime_name == "ort"

    def test_finds_the_same_objects_in_each(self, two: tuple[Path, Path], runtime: str) -> None:
        found = scores(always(table_of([(*BOX, 0.9, 1)], "v8", 2)), two, runtime=runtime, threads=2)
        assert (found.ap, found.runtime) == (pytest.approx(100), runtime)

    def test_dynamic_sizes_and_batches_run_in_each(self, tmp_path: Path, runtime: str) -> None:
        data = write_coco(tmp_path, {"wide.png": ((64, 32), [(0, 0, 10, 20, 1)])}, {1: "thing"})
        for image, size in (([2, 3, 64, 64], None), (["n", 3, "h", "w"], (32, 64))):
            assert scores(bright_rectangle(image), data, runtime=runtime, image_size=size).ap == pytest.approx(100)

    def test_outputs_are_those_that_the_model_declares(self, runtime: str) -> None:
        model = finding((*BOX, 0.9, 1))
        model.graph.node[-1].output[0] = "inner"  # an Identity is the other name of a tensor in OpenVINO
        model.graph.node.append(helper.make_node("Identity", ["inner"], ["out"]))
        loaded = Predictor.load(model, Settings(runtime=runtime))
        feed, _ = loaded.prepare(np.zeros((64, 64, 3), np.uint8))
        assert list(loaded.run(feed)) == ["out"]

    @needs_openvino
    @pytest.mark.parametrize("operator", ["Nonsense", "Reshape"])
    def test_what_openvino_refuses_names_the_remedy(self, two: tuple[Path, Path], operator: str) -> None:
        nodes = [constant("shape", [7, 11], np.int64), helper.make_node(operator, ["images", "shape"], ["out"])]
        message = r"^the model: OpenVINO cannot (load|run) the model: .*; --runtime ort runs it in onnxruntime$"
        with pytest.raises(ModelError, match=message):
            scores(build(nodes, [7, 11], ["n", 3, 64, 64]), two, runtime="openvino")

    def test_that_is_not_installed_is_named(
        self, two: tuple[Path, Path], finds_all: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(ConfigError, match=r"^all\.onnx: --runtime openvino: not installed; pip install"):
            scores(finds_all, two, runtime="openvino")


class TestLayouts:
    """The same network with other ends has the same AP."""

    @pytest.fixture(scope="class")
    def truth(self) -> GroundTruth:
        return GroundTruth.from_memory([demo.scene("validation", number) for number in range(12)], demo.CLASSES)

    @pytest.fixture(scope="class")
    def expected(self, truth: GroundTruth) -> float:
        return measure_precision(demo.model_path(), truth, Settings()).ap

    @pytest.mark.parametrize("end", fast_first(["shares", "yolo-v4", "corners", "apart", "pairs", "logits"], 3))
    @pytest.mark.parametrize("names", [False, True])
    def test_are_told_by_values(self, truth: GroundTruth, expected: float, end: str, names: bool) -> None:
        found = measure_precision(demo_with(end, names), truth, Settings())
        assert found.ap == pytest.approx(expected, abs=0.05)
        assert found.detector.outputs.sure == "told by the values on 4 pictures"

    def test_images_with_objects_tell_them_among_many_without(self) -> None:
        blank = np.full((160, 160, 3), 114, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        scenes = [demo.scene("validation", number) for number in range(4)]
        truth = GroundTruth.from_memory([*scenes, *[blank] * 60], demo.CLASSES)
        found = measure_precision(demo_with("shares", False), truth, Settings())
        assert found.detector.outputs.sure == "told by the values on 4 pictures"

    @pytest.mark.parametrize("domain", fast_first(["vendor.plugins", "TRT"]))
    @pytest.mark.parametrize("end", ["apart", "corners"])
    def test_what_stands_before_an_operator_that_is_not_known_is_read(
        self, truth: GroundTruth, expected: float, tmp_path: Path, end: str, domain: str
    ) -> None:
        model = demo_with(end, False)
        before = [output.name for output in model.graph.output]
        model.graph.node.append(helper.make_node("Pick", before, ["picked"], "pick", domain=domain))
        model.opset_import.append(helper.make_opsetid(domain, 1))
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info("picked", 1, ["rows", 6]))
        file = tmp_path / "m.onnx"
        onnx.save(model, file)
        found = measure_precision(file, truth, Settings())
        assert found.ap == pytest.approx(expected, abs=0.05)
        assert found.detector.why.endswith(f"; up to 'pick' ({domain}.Pick), which onnxruntime does not know")
        itself = compare(file, file, demo.VALIDATION, settings=Settings(max_images=2, confidence=0.25))
        assert set(itself.outputs) == set(before)
        assert itself.agreement is not None
        assert itself.agreement.matched == itself.agreement.expected > 0

    def test_an_operator_that_is_not_known_is_told_once(self) -> None:
        model = demo_with("apart", False)
        model.graph.node.append(helper.make_node("Pick", [model.graph.output[0].name], ["picked"], domain="vendor"))
        model.graph.output.append(helper.make_tensor_value_info("picked", 1, ["rows", 6]))
        first = Predictor.load(model, Settings())
        second = Predictor.load(model, Settings(), like=first.detector)
        assert second.detector.why == first.detector.why

    @pytest.mark.parametrize("runtime", ["ort", pytest.param("openvino", marks=needs_openvino)])
    def test_local_functions_are_run(self, truth: GroundTruth, expected: float, tmp_path: Path, runtime: str) -> None:
        model = onnx.load(demo.model_path())
        for node in model.graph.node:
            if node.op_type == "Sigmoid":
                node.op_type, node.domain = "gate", "local"
        opset = [helper.make_opsetid("", 17)]
        body = [helper.make_node("Sigmoid", ["x"], ["y"])]
        model.functions.append(helper.make_function("local", "gate", ["x"], ["y"], body, opset))
        model.opset_import.append(helper.make_opsetid("local", 1))
        file = tmp_path / "m.onnx"
        onnx.save(model, file)
        assert measure_precision(file, truth, Settings(runtime=runtime)).ap == pytest.approx(expected, abs=0.05)

    def test_the_size_of_the_picture_is_filled_in(self, truth: GroundTruth, expected: float) -> None:
        found = measure_precision(demo_with("sized", False), truth, Settings())
        assert found.ap == pytest.approx(expected, abs=0.05)
        assert found.detector.companions == {"target_sizes": (160, 160)}

    @pytest.mark.parametrize("words", ["cx cy w h scores shares", "cx,cy,w,h,scores,shares"])
    def test_that_are_stated_are_not_questioned(self, truth: GroundTruth, expected: float, words: str) -> None:
        found = measure_precision(demo_with("shares", False), truth, Settings(layout=(words,)))
        assert found.ap == pytest.approx(expected, abs=0.05)
        assert found.detector.why == "as --layout says; the values allow it"
        wrong = measure_precision(demo_with("shares", False), truth, Settings(layout=("cx cy w h scores px",)))
        assert wrong.ap < 1
        assert wrong.detector.why.startswith(
            "as --layout says; but the values contradict it: the boxes reach 1.01 px, "
        )

    def test_a_quantized_model_is_read_like_the_float_model(self, truth: GroundTruth) -> None:
        like = measure_precision(demo_with("shares", True), truth, Settings()).detector
        garbage = demo_with("shares", True)
        garbage.graph.node.append(helper.make_node("DequantizeLinear", ["q", "s"], ["unread"]))
        garbage.graph.initializer.extend([
            numpy_helper.from_array(np.zeros(1, np.uint8), "q"),
            numpy_helper.from_array(np.float32(1), "s"),
        ])  # fmt: skip
        factors = next(each for each in garbage.graph.initializer if each.name == "factors")
        factors.CopyFrom(numpy_helper.from_array(np.full((1, 10, 1), 77, np.float32), "factors"))
        assert measure_precision(garbage, truth, Settings(), like=like).detector.outputs == like.outputs
        with pytest.raises(ModelError, match=r"the scores reach .* --layout"):
            measure_precision(garbage, truth, Settings())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layout": ("x1", "y1", "x2", "score")}, "layout: 'x1 y1 x2 score' has no box"),
        ({"layout": ("cx cy w h scores",), "family": "v8"}, "--layout and --family exclude each other"),
        ({"confidence": 1.0}, "confidence: expected 0 or more and less than 1, got 1.0"),
        ({"confidence": -0.1}, "confidence: expected .*, got -0.1"),
        ({"iou": 0.0}, "iou: expected more than 0 and at most 1, got 0.0"),
        ({"iou": float("nan")}, "iou: expected .*, got nan"),
        ({"max_images": 0}, "max_images: expected 1 or more, got 0"),
        ({"threads": -1}, "threads: expected 0 or more, got -1"),
        ({"runtime": "tensorrt"}, "runtime: expected one of auto, ort, openvino, exact, got 'tensorrt'"),
    ],
)
def test_settings_out_of_range(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**setting)
