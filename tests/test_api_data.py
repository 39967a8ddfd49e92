from pathlib import Path

import numpy as np
import pytest
from api_model import content, unchanged_detector
from graphs import (
    feed,
    initializers,
    silu_chain,
)
from PIL import Image

from onnxq import Config, quantize
from onnxq.errors import DataError
from onnxq.facts import (
    Statistics,
    Verification,
)


@pytest.fixture(scope="module")
def model():
    yield from unchanged_detector()


@pytest.fixture(scope="module")
def feeds(model):
    return [feed(model, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def result(model, feeds):
    return quantize(model, feeds)


class Reader:
    """A reader like onnxruntime's CalibrationDataReader."""

    def __init__(self, feeds):
        self._left = list(feeds)

    def get_next(self):
        return self._left.pop(0) if self._left else None


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        iter,
        tuple,
        lambda feeds: (each for each in feeds),
        Reader,
        lambda feeds: [each["images"] for each in feeds],
        lambda feeds: [each["images"][0] for each in feeds],
        lambda feeds: np.concatenate([each["images"] for each in feeds]),
        lambda feeds: {"images": np.concatenate([each["images"] for each in feeds])},
    ],
    ids=["iterator", "tuple", "generator", "reader", "arrays", "unbatched arrays", "one array", "one feed"],
)
def test_every_kind_of_feeds_gives_the_same_as_a_list(model, feeds, result, wrap):
    assert content(quantize(model, wrap(feeds))) == content(result)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [str, Path, lambda path: [str(path)]])
def test_a_path_of_data_gives_the_same_as_its_feeds(tmp_path, model, feeds, result, kind):
    np.savez(tmp_path / "data.npz", images=np.concatenate([each["images"] for each in feeds]))
    quantized = quantize(model, kind(tmp_path / "data.npz"))
    assert content(quantized) == content(result)
    assert quantized.samples.description == "4 samples in data.npz"


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (4,), (3, 1), (1, 2, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_batches_and_order_make_no_difference(model, feeds, result, sizes, order):
    rows = np.concatenate([feeds[number]["images"] for number in order])
    batches = np.split(rows, np.cumsum(sizes)[:-1])
    assert content(quantize(model, [{"images": batch} for batch in batches])) == content(result)


@pytest.mark.slow
def test_a_fixed_batch_makes_no_difference(feeds):
    rows = np.concatenate([each["images"] for each in feeds])[:3]
    one, two = (quantize(silu_chain(batch=batch), rows) for batch in (1, 2))
    assert two.facts[Statistics].samples == 3
    scales = [{k: v.tobytes() for k, v in initializers(q.model).items() if k.endswith("_scale")} for q in (one, two)]
    assert scales[0] == scales[1]
    assert len(scales[0]) > 5


@pytest.mark.slow
def test_a_generator_is_drawn_from_as_samples_are_run(model, feeds):
    drawn, lead = [], []

    def generate():
        for number in range(40):
            drawn.append(number)
            yield feeds[number % 4]

    def tell(task, done, total):
        if task == "calibrating":
            lead.append(len(drawn) - done)

    quantize(model, generate(), progress=tell)
    assert len(drawn) == 40
    assert max(lead) < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "sensitivity", "message"),
    [
        (Config(weight_bits=4), False, "Python generator: reconstruction reads the data again.*or reconstruct=False"),
        (Config(), True, "Python generator: measuring the sensitivity reads the data again.*or sensitivity=False"),
    ],
)
def test_a_generator_is_refused_at_once_where_it_would_be_read_twice(model, feeds, config, sensitivity, message):
    def generate():
        yield from feeds
        raise AssertionError("drawn from")

    with pytest.raises(DataError, match=message):
        quantize(model, generate(), config, sensitivity=sensitivity)


def test_without_data_scenes_are_made(model):
    quantized = quantize(model, None, Config(count=3))
    assert quantized.samples.synthetic
    assert quantized.facts[Statistics].samples == 3


def test_with_data_none_are_made(result):
    assert not result.samples.synthetic


@pytest.mark.slow
def test_data_makes_a_difference(model, feeds, result):
    darker = [{"images": each["images"] * 0.1} for each in feeds]
    assert content(quantize(model, darker)) != content(result)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "gave no samples"),
        (iter([]), "gave no samples"),
        (Reader([]), "gave no samples"),
        (7, "data of type int"),
        (["a", 7], "item 1 of the data is a str"),
        ([{"pictures": np.zeros((1, 3, 32, 32), np.float32)}], "has pictures, the model's inputs are images"),
        ([np.zeros((1, 3, 32, 16), np.float32)], r"shape \(1, 3, 32, 16\), not"),
        ([np.zeros((1, 3, 32, 32), np.uint8)], "0-255 as uint8"),
        ([np.full((1, 3, 32, 32), np.nan, np.float32)], "NaN or infinite"),
        ("nowhere", "nowhere: no such file or folder"),
    ],
)
def test_data_that_cannot_be_used_is_refused(model, data, message):
    with pytest.raises(DataError, match=message):
        quantize(model, data)


@pytest.mark.slow
def test_unreadable_images_are_listed_and_left_out(tmp_path, model):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40), (200, 90, 10)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no picture")
    quantized = quantize(model, tmp_path)
    assert list(quantized.samples.skipped) == [str(tmp_path / "c.png")]
    assert quantized.facts[Statistics].samples == 2


@pytest.mark.slow
def test_the_result_is_compared_on_the_first_images_that_can_be_read(tmp_path, model):
    for index, name in enumerate(("c.png", "d.png", "e.png")):
        Image.new("RGB", (40, 40), (200, 90, 80 * index)).save(tmp_path / name)
    expected = quantize(model, tmp_path).facts[Verification].sqnr
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    assert quantize(model, tmp_path).facts[Verification].sqnr == expected != {}


@pytest.mark.parametrize("batch", [1, 4])
def test_the_warning_about_blank_images_names_a_file(tmp_path, batch):
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{number}.png")
    for name in ("3", "7"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{name}.png")
    warnings = quantize(silu_chain(batch=batch), tmp_path, Config(reconstruct=False)).warnings
    assert any(f"2 of 10 calibration samples show next to nothing (such as {tmp_path / '3.png'})" in each
               for each in warnings)  # fmt: skip
