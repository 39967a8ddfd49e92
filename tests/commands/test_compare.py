import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from compared import AWAY, finding, noise_images, save_models
from graphs import csp, v5_raw, with_metadata
from installed import needs_openvino
from tables import BOX

from onnxq import compare
from onnxq.compare import main
from onnxq.errors import ModelError
from onnxq.evaluation import comparison
from onnxq.runtime import ExactRuntime, OnnxRuntime, OpenVino


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return noise_images(tmp_path / "images")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., list[Path]]:
    return partial(save_models, tmp_path)


class TestCommandLine:
    @pytest.fixture
    def arguments(self, images: Path, saved: Callable[..., list[Path]]) -> list[str]:
        pair = saved(finding((*BOX, 0.9, 1), (*AWAY, 0.5, 0)), finding((*BOX, 0.8, 1)))
        return [*map(str, pair), "--images", str(images)]

    def test_tables(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(arguments) == 0
        out, err = capsys.readouterr()
        assert all(len(line) <= 80 for line in out.splitlines())
        assert "signal to quantization noise, 3 images" in out
        assert "agreement with the float model, 3 images, scores above 0.25" in out
        rows = {" ".join(line.split()) for line in out.splitlines()}
        assert "objects of the float model 6" in rows
        assert "found again, same class, IoU 0.5 or more 50.0 %" in rows
        assert "mean score difference of these 0.1000" in rows
        assert "objects of the quantized model only 0" in rows
        assert any(re.fullmatch(r"loss of expected AP, in points \d+\.\d\d", row) for row in rows)
        assert "the 1 worst of 1 tensors with more noise than their inputs, 3 images" in out
        assert "v8, RGB, 0-1, letterbox centred; output (1, 6, 84) has one box per cell and no objectness" in err

    def test_images_are_drawn(self, arguments: list[str], tmp_path: Path) -> None:
        assert main([*arguments, "-q", "--worst", "0", "--max-images", "1", "--draw", str(tmp_path / "drawn")]) == 0
        assert len(list((tmp_path / "drawn").iterdir())) == 1

    @pytest.mark.parametrize("inner", ["", "drawn"])
    def test_nothing_is_drawn_into_the_images(
        self, arguments: list[str], images: Path, capsys: pytest.CaptureFixture[str], inner: str
    ) -> None:
        before = sorted(images.rglob("*"))
        assert main([*arguments, "--draw", str(images / inner)]) == 1
        assert "would be among the data in" in capsys.readouterr().err
        assert sorted(images.rglob("*")) == before

    @pytest.mark.parametrize("position", [0, 1])
    def test_json_never_replaces_a_model(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str], position: int
    ) -> None:
        before = Path(arguments[position]).read_bytes()
        assert main([*arguments, "--json", arguments[position]]) == 1
        assert " model; give another name with --json" in capsys.readouterr().err
        assert Path(arguments[position]).read_bytes() == before

    def test_models_that_change_meanwhile_are_noticed(
        self, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def compare_changed(*given: Any, **options: Any) -> comparison.Comparison:
            result = comparison.compare(*given, **options)
            Path(arguments[1]).touch()
            return result

        monkeypatch.setattr(compare, "compare", compare_changed)
        assert main([*arguments, "--json", str(tmp_path / "c.json")]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "changed while it was in use" in err
        assert not (tmp_path / "c.json").exists()

    def test_quiet_and_without_tensors(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*arguments, "-q", "--worst", "0"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "tensors" not in out

    def test_json(self, arguments: list[str], tmp_path: Path) -> None:
        target = tmp_path / "found.json"
        assert main([*arguments, "--json", str(target), "-q", "--conf", "0.6", "--max-images", "2"]) == 0
        written = json.loads(target.read_text())
        assert written["tensors"][-1] | {"sqnr": 0, "added": 0} == {
            "tensor": "out", "node": "", "op": "Add", "sqnr": 0, "drop": None, "added": 0, "only_moves": False,
        }  # fmt: skip
        assert written["tensors"][-1]["sqnr"] == pytest.approx(written["outputs"]["out"])
        assert [each["tensor"] for each in written["tensors"]] == ["mean", "out"]  # one is always 0
        assert written["expected_ap_loss"] > 10
        assert written["agreement"] == {
            "objects": 2, "found_again": 1, "iou": 1, "score_difference": pytest.approx(0.1), "new": 0,
        }  # fmt: skip
        assert (written["reference"], written["model"]) == tuple(arguments[:2])
        assert (written["images"], written["family"], written["task"], written["preprocess"]) == (
            2, "v8", "detect", "yolo",
        )  # fmt: skip
        assert {key: text for key, text in written.items() if "runtime" in key} == {
            "reference_runtime": "ort", "reference_runtime_version": OnnxRuntime.version(),
            "runtime": "ort", "runtime_version": OnnxRuntime.version(),
        }  # fmt: skip
        assert (written["settings"]["confidence"], written["settings"]["max_images"]) == (0.6, 2)

    def test_both_models_run_in_the_runtime_of_the_quantized_one(
        self, images: Path, saved: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = finding((*BOX, 0.9, 1))
        pair = [str(path) for path in saved(model, with_metadata(model, {"onnxq.target": "tensorrt"}))]
        assert main([*pair, "--images", str(images)]) == 0
        out, err = capsys.readouterr()
        assert f"signal to quantization noise, 3 images, in {ExactRuntime.described()}\n" in out
        assert f"0.onnx: run in {ExactRuntime.described()}, like 1.onnx" in err
        assert f"1.onnx: run in {ExactRuntime.described()}, as its target, tensorrt," in err
        assert main([*pair, "--images", str(images), "--runtime", "ort"]) == 0
        assert f"0.onnx: run in {OnnxRuntime.described()}, as --runtime says" in capsys.readouterr().err

    @needs_openvino
    def test_models_for_two_runtimes_run_each_in_its_own(
        self, images: Path, saved: Callable[..., list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = finding((*BOX, 0.9, 1))
        pair = saved(*(with_metadata(model, {"onnxq.target": target}) for target in ("ort", "openvino")))
        target = tmp_path / "found.json"
        assert main([*map(str, pair), "--images", str(images), "--json", str(target)]) == 0
        assert f"in {OnnxRuntime.described()} and {OpenVino.described()}\n" in capsys.readouterr().out
        written = json.loads(target.read_text())
        assert (written["reference_runtime"], written["runtime"]) == ("ort", "openvino")
        assert written["runtime_version"] == OpenVino.version()
        assert written["agreement"]["found_again"] == 1

    def test_json_has_null_for_what_is_infinite_or_has_no_mean(self, arguments: list[str], tmp_path: Path) -> None:
        target = tmp_path / "found.json"
        assert main([arguments[0], *arguments[:1], *arguments[2:], "--json", str(target), "-q", "--conf", "0.95"]) == 0
        written = json.loads(target.read_text())
        assert (written["outputs"], written["agreement"]["found_again"]) == ({"out": None}, None)

    def test_outputs_that_are_the_same_have_no_noise(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([arguments[0], *arguments[:1], *arguments[2:], "-q"]) == 0
        assert ["out", "equal"] in [line.split() for line in capsys.readouterr().out.splitlines()]

    def test_what_cannot_be_read_is_said(
        self, images: Path, saved: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        [unknown, raw] = map(str, saved(csp(), v5_raw()))
        assert main([unknown, unknown, "--images", str(images)]) == 0
        assert "objects are not compared, because the output layout is unknown" in capsys.readouterr().err
        assert main([raw, raw, "--images", str(images)]) == 0
        assert "anchors of its boxes are not in the file" in capsys.readouterr().err
        assert main([raw, raw, "--images", str(images), "--family", "v7-raw"]) == 0
        assert "anchors" not in capsys.readouterr().err

    def test_an_error_is_one_message(
        self, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([arguments[0], str(tmp_path / "none.onnx"), *arguments[2:], "-q"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.rstrip().endswith("none.onnx: no such file; check the path")
        assert main([*arguments, "--json", str(tmp_path / "none" / "a.json")]) == 1
        with pytest.raises(ModelError):
            main([arguments[0], str(tmp_path / "none.onnx"), *arguments[2:], "--debug"])

    @pytest.mark.parametrize("options", [["--worst", "-1"], ["--conf", "2"], ["--family", "v9"], ["--image-size", "x"]])
    def test_usage(self, arguments: list[str], options: list[str]) -> None:
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, *options])
        assert exit_.value.code == 2


def test_the_function_is_there_for_python_too() -> None:
    assert compare.compare is comparison.compare
    assert {"compare", "Settings"} <= set(compare.__all__)
    assert all(hasattr(compare, each) for each in compare.__all__)
