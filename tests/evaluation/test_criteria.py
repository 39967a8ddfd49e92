import functools
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from compared import AWAY, finding, noise_images
from cpu import saturates
from graphs import classifier, copy, csp, run, saturating, v8, v10, with_metadata
from onnx import numpy_helper
from PIL import Image
from tables import BOX, TWO, always, table_of, write_coco

from onnxq import Config, quantize
from onnxq.calibration import demo
from onnxq.errors import DataError, ModelError
from onnxq.evaluation.criteria import AgreementCriterion, AgreementLoss, PrecisionCriterion, SqnrCriterion
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.predictor import Settings
from onnxq.ir import before_selection
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.progress import silent
from onnxq.runtime import OnnxRuntime

CONFIG = Config(target="openvino", reconstruct=False)


@pytest.fixture
def pictures(tmp_path):
    """Two folders with three pictures each; one is in both, under another name."""
    for folder, numbers in (("calibrated", (0, 1, 2)), ("judged", (2, 3, 4))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{folder}{number}.png")
    return tmp_path


def test_noise_is_that_of_the_worst_output(pictures):
    model = with_metadata(v8(masks=True))
    criterion = SqnrCriterion(model, pictures / "judged", CONFIG)
    quantized = quantize(model, pictures / "calibrated", replace(CONFIG, cpu="vnni"))
    noise = SqnrMeter()
    images = sorted((pictures / "judged").iterdir())
    for path in images:
        pixels, _ = quantized.detector.preprocess(np.asarray(Image.open(path)), quantized.detector.size)
        values = {"images": pixels}
        noise.add(run(model, values), run(quantized.model, values))
    assert len(noise.decibels()) == 2
    assert -criterion.loss(quantized.model, silent) == pytest.approx(min(noise.decibels().values()), abs=0.2)
    assert criterion.files == tuple(images)


def test_noise_of_scores_counts_beside_boxes_in_pixels(pictures):
    model = v8()
    ruined = copy(model)
    for tensor in ruined.graph.initializer:
        if tensor.name in ("cls0_weight", "cls1_weight", "cls2_weight"):
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    values = {"images": np.random.default_rng(0).random((1, 3, 32, 32), np.float32)}
    noise = SqnrMeter()
    noise.add(run(model, values), run(ruined, values))
    assert noise.decibels()["output"] > 45
    assert -SqnrCriterion(model, pictures / "judged", CONFIG).loss(ruined, silent) < 25


def test_noise_of_finished_objects_is_that_of_what_they_are_selected_from(pictures):
    model = v10()
    criterion = SqnrCriterion(model, pictures / "judged", CONFIG)
    quantized = quantize(model, pictures / "calibrated", CONFIG)
    noise, names = SqnrMeter(), list(before_selection(model.graph))
    for path in sorted((pictures / "judged").iterdir()):
        pixels, _ = quantized.detector.preprocess(np.asarray(Image.open(path)), quantized.detector.size)
        noise.add(*(run(each, {"images": pixels}, names) for each in (model, quantized.model)))
    assert -criterion.loss(quantized.model, silent) == pytest.approx(min(noise.decibels().values()), abs=0.2)
    assert criterion.loss(model, silent) == -np.inf


def test_noise_is_that_of_the_file_not_of_sums_that_saturate_on_some_cpus(pictures):
    model = saturating()
    quantized = quantize(model, pictures / "calibrated", replace(CONFIG, cpu="vnni"))
    assert SqnrCriterion(model, pictures / "judged", CONFIG).loss(quantized.model, silent) < -60
    on_integers = SqnrCriterion(model, pictures / "judged", CONFIG, "ort").loss(quantized.model, silent)
    assert (on_integers < -60) is not saturates(OnnxRuntime)


def test_the_runtime_is_exact_unless_another_one_is_asked_for(tmp_path):
    model = with_metadata(always(table_of([(8, 16, 32, 32, 0.9, 1)], "v8", 2)), {"onnxq.target": "ort"})
    truth = GroundTruth.load(*write_coco(tmp_path, TWO, {1: "person", 3: "car"}))
    default, exact, ort = (
        (
            PrecisionCriterion(model, truth, Settings(runtime=runtime)).identity(),
            SqnrCriterion(model, tmp_path / "images", CONFIG, runtime).identity(),
        )
        for runtime in ("auto", "exact", "ort")
    )
    assert default == exact
    assert not {*exact} & {*ort}


def test_precision_is_what_the_float_model_has_more(tmp_path):
    perfect, shifted = (always(table_of([(8 + shift, 16, 32 + shift, 32, 0.9, 1)], "v8", 2)) for shift in (0, 2))
    annotations, images = write_coco(tmp_path, TWO, {1: "person", 3: "car"})
    criterion = PrecisionCriterion(perfect, GroundTruth.load(annotations, images), Settings())
    assert criterion.loss(perfect, silent) == 0
    assert criterion.loss(shifted, silent) == pytest.approx(30)  # its IoU is 22 / 26: three of ten thresholds are above
    assert criterion.describe(1.25) == "-1.25 AP"
    assert criterion.describe(0.0) == criterion.describe(0.001) == "+0.00 AP"
    assert criterion.files == (images / "a.png", images / "b.png")


def test_an_ap_that_cannot_be_lost_is_refused(tmp_path):
    blind = always(table_of([(40, 40, 60, 60, 0.9, 0)], "v8", 2))
    annotations, images = write_coco(tmp_path, TWO, {1: "person", 3: "car"})
    criterion = PrecisionCriterion(blind, GroundTruth.load(annotations, images), Settings())
    with pytest.raises(DataError, match="the float model has an AP of 0"):
        criterion.loss(blind, silent)
    annotations.write_text(json.dumps(json.loads(annotations.read_text()) | {"annotations": []}))
    criterion = PrecisionCriterion(blind, GroundTruth.load(annotations, images), Settings())
    with pytest.raises(DataError, match="no objects on the images"):
        criterion.loss(blind, silent)


def test_other_labels_of_the_same_images_change_the_identity(tmp_path):
    annotations, images = write_coco(tmp_path, TWO, {1: "person", 3: "car"})
    before = PrecisionCriterion(csp(), GroundTruth.load(annotations, images), Settings()).identity()
    content = json.loads(annotations.read_text())
    content["annotations"][0]["category_id"] = 1 if content["annotations"][0]["category_id"] == 3 else 3
    annotations.write_text(json.dumps(content))
    assert PrecisionCriterion(csp(), GroundTruth.load(annotations, images), Settings()).identity() != before


def test_other_images_under_the_same_names_change_the_identity(pictures):
    annotations, images = write_coco(pictures, TWO, {1: "person", 3: "car"})
    model = finding((*BOX, 0.9, 1))

    def identities():
        truth = GroundTruth.load(annotations, images)
        return [
            PrecisionCriterion(model, truth, Settings()).identity(),
            AgreementCriterion(model, images, Settings()).identity(),
            SqnrCriterion(model, images, CONFIG).identity(),
        ]

    before, again = identities(), identities()
    for path in images.iterdir():
        Image.open(path).point(lambda level: 255 - level).save(path)
    assert before == again
    assert not set(before) & set(identities())


def test_of_a_data_set_the_validation_images_are_taken(pictures):
    (pictures / "data.yaml").write_text("train: calibrated\nval: judged\n")
    criterion = SqnrCriterion(v8(), pictures / "data.yaml", CONFIG)
    assert {file.parent.name for file in criterion.files} == {"judged"}


class TestAgreement:
    def test_it_is_what_the_float_model_has_more(self, tmp_path):
        images = noise_images(tmp_path / "images")
        original = finding((*BOX, 0.9, 1), (*AWAY, 0.5, 0))
        criterion = AgreementCriterion(original, images, Settings())
        assert criterion.loss(original, silent) == 0
        assert criterion.loss(finding((*BOX, 0.4, 1), (*AWAY, 0.3, 0)), silent) == 0
        shifted = [(8 + move, 16, 32 + move, 32, 0.9, 1) for move in (1, 2, 4)]
        losses = [criterion.loss(finding(box, (*AWAY, 0.5, 0)), silent) for box in shifted]
        assert 1 < losses[0] < losses[1] < losses[2]
        assert criterion.loss(finding((*AWAY, 0.5, 0)), silent) > losses[2]
        assert criterion.describe(1.25) == "-1.25 expected AP"
        assert str(AgreementLoss(1.25, 1, "R 1")).endswith(" model: -1.25 expected AP on 1 image, in R 1")
        assert criterion.describe(0.0) == "+0.00 expected AP"
        assert criterion.images == 3
        assert criterion.files == tuple(sorted(images.iterdir()))

    @pytest.mark.slow
    def test_coarser_integers_lose_more(self):
        scenes = replace(demo.VALIDATION, count=24)
        criterion = AgreementCriterion(onnx.load(demo.model_path()), scenes, Settings())
        painted = replace(demo.CALIBRATION, paint=functools.cache(demo.CALIBRATION.paint))
        config = replace(CONFIG, count=24, rounding="nearest")
        losses = [
            criterion.loss(quantize(demo.model_path(), painted, each).model, silent)
            for each in (config, replace(config, weight_bits=5, act_bits=5), replace(config, weight_bits=3, act_bits=3))
        ]
        assert -0.5 < losses[0] < 0.5
        assert losses[0] + 1 < losses[1]
        assert losses[1] + 5 < losses[2]
        assert criterion.files == ()

    def test_images_are_spread_and_of_a_data_set_those_of_validation(self, pictures):
        (pictures / "data.yaml").write_text("train: calibrated\nval: judged\n")
        model = finding((*BOX, 0.9, 1))
        criterion = AgreementCriterion(model, pictures / "data.yaml", Settings(max_images=1))
        assert [file.name for file in criterion.files] == ["judged3.png"]
        assert AgreementCriterion(model, pictures / "data.yaml", Settings()).identity() != criterion.identity()

    def test_the_runtime_is_exact_unless_another_one_is_asked_for(self, pictures):
        model = finding((*BOX, 0.9, 1))
        default, exact, ort = (
            AgreementCriterion(model, pictures / "judged", Settings(runtime=runtime)).identity()
            for runtime in ("auto", "exact", "ort")
        )
        assert default == exact != ort

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (csp(), "its outputs are not read"),
            (with_metadata(classifier(), {"task": "classify"}), "its task is classify"),
            (with_metadata(v8(angle=True), {"task": "obb", "names": "['a', 'b', 'c']"}), "its boxes are rotated"),
        ],
    )
    def test_models_without_upright_boxes_are_refused(self, pictures, model, message):
        with pytest.raises(ModelError, match=rf"--judge agreement .*: {message}.*; --min-sqnr DB"):
            AgreementCriterion(model, pictures / "judged", Settings())

    def test_nothing_to_lose_is_refused(self, pictures):
        model = finding((*BOX, 0.01, 1))
        criterion = AgreementCriterion(model, pictures / "judged", Settings())
        with pytest.raises(DataError, match=r"nothing with a score above 0\.02 on the images.*give other images"):
            criterion.loss(model, silent)
