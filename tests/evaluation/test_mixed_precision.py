import json
import math
import os
import re
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
from cases import fast_first
from cut_pool import Cut
from graphs import copy, csp, feed, silu_chain
from PIL import Image

from onnxq import Config, quantize
from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.evaluation.criteria import Criterion, SqnrCriterion
from onnxq.evaluation.mixed_precision import HigherPrecision, search
from onnxq.facts import Plan, Sensitivities
from onnxq.runtime.pool import IN_PROCESS
from onnxq.targets import OPENVINO, TARGETS

NODE = "conv0"
"""A node of the model."""

CONFIG = Config(target="openvino", reconstruct=False)


class ByNodes(Criterion):
    """Returns `price` of a model as its loss, counts the calls, and stops after `patience` of them."""

    images, files = 0, ()

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

    def describe(self, loss):
        return f"{loss} lost"


def stored(model):
    """Return the number of weights stored as integers, and how many of them have few levels."""
    weights = [t for t in model.graph.initializer if t.name.endswith("_quantized")]
    narrow = [t for t in weights if np.abs(onnx.numpy_helper.to_array(t).astype(int)).max() <= 7]
    return len(weights), len(narrow)


def integers(model):
    return float(stored(model)[0])


@pytest.fixture(scope="module", autouse=True)
def _trials_are_not_compiled():
    """Take OpenVINO's rules without its runtime, which would compile the model of every trial to count layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TARGETS, "openvino", replace(OPENVINO, runtime=None))
        yield


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
    criterion = options.pop("criterion", None) or ByNodes(price)
    return search(model, feeds, config, criterion, limit, **options), criterion


def test_nothing_is_kept_where_nothing_needs_to_be(model, feeds):
    result, criterion = found(model, feeds, 100)
    assert result.kept == ()
    assert result.config == CONFIG
    assert criterion.asked == len(result.trials) == 1
    assert result.quantized.model == quantize(model, feeds, CONFIG).model


@pytest.mark.slow
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


@pytest.mark.slow
def test_its_options_make_the_model_at_once(model, feeds, ranked):
    result, _ = found(model, feeds, len(ranked[1].layers) - 2)
    assert quantize(model, feeds, result.config).model == result.quantized.model


@pytest.mark.slow
def test_narrow_pieces_get_eight_bits_first(model, feeds):
    config = Config(target="openvino", weight_bits=4, reconstruct=False)
    narrow = stored(quantize(model, feeds, config).model)[1]
    assert narrow > 2
    result, _ = found(model, feeds, 1, lambda m: float(stored(m)[1]), config)
    assert {piece.bits for piece in result.kept} == {8}
    assert len(result.kept) == narrow - 1
    assert result.config.exclude == ()
    assert all(text.endswith("=8/8") for text in result.config.bits)


@pytest.mark.slow
def test_and_stay_float_where_eight_bits_do_not_suffice(model, feeds):
    config = Config(target="openvino", weight_bits=4, reconstruct=False)
    total, narrow = stored(quantize(model, feeds, config).model)
    result, _ = found(model, feeds, total - 1, integers, config)
    assert [piece.bits for piece in result.kept] == [8] * narrow + [None]
    assert stored(result.quantized.model)[0] == total - 1
    assert not {text.rpartition("=")[0] for text in result.config.bits} & set(result.config.exclude)


def test_what_was_excluded_stays_so(model, feeds, ranked):
    order, plan = ranked
    config = replace(CONFIG, exclude=order[-1])
    result, _ = found(model, feeds, len(plan.layers) - 2, config=config)
    assert set(order[-1]) < set(result.config.exclude)


@pytest.mark.slow
def test_a_limit_that_cannot_be_kept_is_an_error(model, feeds):
    with pytest.raises(ConfigError, match=r"cannot be kept: .* has 1.0 lost"):
        found(model, feeds, 0)


def test_a_limit_that_is_no_number_is_refused(model, feeds):
    with pytest.raises(ConfigError, match="limit: expected a number, got nan"):
        found(model, feeds, float("nan"))


@pytest.mark.slow
def test_bisection_asks_for_few_models():
    model = silu_chain(layers=20)
    feeds = [feed(model, seed) for seed in range(2)]
    result, criterion = found(model, feeds, 9)
    assert len(result.kept) == 20 - 9
    assert criterion.asked == len(result.trials) <= 9


@pytest.mark.slow
def test_a_search_that_was_interrupted_goes_on(model, feeds, ranked, tmp_path):
    limit, record = len(ranked[1].layers) - 5, tmp_path / "record.json"
    whole, criterion = found(model, feeds, limit)
    with pytest.raises(KeyboardInterrupt):
        found(model, feeds, limit, criterion=ByNodes(integers, patience=2), record_file=record)
    assert len(json.loads(record.read_text())["losses"]) == 2
    rest, again = found(model, feeds, limit, record_file=record)
    assert again.asked == criterion.asked - 2
    assert rest.kept == whole.kept
    assert rest.trials == whole.trials
    assert rest.quantized.model == whole.quantized.model
    done, nothing = found(model, feeds, limit, record_file=record)
    assert nothing.asked == 0
    assert done.quantized.model == whole.quantized.model


@pytest.fixture(scope="module")
def recorded(model, feeds, tmp_path_factory):
    """The record of a search that needed one trial."""
    record = tmp_path_factory.mktemp("recorded") / "record.json"
    _, criterion = found(model, feeds, 100, record_file=record)
    assert criterion.asked == 1
    return record.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["model", "data", "config"])
def test_a_record_of_another_search_is_not_believed(model, feeds, recorded, tmp_path, change):
    record = tmp_path / "record.json"
    record.write_text(recorded)
    other = copy(model)
    weight = max(other.graph.initializer, key=lambda t: len(t.raw_data))
    weight.raw_data = (1.01 * onnx.numpy_helper.to_array(weight)).astype(np.float32).tobytes()
    _, criterion = found(
        other if change == "model" else model,
        feeds[:2] if change == "data" else feeds,
        100,
        config=replace(CONFIG, method="mse") if change == "config" else CONFIG,
        record_file=record,
    )
    assert criterion.asked == 1


def test_what_is_no_record_is_refused(model, feeds, tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe.json: is a pipe, a socket or a device; give a file"):
        found(model, feeds, 100, record_file=tmp_path / "pipe.json")
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(DataError, match="not a record of this search"):
        found(model, feeds, 100, record_file=tmp_path / "record.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"order": 3}, "Expected `array`, got `int` - at `$.order`"),
        ({"order": [[]]}, "Expected `array` of length >= 1 - at `$.order[0]`"),
        ({"order": [["nowhere"]]}, "there is no node 'nowhere'"),
        ({"order": [[NODE], [NODE]]}, "a node is in two parts"),
        ({"losses": {"0": "much"}}, "Expected `float`, got `str` - at `$.losses[...]`"),
        ({"losses": {"0": math.nan}}, "JSON is malformed"),
        ({"losses": {"0": math.inf}}, "JSON is malformed"),
        ({"losses": {"-1": 0}}, "Expected `int` >= 0 - at `key` in `$.losses`"),
        ({"losses": {"9": 0}}, "it has the loss with 9 of 0 parts"),
        ({"losses": None}, "Expected `object`, got `null` - at `$.losses`"),
        ({"more": 1}, "Object contains unknown field `more`"),
    ],
)
def test_a_record_that_was_changed(model, feeds, recorded, tmp_path, change, said):
    record = tmp_path / "record.json"
    record.write_text(json.dumps(json.loads(recorded) | change))
    with pytest.raises(DataError, match=re.escape(said)):
        found(model, feeds, 100, record_file=record)


def test_a_loss_that_is_no_number_is_refused(model, feeds, tmp_path):
    with pytest.raises(ModelError, match="the loss with 0 parts at a higher precision is not a number"):
        found(model, feeds, 100, lambda model: math.nan, record_file=tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize("loss", [math.inf, -math.inf])
def test_an_infinite_loss_is_not_recorded(model, feeds, tmp_path, loss):
    record = tmp_path / "record.json"
    found(model, feeds, math.inf, lambda model: loss, record_file=record)
    assert not record.exists()


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
    criterion = SqnrCriterion(model, pictures / "judged", CONFIG)
    with pytest.raises(
        ConfigError, match=r"judged2\.png is also a calibration image, as .*calibrated2\.png.*--on-calib"
    ):
        search(model, pictures / "calibrated", CONFIG, criterion, 0)
    assert search(model, pictures / "calibrated", CONFIG, criterion, 0, on_calibration=True).loss < 0


class AtOnce(Cut):
    """A pool that runs several trials at once, and notes which."""

    def __init__(self, number):
        super().__init__([2])
        self._number = number
        self.counts = []

    @property
    def at_once(self):
        return self._number

    def run(self, work, tasks, finished, merge=None):
        if isinstance(tasks[0], int):
            self.counts += tasks
        return super().run(work, tasks, finished, merge)


PRICES = {
    "falls": integers,
    "rises and falls": lambda model: float(stored(model)[0] * 7 % 5),
    "never within": lambda model: 50.0,
}


@pytest.mark.parametrize(
    ("price", "at_once"), fast_first([("rises and falls", 4), ("falls", 1), ("falls", 4), ("never within", 2)])
)
def test_trials_in_a_pool_find_the_same(model, feeds, tmp_path, price, at_once):
    runs = []
    for pool in (IN_PROCESS, AtOnce(at_once)):
        told = {}
        try:
            record = tmp_path / f"{pool.is_remote}.json"
            result, _ = found(model, feeds, 1, PRICES[price], pool=pool, record_file=record)
            told = result.kept, result.loss, result.trials, result.config, result.quantized.model.SerializeToString()
        except ConfigError as error:
            told = str(error)
        runs.append(told)
    assert runs[0] == runs[1]
    assert len(set(pool.counts)) == len(pool.counts) >= 1
    serial, parallel = (json.loads((tmp_path / f"{kind}.json").read_text()) for kind in (False, True))
    assert serial["order"] == parallel["order"]
    assert serial["losses"].items() <= parallel["losses"].items()
    assert list(parallel["losses"]) == sorted(parallel["losses"], key=int)


@pytest.mark.slow
def test_a_record_of_one_process_goes_on_in_a_pool(model, feeds, tmp_path):
    record = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        found(model, feeds, 3, criterion=ByNodes(integers, patience=3), record_file=record)
    before = json.loads(record.read_text())["losses"]
    pool = AtOnce(2)
    result, _ = found(model, feeds, 3, pool=pool, record_file=record)
    assert not set(pool.counts) & set(map(int, before))
    assert result.kept == found(model, feeds, 3)[0].kept


@pytest.mark.slow
def test_what_fails_is_raised_only_if_bisection_asks_for_it(model, feeds):
    most = stored(found(model, feeds, 100)[0].quantized.model)[0]
    shift = most - 9

    def fails_beyond(model, left):
        count = stored(model)[0] - shift
        if count < left:
            raise DataError("this trial fails")
        return 9.0 if count > 8 else math.nan if count < 7 else 0.0

    pool = AtOnce(4)
    result, _ = found(model, feeds, 1, partial(fails_beyond, left=6), pool=pool)
    assert result.kept == found(model, feeds, 1, partial(fails_beyond, left=6))[0].kept
    assert max(pool.counts) > len(result.kept)
    with pytest.raises(DataError, match="this trial fails"):
        found(model, feeds, 1, partial(fails_beyond, left=9), pool=AtOnce(4))


def test_a_generator_cannot_be_sent(model, feeds):
    with pytest.raises(DataError, match="cannot be sent to workers"):
        search(model, (each for each in feeds), CONFIG, ByNodes(integers), 1, pool=AtOnce(2))
