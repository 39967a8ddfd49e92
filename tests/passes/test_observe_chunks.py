"""What observe finds does not depend on how the samples are cut into chunks, where these run and which ends first."""

import numpy as np
import pytest
from cut_pool import Cut
from graphs import csp, feed, planned, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxq.calibration.samples import Samples, open_samples
from onnxq.calibration.statistics_file import save_statistics
from onnxq.errors import DataError
from onnxq.facts import InputSummary, Probe, Statistics
from onnxq.passes.observe import Observe
from onnxq.pipeline import Pipeline
from onnxq.runtime.pool import IN_PROCESS
from onnxq.targets import OPENVINO
from onnxq.yolo.preprocess import YOLO

STEPS = 70
"""Samples, of which the covariance of inner Convs is taken on every second one."""


def data(unreadable=()):
    """Feeds of which some are equal; None for those that cannot be read."""
    model = csp()
    return samples([None if k in unreadable else feed(model, k % 60) for k in range(STEPS)])


def observed(given_data, pool, progress=None):
    working, plan = planned(csp(), OPENVINO)
    step = Observe(given_data, progress or (lambda *_: None), every_conv=True, pool=pool)
    return Pipeline([step], pinned=[plan]).run(working)


def everything(facts, path):
    """The bytes of the calibration file, and those of all else that was found."""
    save_statistics(facts[Statistics], path)
    probe = [{name: values.tobytes() for name, values in each.items()} for each in facts[Probe].feeds]
    return path.read_bytes(), probe, facts[InputSummary]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function that observes all samples at once, each set of unreadable ones only once."""
    found = {}

    def observe(unreadable):
        if unreadable not in found:
            given_data = data(unreadable)
            path = tmp_path_factory.mktemp("whole") / "calibration.npz"
            found[unreadable] = everything(observed(given_data, IN_PROCESS), path), given_data.unreadable
        return found[unreadable]

    return observe


@settings(max_examples=12)
@given(
    cuts=st.lists(st.integers(1, STEPS - 1), max_size=12),
    seed=st.integers(0, 9),
    workers=st.integers(1, 3),
    unreadable=st.sampled_from([frozenset(), frozenset({0, 1, 33}), frozenset(range(1, 65))]),
)
def test_any_chunks_in_any_order_give_the_same_bytes(whole, tmp_path_factory, cuts, seed, workers, unreadable):
    given_data = data(unreadable)
    facts = observed(given_data, Cut(cuts, seed, workers))
    path = tmp_path_factory.mktemp("cut") / "calibration.npz"
    assert everything(facts, path) == whole(unreadable)[0]
    assert list(given_data.unreadable.items()) == sorted(whole(unreadable)[1].items())


def test_the_sums_are_those_of_several_chunks(whole, tmp_path):
    # Otherwise nothing was merged.
    pool = Cut(range(0, STEPS, 7))
    assert everything(observed(data(), pool), tmp_path / "calibration.npz") == whole(frozenset())[0]
    assert pool.tasks == 10


def opened(source, preprocess=YOLO):
    """Samples of a source for the model."""
    return open_samples(
        source,
        inputs={"images": ((1, 3, 32, 32), np.float32)},
        image_input="images",
        size=(32, 32),
        preprocess=preprocess,
    )


def test_pictures_are_read_where_the_chunk_runs(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{number}.png")
    (folder / "3.png").write_text("no picture")
    first, second = opened(str(folder)), opened(str(folder))
    found = everything(observed(first, Cut([1, 4])), tmp_path / "cut.npz")
    assert found == everything(observed(second, IN_PROCESS), tmp_path / "whole.npz")
    assert list(first.unreadable) == list(second.unreadable) == [str(folder / "3.png")]
    assert found[2].samples == 5


def test_progress_is_that_of_all_chunks():
    told = []
    observed(data(), Cut([5, 40]), lambda *what: told.append(what))
    done = [each[1] for each in told]
    assert done == sorted(done)
    assert told[-1] == ("calibrating", STEPS, STEPS)
    assert len(told) == 3


def test_a_generator_cannot_be_sent():
    made = opened(feed(csp(), k) for k in range(3))
    with pytest.raises(DataError, match="samples of a Python generator cannot be sent to workers, because"):
        observed(made, Cut())


def test_a_list_of_arrays_is_sent(tmp_path):
    feeds = [feed(csp(), k) for k in range(STEPS)]
    found = everything(observed(opened(feeds), Cut([9, 50])), tmp_path / "cut.npz")
    assert found == everything(observed(opened(feeds), IN_PROCESS), tmp_path / "whole.npz")


def test_what_a_chunk_refuses_is_refused():
    model = csp()
    bad = feed(model)
    bad["images"][0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="holds NaN or infinite values for a calibration sample"):
        observed(samples([feed(model), feed(model), bad]), Cut([1, 2]))


def test_data_of_which_nothing_can_be_read_is_refused_by_its_first_file():
    with pytest.raises(DataError, match=r"none of the 3 images could be read; first: 0.jpg is cut short"):
        observed(samples([None] * 3), Cut([1, 2], seed=3))


def test_empty_data_is_refused():
    with pytest.raises(DataError, match="the calibration data is empty"):
        observed(Samples((), 0, "nothing"), Cut())
