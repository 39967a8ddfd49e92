"""The scenes of the demo, its detector, and what quantization costs it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq import compare, evaluate
from onnxq.api import quantize
from onnxq.calibration import demo
from onnxq.calibration.dead_leaves import generator
from onnxq.calibration.demo import scene
from onnxq.cli import main
from onnxq.config import Config
from onnxq.console.arguments import choose_input, make_parser
from onnxq.console.terminal import model_file
from onnxq.evaluation import ground_truth
from onnxq.evaluation.average_precision import measure_precision
from onnxq.evaluation.predictor import Settings
from onnxq.yolo.detector import detect

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "demo.onnx"

GOLDEN = {
    "heart": [(69.5, 14, 85.5, 27), (43, 33.5, 77.5, 68)],
    "star": [(63, 40.5, 118.5, 89), (123, 87.5, 144, 107)],
    "crescent": [(116.5, 0.5, 146.5, 31.5), (146.5, 55.5, 158.5, 69)],
    "arrow": [(20.5, 78.5, 62.5, 105.5)],
}
"""The objects on validation scene 3."""


class TestScenes:
    def test_a_scene_is_a_picture_with_boxes_and_labels(self):
        picture, boxes, labels = scene("train", 0)
        assert (picture.shape, picture.dtype) == ((demo.SIDE, demo.SIDE, 3), np.uint8)
        assert (boxes.shape, boxes.dtype) == ((len(labels), 4), np.float32)
        assert labels.dtype == np.int64

    def test_split_and_index_decide_it(self):
        np.random.seed(1)
        first = scene("validation", 3)
        np.random.seed(2)
        for a, b in zip(first, scene("validation", 3), strict=True):
            assert (a == b).all()

    def test_it_is_the_same_on_every_machine(self):
        """Up to what versions of Pillow do at the edge of a polygon."""
        picture, boxes, labels = scene("validation", 3)
        names = [demo.CLASSES[label] for label in labels]
        assert sorted(names) == sorted(name for name, found in GOLDEN.items() for _ in found)
        for name, found in GOLDEN.items():
            assert boxes[[each == name for each in names]] == pytest.approx(np.array(found), abs=1)
        assert picture.mean(axis=(0, 1)) == pytest.approx((109.85, 119.54, 112.2), abs=0.5)

    def test_splits_share_no_picture(self):
        pictures = {scene(split, index).picture.tobytes() for split in demo.SPLITS for index in range(8)}
        assert len(pictures) == 8 * len(demo.SPLITS)

    @settings(max_examples=20, deadline=None)
    @given(index=st.integers(0, 10**6), split=st.sampled_from(demo.SPLITS))
    def test_boxes_lie_in_the_picture(self, index, split):
        _, boxes, labels = scene(split, index)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= demo.SIDE).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 3).all()
        assert ((labels >= 0) & (labels < len(demo.CLASSES))).all()

    @pytest.mark.precision
    @pytest.mark.slow
    def test_sizes_and_classes_vary(self):
        scenes = [scene("train", index) for index in range(60)]
        boxes = np.concatenate([each.boxes for each in scenes])
        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        assert sides.min() < 0.1 * demo.SIDE
        assert sides.max() > 0.5 * demo.SIDE
        counts = np.bincount(np.concatenate([each.labels for each in scenes]))
        assert len(counts) == len(demo.CLASSES)
        assert counts.min() > 0.5 * counts.mean()
        assert {len(each.labels) for each in scenes} >= set(range(1, 8))


class TestSymbols:
    @pytest.mark.parametrize("kind", range(len(demo.CLASSES)), ids=demo.CLASSES)
    def test_outlines_are_of_about_one_size(self, kind):
        reach = np.linalg.norm(demo._OUTLINES[kind], axis=1).max()
        assert 0.9 < reach < 1.1

    @pytest.mark.parametrize("kind", range(len(demo.CLASSES)), ids=demo.CLASSES)
    def test_a_mirrored_outline_is_the_same(self, kind):
        outline = demo._OUTLINES[kind]
        mirrored = outline * (1, -1)
        apart = np.linalg.norm(outline[:, np.newaxis] - mirrored, axis=-1)
        assert apart.min(axis=1).max() < 1e-6

    def test_the_area_is_that_of_the_shape(self):
        square = np.array([(0, 0), (2, 0), (2, 2), (0, 2)], float)
        assert demo._area(square) == 4
        ring = demo._OUTLINES[demo.CLASSES.index("ring")]
        assert demo._area(ring) == pytest.approx(np.pi * (1 - 0.55**2), rel=0.02)

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 10**6), kind=st.integers(0, len(demo.CLASSES) - 1))
    def test_boxes_are_tight(self, seed, kind):
        """A box holds all pixels of its symbol and has some along each side; most of the symbol is to be seen."""
        canvas = demo._Canvas(generator(seed))
        label = canvas.place(demo._OUTLINES[kind])
        if label is None:
            return
        canvas.draw_lines()
        x1, y1, x2, y2 = (round(demo._FINE * side) for side in canvas.box(label))
        mask = canvas.labels() == label
        inner = mask[y1:y2, x1:x2]
        assert inner.sum() == mask.sum()
        assert all(side.any() for side in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))

    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_no_symbol_hides_much_of_another(self, seed):
        canvas = demo._Canvas(generator(seed))
        painted = {}
        for outline in demo._OUTLINES * 2:
            label = canvas.place(outline)
            if label is not None:
                painted[label] = (canvas.labels() == label).sum()
        for label, area in painted.items():
            assert (canvas.labels() == label).sum() >= 0.5 * area  # pixels at the edge count for more than their area


class TestGroundTruth:
    def test_holds_the_validation_scenes(self):
        truth = ground_truth.demo_ground_truth(3)
        for index, look in truth.images.items():
            assert (look() == scene("validation", index).picture).all()
            boxes = [entry["bbox"] for entry in truth.coco.imgToAnns[index]]
            expected = scene("validation", index).boxes
            assert np.array(boxes).reshape(-1, 4)[:, 2:] == pytest.approx(expected[:, 2:] - expected[:, :2])
        assert tuple(truth.categories.values()) == demo.CLASSES
        assert truth.files == ()

    def test_calibration_and_validation_are_their_splits(self):
        assert (demo.CALIBRATION.paint(5) == scene("calibration", 5).picture).all()
        assert (demo.VALIDATION.paint(5) == scene("validation", 5).picture).all()


@pytest.fixture(scope="module")
def truth():
    return ground_truth.demo_ground_truth(100)


@pytest.fixture(scope="module")
def whole(truth):
    """AP of the float model."""
    return measure_precision(MODEL, truth, Settings()).ap


@pytest.fixture
def lost(truth, whole):
    """AP that is lost with some options."""

    def measured(**options):
        quantized = quantize(MODEL, demo.CALIBRATION, Config(count=32, **options))
        return whole - measure_precision(quantized.model, truth, Settings(runtime="exact")).ap

    return measured


class TestModel:
    def test_is_a_small_detector_like_exported_ones(self):
        model = onnx.load(MODEL)
        onnx.checker.check_model(model, full_check=True)
        found = detect(model)
        assert (found.family, found.size, found.names) == ("v8", (demo.SIDE, demo.SIDE), demo.CLASSES)
        assert found.preprocess.name == "yolo"
        assert MODEL.stat().st_size < 1.1e6

    @pytest.mark.precision
    @pytest.mark.slow
    def test_finds_the_symbols(self, whole):
        assert whole > 64  # 64.8

    @pytest.mark.precision
    @pytest.mark.slow
    @pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt"])
    def test_keeps_its_precision_at_8_bits(self, lost, target):
        # 0.09 to 0.57; with 24 or 48 scenes -0.16 to 0.40.
        assert lost(target=target) < 0.8

    @pytest.mark.precision
    @pytest.mark.slow
    def test_at_4_bits_minmax_loses_most_of_it_and_uh_little(self, lost):
        narrow = {"target": "openvino", "weight_bits": 4, "act_bits": 4, "reconstruct": False}
        by_minmax, by_uh = lost(**narrow, method="minmax"), lost(**narrow, method="uh")
        assert by_minmax > 28  # 31.0; with 24 scenes 31.2
        assert by_uh < 12  # 9.4; with 24 scenes 10.0


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is there")
def test_training_without_pytorch_says_what_it_needs():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "models" / "train.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == "models/train.py needs PyTorch: pip install '.[train]'"


class TestCommandLine:
    @pytest.mark.precision
    @pytest.mark.slow
    def test_reconstruction_at_4_bits_from_the_first_command_to_the_last(self, lost, truth, whole, tmp_path):
        # With one thread: many threads for products of small matrices are slow beside other work.
        options = ["--demo", "--target", "openvino", "--weight-bits", "4", "--act-bits", "4", "--count", "16"]
        options += ["--no-speed"]
        made = tmp_path / "made.onnx"
        command = [sys.executable, "-m", "onnxq", str(MODEL), *options, "-o", str(made)]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert "16 demo scenes" in done.stdout
        assert f"next: python -m onnxq.evaluate {MODEL} {made} --demo" in done.stdout
        plain = lost(target="openvino", weight_bits=4, act_bits=4, reconstruct=False, rounding="nearest")
        assert whole - measure_precision(made, truth, Settings()).ap < plain - 1

    @pytest.mark.precision
    @pytest.mark.slow
    def test_needs_no_path(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        options = ["--demo", "--count", "8", "--no-speed"]
        assert main([*options, "--weight-bits", "6", "--no-reconstruct"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(" demo demo.w6a8.onnx --demo")
        assert [path.name for path in tmp_path.iterdir()] == ["demo.w6a8.onnx"]
        assert main([*options, "-o", "other.onnx", "-q"]) == 0
        assert evaluate.main(["demo", "other.onnx", "--demo", "--max-images", "20"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:5]] == ["demo.onnx", "other.onnx"]

    def test_a_file_named_demo_is_not_the_demo_model(self, tmp_path, monkeypatch):
        assert model_file("demo") == demo.model_path() == MODEL
        assert model_file("other") == Path("other")
        monkeypatch.chdir(tmp_path)
        Path("demo").touch()
        assert model_file("demo") == Path("demo")

    def test_a_folder_named_demo_does_not_hide_the_demo_model(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("demo").mkdir()
        assert model_file("demo") == demo.model_path()

    @pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["file", "folder"])
    def test_the_next_command_works_beside_a_path_named_demo(self, tmp_path, monkeypatch, make):
        monkeypatch.chdir(tmp_path)
        make(Path("demo"))
        arguments = make_parser().parse_args(["--demo"])
        choose_input(arguments, Config())
        assert model_file(str(arguments.shown_input)) == demo.model_path()

    def test_without_input_and_demo(self, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["--calib", "images"])
        assert ended.value.code == 2
        assert "are required: INPUT.onnx" in capsys.readouterr().err

    @pytest.mark.precision
    @pytest.mark.slow
    def test_evaluate_and_compare(self, capsys):
        assert evaluate.main([str(MODEL), "--demo", "--max-images", "10"]) == 0
        assert "10 images" in capsys.readouterr().out
        assert compare.main([str(MODEL), str(MODEL), "--demo", "--max-images", "4"]) == 0
        assert "4 images" in capsys.readouterr().out

    @pytest.mark.precision
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "limit", [("--max-drop", "9"), ("--max-drop", "9", "--judge", "agreement"), ("--min-sqnr", "20")]
    )
    def test_a_limit_is_measured_on_the_validation_scenes(self, capsys, tmp_path, monkeypatch, limit):
        for module in (demo, ground_truth):
            monkeypatch.setattr(module, "VALIDATION", replace(demo.VALIDATION, count=7))
        options = ["--demo", "--count", "8", "--no-speed", "-o", str(tmp_path / "made.onnx")]
        assert main([str(MODEL), *options, *limit]) == 0
        assert "on 7 images, after 1 trial" in " ".join(capsys.readouterr().out.split())

    @pytest.mark.precision
    @pytest.mark.slow
    def test_what_was_made_is_evaluated_on_the_validation_scenes(self, capsys, tmp_path, monkeypatch):
        for module in (demo, ground_truth):
            monkeypatch.setattr(module, "VALIDATION", replace(demo.VALIDATION, count=7))
        made, report = tmp_path / "made.onnx", tmp_path / "r.json"
        options = ["--demo", "--count", "8", "--no-speed", "-o", str(made), "--report", str(report)]
        options += ["--evaluate", "--max-drop", "90"]
        assert main([str(MODEL), *options]) == 0
        assert "7 images" in capsys.readouterr().out
        written = json.loads(report.read_text())
        evaluation, search = written["evaluation"], written["search"]
        assert (evaluation["annotations"], evaluation["images"], search["images"]) == ("demo", 7, 7)
        measured = [
            measure_precision(model, ground_truth.demo_ground_truth(), Settings()).ap for model in (MODEL, made)
        ]
        assert [each["AP"] for each in evaluation["models"]] == pytest.approx(measured)
        whole, kept = (
            measure_precision(model, ground_truth.demo_ground_truth(), Settings(runtime="exact")).ap
            for model in (MODEL, made)
        )
        assert search["loss_text"] == f"{kept - whole:+.2f} AP"

    @pytest.mark.parametrize("option", ["--annotations", "--images"])
    def test_a_limit_takes_scenes_or_labelled_pictures(self, capsys, tmp_path, option):
        with pytest.raises(SystemExit, match="2"):
            main([str(MODEL), "--demo", "-o", str(tmp_path / "made.onnx"), "--max-drop", "9", option, "x"])
        assert "--max-drop measures AP: it needs" in " ".join(capsys.readouterr().err.split())

    def test_compare_draws_them(self, tmp_path):
        options = ["--demo", "--max-images", "2", "--worst", "0", "--draw", str(tmp_path), "-q"]
        assert compare.main([str(MODEL), str(MODEL), *options]) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["001-demo-scene-50.jpg", "002-demo-scene-150.jpg"]

    @pytest.mark.parametrize(
        ("run", "options", "message"),
        [
            (main, ["--demo", "--calib", "x"], "not allowed with argument"),
            (evaluate.main, ["--demo", "--images", "x"], "--annotations JSON needs --images DIR"),
            (evaluate.main, ["--annotations", "x"], "--annotations JSON needs --images DIR"),
            (evaluate.main, [], "one of the arguments --annotations --demo is required"),
            (compare.main, ["m.onnx", "--demo", "--images", "x"], "not allowed with argument"),
        ],
    )
    def test_usage(self, run, options, message, capsys):
        with pytest.raises(SystemExit) as exit_:
            run([str(MODEL), *options])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err

    def test_kept_statistics_need_no_scenes(self, capsys, tmp_path):
        with pytest.raises(SystemExit, match="2"):
            main([str(MODEL), "--demo", "--calibration", str(tmp_path / "x.npz")])
        assert "--demo and --calibration: give one of the two" in capsys.readouterr().err
