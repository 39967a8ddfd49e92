import json

import numpy as np
import onnx
import pytest
from graphs import copy, csp, feed, run, saturating, silu_chain, v8, with_metadata
from PIL import Image
from tables import TWO, always, table_of, write_coco

from onnxq import Config, quantize
from onnxq.errors import ConfigError, DataError
from onnxq.evaluation.criteria import Criterion, PrecisionCriterion, SqnrCriterion
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.mixed_precision import HigherPrecision, search
from onnxq.evaluation.predictor import Settings
from onnxq.facts import Plan, Sensitivities
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.progress import silent

CONFIG = Config(target="openvino", reconstruct=False)


class ByNodes(Criterion):
    """Loses what `price` says of a model; counts how often it is asked, and stops after `patience` times."""

    pictures, files = 0, ()

    def __init__(self, price, patience=100):
        self.price = price
        self.patience = patience
        self.asked = 0

    def loss(self, model, progress):
        if self.asked == self.patience:
            raise KeyboardInterrupt
        self.asked += 1
        return self.price(model)

    def identity(self):
        return "by nodes"

    def say(self, loss):
        return f"{loss} lost"


def stored(model):
    """How many weights are stored as integers, and how many of these have few levels."""
    weights = [t for t in model.graph.initializer if t.name.endswith("_quantized")]
    narrow = [t for t in weights if np.abs(onnx.numpy_helper.to_array(t).astype(int)).max() <= 7]
    return len(weights), len(narrow)


def integers(model):
    return float(stored(model)[0])


@pytest.fixture(scope="module")
def model():
    return csp()


