import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import with_metadata
from installed import needs_openvino
from tables import BOX, CELLS, TWO, always, bright_rectangle, giving, table_of, write_coco

from onnxq import evaluate
from onnxq.errors import ConfigError, ModelError
from onnxq.evaluate import main
from onnxq.evaluation import average_precision
from onnxq.runtime import ExactRuntime, OnnxRuntime, OpenVino


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two pictures with one object each, at `BOX`, of the second of two categories."""
    return write_coco(tmp_path, TWO, {1: "person", 3: "car"})


@pytest.fixture
def finds_all(tmp_path: Path) -> Path:
    """A model file that scores 100 on `two`."""
    path = tmp_path / "all.onnx"
    onnx.save(always(table_of([(*BOX, 0.9, 1)], "v8", 2)), path)
    return path


class TestCommandLine:
    @staticmethod
    def arguments(data: tuple[Path, Path], *models: Path) -> list[str]:
        return [*map(str, models), "--annotations", str(data[0]), "--images", str(data[1])]

    def test_table(self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str]) -> None:
        worse = finds_all.with_name("a-model-with-quite-a-long-name-int8.onnx")
        onnx.save(always(table_of([(12, 16, 36, 32, 0.9, 1)], "v8", 2)), worse)
        assert main(self.arguments(two, finds_all, worse)) == 0
        out, err = capsys.readouterr()
        assert not [line for line in out.splitlines() if line.endswith(" ")]
        lines = [line.split() for line in out.splitlines() if line.strip()]
        assert lines[0] == ["model", "AP", "AP50", "AP75", "APs", "APm", "APl", "change"]
        assert lines[2] == ["all.onnx", "100.00", "100.00", "100.00", "100.00", "-", "-"]
        assert lines[3] == [worse.name, "50.00", "100.00", "0.00", "50.00", "-", "-", "-50.00"]
        assert "2 images" in out
        assert "all.onnx: v8, RGB, 0-1, letterbox centred; output (1, 6, 84) has one box per cell" in err

    def test_words_about_the_numbers(
        self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        nothing = finds_all.with_name("nothing.onnx")
        onnx.save(always(table_of([(*BOX, 0.9, 0)], "v8", 2)), nothing)
        assert main([*self.arguments(two, finds_all, nothing), "-q"]) == 0
        err = capsys.readouterr().err
        assert "warning: nothing.onnx: AP50 is 100.0 if classes are ignored, and 0.0 with them" in err
        assert "warning: nothing.onnx has an AP of 0.00, and all.onnx of 100.00: quantization destroyed it" in err
        assert main(self.arguments(two, finds_all)) == 0
        assert "all.onnx: classes by order of the categories, as it names none\n" in capsys.readouterr().err

    def test_a_data_set_names_its_images(
        self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for file in two[1].iterdir():
            file.with_suffix(".txt").write_text("1 0.3125 0.375 0.375 0.25\n")
        (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [person, car]\n")
        assert main([str(finds_all), "--annotations", str(tmp_path / "data.yaml")]) == 0
        assert "all.onnx  100.00" in capsys.readouterr().out

    def test_masks_have_rows_of_their_own(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        x, y, right, bottom = BOX
        outline = [[x, y, right, y, right, bottom, x, bottom]]
        data = write_coco(tmp_path, TWO, {1: "person", 3: "car"}, segmentation=outline)
        table = np.concatenate([table_of([(*BOX, 0.9, 1)], "v8", 2), np.ones((4, CELLS), np.float32)])
        for name, sign in (("a", 1), ("b", -1)):
            protos = np.full((1, 4, 16, 16), sign, np.float32)
            onnx.save(giving({"out": table[np.newaxis], "protos": protos}), tmp_path / f"{name}.onnx")
        target = tmp_path / "scores.json"
        assert main([*self.arguments(data, tmp_path / "a.onnx", tmp_path / "b.onnx"), "--json", str(target)]) == 0
        out = capsys.readouterr().out
        rows = [line.split() for line in out.splitlines() if ".onnx" in line]
        assert [row[0] if "masks" not in row else " ".join(row[:2]) for row in rows] == [
            "a.onnx", "b.onnx", "a.onnx masks", "b.onnx masks",
        ]  # fmt: skip
        assert rows[2][2] == "100.00"
        assert (rows[3][2], rows[3][-1]) == ("0.00", "-100.00")
        assert "COCO AP of boxes, masks in percent" in out
        assert json.loads(target.read_text())["models"][0]["others"]["masks"][0] == pytest.approx(100)

    def test_max_detections(self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path) -> None:
        target = tmp_path / "scores.json"
        options = ["--max-detections", "300", "--json", str(target), "-q"]
        assert main([*self.arguments(two, finds_all), *options]) == 0
        assert json.loads(target.read_text())["settings"]["max_detections"] == 300

    def test_quiet(self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*self.arguments(two, finds_all), "-q"]) == 0
        assert capsys.readouterr().err.strip() == ""

    def test_json(self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path) -> None:
        target = tmp_path / "scores.json"
        options = ["--conf", "0.01", "--iou", "0.5", "--image-size", "64", "--threads", "1", "-q"]
        assert main([*self.arguments(two, finds_all), "--json", str(target), *options]) == 0
        written = json.loads(target.read_text())
        assert written == {
            "annotations": str(two[0]),
            "images": 2,
            "settings": {
                "family": "auto", "layout": [], "preprocess": "auto", "image_size": [64, 64], "confidence": 0.01,
                "iou": 0.5, "max_images": None, "threads": 1, "runtime": "auto", "max_detections": 100,
            },
            "models": [{
                "model": str(finds_all), "family": "v8", "task": "detect", "preprocess": "yolo", "image_size": [64, 64],
                "runtime": "ort", "runtime_version": OnnxRuntime.version(),
                "AP": pytest.approx(100), "AP50": pytest.approx(100), "AP75": pytest.approx(100),
                "APs": pytest.approx(100), "APm": None, "APl": None, "change": 0.0,
                "classes": "classes by order of the categories, as it names none", "measured": "boxes", "others": {},
            }],
        }  # fmt: skip

    def test_the_runtime_is_told(
        self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        version = OnnxRuntime.version()
        assert main(self.arguments(two, finds_all)) == 0
        out, err = capsys.readouterr()
        assert f"COCO AP of boxes in percent, 2 images, in onnxruntime {version}\n" in out
        assert f"all.onnx: run in onnxruntime {version}, as no model names a target" in err
        assert main([*self.arguments(two, finds_all), "--runtime", "exact"]) == 0
        out, err = capsys.readouterr()
        assert f"2 images, in onnxruntime {version} (exact)\n" in out
        assert f"all.onnx: run in onnxruntime {version} (exact), as --runtime says" in err

    def test_runtimes_that_differ_have_a_column(
        self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        paths = [finds_all]
        for target in ("tensorrt", "ort"):
            paths.append(tmp_path / f"{target}.onnx")
            onnx.save(with_metadata(onnx.load(finds_all), {"onnxq.target": target}), paths[-1])
        target = tmp_path / "scores.json"
        assert main([*self.arguments(two, *paths), "--json", str(target)]) == 0
        out, err = capsys.readouterr()
        lines = [line.split() for line in out.splitlines() if line.strip()]
        assert [line[-1] for line in (lines[0], *lines[2:5])] == ["runtime", "exact", "exact", "ort"]
        assert out.rstrip().endswith(f"in {ExactRuntime.described()}, {OnnxRuntime.described()}")
        assert "all.onnx: run in onnxruntime" in err
        assert "(exact), like tensorrt.onnx" in err
        written = json.loads(target.read_text())
        assert written["settings"]["runtime"] == "auto"
        assert [each["runtime"] for each in written["models"]] == ["exact", "exact", "ort"]

    @needs_openvino
    def test_of_a_file_for_openvino_it_is_openvino(
        self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "ov.onnx"
        onnx.save(with_metadata(onnx.load(finds_all), {"onnxq.target": "openvino"}), path)
        assert main([*self.arguments(two, finds_all, path), "-q"]) == 0
        out, err = capsys.readouterr()
        assert f"2 images, in OpenVINO {OpenVino.version()}\n" in out
        assert err.strip() == ""

    def test_a_runtime_that_is_not_installed_is_told_before_the_work(
        self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setitem(sys.modules, "openvino", None)
        assert main([*self.arguments(two, finds_all), "--runtime", "openvino"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err == "error: --runtime openvino: not installed; pip install 'onnxq[openvino]'\n"

    def test_json_that_cannot_be_written_is_told_before_the_work(
        self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*self.arguments(two, finds_all), "--json", str(tmp_path / "none" / "a.json")]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "error: " in err
        assert "a.json" in err

    def test_a_model_that_is_missing_is_told_before_the_work(
        self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(self.arguments(two, finds_all, tmp_path / "none.onnx")) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err == f"error: {tmp_path / 'none.onnx'}: no such file; check the path\n"

    def test_json_that_fails_in_the_end_loses_no_table(
        self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def full(path: Path, content: object) -> None:
            raise ConfigError(f"{path}: cannot be written (No space left on device)")

        monkeypatch.setattr(evaluate, "write_json", full)
        assert main([*self.arguments(two, finds_all), "--json", str(tmp_path / "a.json")]) == 1
        out, err = capsys.readouterr()
        assert "all.onnx" in out
        assert "No space left on device" in err

    @pytest.mark.parametrize("replaced", ["annotations", "image", "model"])
    def test_json_never_replaces_an_input(
        self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str], replaced: str
    ) -> None:
        path = {"annotations": two[0], "image": next(two[1].iterdir()), "model": finds_all}[replaced]
        before = path.read_bytes()
        assert main([*self.arguments(two, finds_all), "--json", str(path)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert re.search(
            "^error: .*: is (the file of annotations|an image|a model); give another name with --json$", err
        )
        assert path.read_bytes() == before

    def test_error_is_one_message_and_finished_models_are_shown(
        self, two: tuple[Path, Path], finds_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"hello")
        target = tmp_path / "scores.json"
        options = ["--json", str(target), "-q"]
        assert main([*self.arguments(two, finds_all, tmp_path / "bad.onnx"), *options]) == 1
        out, err = capsys.readouterr()
        assert "all.onnx" in out
        assert err.strip().startswith("error: ")
        assert "Traceback" not in err
        assert not target.exists()

    def test_debug_keeps_the_traceback(self, two: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(ModelError):
            main([*self.arguments(two, tmp_path / "none.onnx"), "--debug"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--image-size", "64x"], "got '64x'"),
            (["--image-size", "0"], "got '0'"),
            (["--conf", "2"], "--conf: expected 0 or more and less than 1, got 2.0"),
            (["--max-detections", "0"], "--max-detections: expected 1 or more, got 0"),
            (["--iou", "high"], "invalid float value"),
            (["--family", "v9"], "invalid choice: 'v9'"),
            (["--preprocess", "caffe"], "--preprocess: 'caffe' is unknown; give one of auto, yolo, "),
            (["--runtime", "tensorrt"], "invalid choice: 'tensorrt'"),
        ],
    )
    def test_usage(
        self, two: tuple[Path, Path], finds_all: Path, capsys: pytest.CaptureFixture[str],
        options: list[str], message: str,
    ) -> None:  # fmt: skip
        with pytest.raises(SystemExit) as exit_:
            main([*self.arguments(two, finds_all), *options])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err

    def test_image_size_of_two_sides(self, tmp_path: Path) -> None:
        data = write_coco(tmp_path, {"wide.png": ((64, 32), [(0, 0, 10, 20, 1)])}, {1: "thing"})
        onnx.save(bright_rectangle(["n", 3, "h", "w"]), tmp_path / "m.onnx")
        options = ["--image-size", "32x64", "--max-images", "1", "--json", str(tmp_path / "scores.json"), "-q"]
        assert main([*self.arguments(data, tmp_path / "m.onnx"), *options]) == 0
        assert json.loads((tmp_path / "scores.json").read_text())["models"][0]["image_size"] == [32, 64]


def test_the_function_is_there_for_python_too() -> None:
    assert evaluate.evaluate is average_precision.evaluate
    assert {"evaluate", "Settings"} <= set(evaluate.__all__)
    assert all(hasattr(evaluate, each) for each in evaluate.__all__)
