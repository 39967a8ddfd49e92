from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tables import BOX, TWO, always, bright_rectangle, build, constant, table_of, write_coco

from onnxq.errors import ConfigError, ModelError
from onnxq.evaluation.average_precision import Scores, evaluate
from onnxq.evaluation.predictor import Settings


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two pictures with one object each, at `BOX`, of the second of two categories."""
    return write_coco(tmp_path, TWO, {1: "person", 3: "car"})


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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"confidence": 1.0}, "confidence: expected 0 <= confidence < 1, got 1.0"),
        ({"confidence": -0.1}, "confidence: expected .*, got -0.1"),
        ({"iou": 0.0}, "iou: expected 0 < iou <= 1, got 0.0"),
        ({"iou": float("nan")}, "iou: expected .*, got nan"),
        ({"max_images": 0}, "max_images: expected 1 or more, got 0"),
        ({"threads": -1}, "threads: expected 0 or more, got -1"),
    ],
)
def test_settings_out_of_range(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**setting)