@pytest.fixture(scope="module")
def feeds(model):
    return [feed(model, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def ranked(model, feeds):
    """The pieces from the most sensitive on, and the plan."""
    facts = quantize(model, feeds, CONFIG, sensitivity=True).facts
    return [piece.nodes for piece in facts[Sensitivities].worst_first()], facts[Plan]


def found(model, feeds, limit, price=integers, config=CONFIG, **options):
    judge = options.pop("judge", None) or ByNodes(price)
    return search(model, feeds, config, judge, limit, **options), judge


def test_nothing_is_kept_where_nothing_needs_to_be(model, feeds):
    result, judge = found(model, feeds, 100)
    assert result.kept == ()
    assert result.config == CONFIG
    assert judge.asked == len(result.trials) == 1
    assert result.quantized.model == quantize(model, feeds, CONFIG).model


@pytest.mark.parametrize("fewer", [1, 2, 3, 5])
def test_the_most_sensitive_pieces_are_kept_and_no_more_than_needed(model, feeds, ranked, fewer):
    order, plan = ranked
    result, _ = found(model, feeds, len(plan.layers) - fewer)
    assert result.kept == tuple(HigherPrecision(nodes, None) for nodes in order[:fewer])
    assert result.loss == len(plan.layers) - fewer
    assert set(result.config.exclude) == {name for nodes in order[:fewer] for name in nodes}


def test_the_progress_says_of_which_trial(model, feeds, ranked):
    told = {}
    result, _ = found(model, feeds, len(ranked[1].layers) - 1, progress=lambda *step: told.setdefault(step[0], step))
    trials = {task.split(":")[0] for task in told if task.startswith("trial ")}
    assert trials == {f"trial {number}" for number in range(2, 1 + len(result.trials))}
    assert told["sensitivity"][1] == 0
    assert "trial 2: checking" in told


def test_its_options_make_the_model_at_once(model, feeds, ranked):
    result, _ = found(model, feeds, len(ranked[1].layers) - 2)
    assert quantize(model, feeds, result.config).model == result.quantized.model


def test_narrow_pieces_get_eight_bits_first(model, feeds):
    config = Config(target="openvino", weight_bits=4, reconstruct=False)
    narrow = stored(quantize(model, feeds, config).model)[1]
    assert narrow > 3
    result, _ = found(model, feeds, 2, lambda m: float(stored(m)[1]), config)
    assert {piece.bits for piece in result.kept} == {8}
    assert len(result.kept) == narrow - 2
    assert result.config.exclude == ()
    assert all(text.endswith("=8/8") for text in result.config.bits)


def test_and_stay_float_where_eight_bits_do_not_suffice(model, feeds):
    config = Config(target="openvino", weight_bits=4, reconstruct=False)
    total, narrow = stored(quantize(model, feeds, config).model)
    result, _ = found(model, feeds, total - 1, integers, config)
    assert [piece.bits for piece in result.kept] == [8] * narrow + [None]
    assert stored(result.quantized.model)[0] == total - 1
    assert not {text.rpartition("=")[0] for text in result.config.bits} & set(result.config.exclude)


def test_what_was_excluded_stays_so(model, feeds, ranked):
    order, plan = ranked
    config = Config(target="openvino", reconstruct=False, exclude=order[-1])
    result, _ = found(model, feeds, len(plan.layers) - 2, config=config)
    assert set(order[-1]) < set(result.config.exclude)


def test_a_limit_that_cannot_be_kept_is_an_error(model, feeds):
    with pytest.raises(ConfigError, match=r"cannot be kept: .* has 1.0 lost"):
        found(model, feeds, 0)


def test_a_limit_that_is_no_number_is_refused(model, feeds):
    with pytest.raises(ConfigError, match="the limit is no number"):
        found(model, feeds, float("nan"))


def test_bisection_asks_for_few_models():
    model = silu_chain(layers=20)
    feeds = [feed(model, seed) for seed in range(2)]
    result, judge = found(model, feeds, 9)
    assert len(result.kept) == 21 - 9
    assert judge.asked == len(result.trials) <= 9


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_search_that_was_interrupted_goes_on(model, feeds, ranked, tmp_path):
    limit, cache = len(ranked[1].layers) - 5, tmp_path / "record.json"
    whole, judge = found(model, feeds, limit)
    with pytest.raises(KeyboardInterrupt):
        found(model, feeds, limit, judge=ByNodes(integers, patience=2), cache=cache)
    assert len(json.loads(cache.read_text())["losses"]) == 2
    rest, again = found(model, feeds, limit, cache=cache)
    assert again.asked == judge.asked - 2
    assert rest.kept == whole.kept
    assert rest.trials == whole.trials
    assert rest.quantized.model == whole.quantized.model
    done, nothing = found(model, feeds, limit, cache=cache)
    assert nothing.asked == 0
    assert done.quantized.model == whole.quantized.model


@pytest.mark.parametrize("change", ["model", "data", "config"])
def test_a_record_of_another_search_is_not_believed(model, feeds, tmp_path, change):
    cache = tmp_path / "record.json"
    found(model, feeds, 100, cache=cache)
    other = copy(model)
    weight = max(other.graph.initializer, key=lambda t: len(t.raw_data))
    weight.raw_data = (1.01 * onnx.numpy_helper.to_array(weight)).astype(np.float32).tobytes()
    _, judge = found(
        other if change == "model" else model,
        feeds[:2] if change == "data" else feeds,
        100,
        config=Config(target="openvino", method="mse") if change == "config" else CONFIG,
        cache=cache,
    )
    assert judge.asked == 1


def test_what_is_no_record_is_refused(model, feeds, tmp_path):
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(DataError, match="no record of a search"):
        found(model, feeds, 100, cache=tmp_path / "record.json")


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """Two folders with three pictures each; one is in both, under another name."""
    for folder, numbers in (("calibrated", (0, 1, 2)), ("judged", (2, 3, 4))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{folder}{number}.png")
    return tmp_path


def test_pictures_that_were_calibrated_with_are_refused(model, pictures):
    judge = SqnrCriterion(model, pictures / "judged", CONFIG)
    with pytest.raises(ConfigError, match=r"judged2\.png is calibrated with too, as .*calibrated2\.png.*--on-calib"):
        search(model, pictures / "calibrated", CONFIG, judge, 0)
    assert search(model, pictures / "calibrated", CONFIG, judge, 0, on_calibration=True).loss < 0


def test_noise_is_that_of_the_worst_output(pictures):
    model = with_metadata(v8(masks=True))
    judge = SqnrCriterion(model, pictures / "judged", CONFIG)
    quantized = quantize(model, pictures / "calibrated", CONFIG)
    noise = SqnrMeter()
    images = sorted((pictures / "judged").iterdir())
    for path in images:
        pixels, _ = quantized.detector.preprocess(np.asarray(Image.open(path)), quantized.detector.size)
        values = {"images": pixels}
        noise.add(run(model, values), run(quantized.model, values))
    assert len(noise.decibels()) == 2
    assert -judge.loss(quantized.model, silent) == pytest.approx(min(noise.decibels().values()), abs=0.2)
    assert judge.files == tuple(images)


def test_noise_is_that_of_the_file_not_of_sums_that_saturate_on_some_cpus(pictures):
    model = saturating()
    quantized = quantize(model, pictures / "calibrated", CONFIG)
    assert SqnrCriterion(model, pictures / "judged", CONFIG).loss(quantized.model, silent) < -60


def test_precision_is_what_the_float_model_has_more(tmp_path):
    perfect, shifted = (always(table_of([(8 + shift, 16, 32 + shift, 32, 0.9, 1)], "v8", 2)) for shift in (0, 2))
    annotations, images = write_coco(tmp_path, TWO, {1: "person", 3: "car"})
    judge = PrecisionCriterion(perfect, GroundTruth.load(annotations, images), Settings())
    assert judge.loss(perfect, silent) == 0
    assert judge.loss(shifted, silent) == pytest.approx(30)  # its IoU is 22 / 26: three of ten thresholds are above
    assert judge.say(1.25) == "-1.25 AP"
    assert judge.say(0.0) == "+0.00 AP"
    assert judge.files == (images / "a.png", images / "b.png")


def test_an_ap_that_cannot_be_lost_is_refused(tmp_path):
    blind = always(table_of([(40, 40, 60, 60, 0.9, 0)], "v8", 2))
    annotations, images = write_coco(tmp_path, TWO, {1: "person", 3: "car"})
    judge = PrecisionCriterion(blind, GroundTruth.load(annotations, images), Settings())
    with pytest.raises(DataError, match="the float model has an AP of 0"):
        judge.loss(blind, silent)
    annotations.write_text(json.dumps(json.loads(annotations.read_text()) | {"annotations": []}))
    judge = PrecisionCriterion(blind, GroundTruth.load(annotations, images), Settings())
    with pytest.raises(DataError, match="no objects on the pictures"):
        judge.loss(blind, silent)


def test_other_labels_of_the_same_pictures_make_another_judge(tmp_path):
    annotations, images = write_coco(tmp_path, TWO, {1: "person", 3: "car"})
    before = PrecisionCriterion(csp(), GroundTruth.load(annotations, images), Settings()).identity()
    content = json.loads(annotations.read_text())
    content["annotations"][0]["category_id"] = 1 if content["annotations"][0]["category_id"] == 3 else 3
    annotations.write_text(json.dumps(content))
    assert PrecisionCriterion(csp(), GroundTruth.load(annotations, images), Settings()).identity() != before
