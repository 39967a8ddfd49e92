import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibration.demo import scene
from onnxq.calibration.feeds import Sample
from onnxq.calibration.input_monitor import PROBES, InputMonitor
from onnxq.facts import InputSummary, Probe
from onnxq.yolo.preprocess import IMAGENET, LEVELS, STRETCH, YOLO, YOLO_255, YOLOX


def sample(value, valid=1, batch=1):
    """A sample of images that are `value`, but for one pixel."""
    images = np.full((batch, 3, 8, 8), value, np.float32)
    images[:, 0, 0, 0] += 0.5
    return Sample({"images": images, "sizes": np.zeros((1, 2), np.float32)}, valid)


def test_without_samples():
    monitor = InputMonitor()
    assert list(monitor.watch([])) == []
    assert (monitor.probe(), monitor.summary()) == (Probe(), InputSummary())


def test_loaders_load_what_they_did():
    samples = [sample(0), None, sample(2)]
    loaders = InputMonitor().watch([lambda each=each: each for each in samples])
    assert [load() for load in loaders] == samples


def test_loaders_are_drawn_one_at_a_time():
    def fail():
        yield lambda: sample(0)
        raise AssertionError("drawn too early")

    next(InputMonitor().watch(fail()))()


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_the_order_in_which_loaders_are_called_makes_no_difference(order, unreadable):
    monitor = InputMonitor()
    loaders = list(monitor.watch([lambda k=k: None if k in unreadable else sample(k) for k in range(6)]))
    for k in order:
        loaders[k]()
    readable = [k for k in range(6) if k not in unreadable]
    assert [float(values["images"].min()) for values in monitor.probe().feeds] == readable[:PROBES]
    low, high = (readable[0], readable[-1] + 0.5) if readable else (np.inf, -np.inf)
    summary = monitor.summary()
    assert (summary.low, summary.high, summary.samples, summary.distinct) == (low, high, len(readable), len(readable))


def test_loaders_may_be_called_in_several_threads():
    monitor = InputMonitor()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda load: load(), monitor.watch([lambda k=k: sample(k % 50) for k in range(400)])))
    summary = monitor.summary()
    assert (summary.low, summary.high) == (0, 49.5)
    assert (summary.samples, summary.distinct, summary.most_equal) == (400, 50, 8)
    assert [float(values["images"].min()) for values in monitor.probe().feeds] == [0, 1]


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(3)), st.sets(st.integers(0, 5)))
def test_merged_copies_know_what_one_monitor_does(order, unreadable):
    loaders = [lambda k=k: None if k in unreadable else sample(k % 4) for k in range(6)]
    whole = InputMonitor()
    for load in whole.watch(loaders):
        load()
    merged = InputMonitor()
    for part in order:
        monitor = InputMonitor()
        for load in monitor.watch(loaders[2 * part : 2 * part + 2], 2 * part):
            load()
        merged.merge(pickle.loads(pickle.dumps(monitor)))
    assert merged.summary() == whole.summary()
    assert merged.probe().feeds == ()
    found, wanted = (
        [values["images"].tobytes() for values in each.feeds] for each in (merged.probe(loaders), whole.probe())
    )
    assert found == wanted


def test_rows_that_only_fill_the_batch_are_left_out():
    monitor = InputMonitor()
    filled = sample(1, valid=2, batch=4)
    filled.feed["images"][2:] = 100
    for load in monitor.watch([lambda: filled]):
        load()
    summary = monitor.summary()
    assert (summary.low, summary.high, summary.samples, summary.distinct, summary.most_equal) == (1, 1.5, 2, 1, 2)


def summary_of(images, preprocess=YOLO):
    """The summary of images as the model takes them, or as arrays (height, width, 3) of levels if uint8."""
    monitor = InputMonitor(preprocess)
    for image in images:
        values = preprocess(image, SIZE)[0] if image.dtype == np.uint8 else image[None]
        for load in monitor.watch([lambda values=values: Sample({"images": values}, 1)]):
            load()
    return monitor.summary()


SIZE = (40, 60)


def picture(seed, low=30, high=200, shape=SIZE):
    return np.random.default_rng(seed).integers(low, high, (*shape, 3), np.uint8)


PREPROCESSES = [
    YOLO,
    YOLOX,
    STRETCH,
    replace(YOLO, values=IMAGENET),
    replace(YOLOX, values=IMAGENET),
    replace(YOLO_255, channels_last=True),
    replace(YOLO, values=IMAGENET, channels_last=True),
    replace(YOLO, values=LEVELS, levels=True),
]


@pytest.mark.parametrize("preprocess", PREPROCESSES)
@pytest.mark.parametrize("shape", [(40, 20), (12, 60), SIZE])
def test_the_padding_is_left_out_of_the_range(preprocess, shape):
    dark, wide = (preprocess(np.full((*shape, 3), level, np.uint8), SIZE)[0] for level in (3, 90))
    images = [np.random.default_rng(seed).integers(3, 91, (*shape, 3), np.uint8) for seed in range(3)]
    found = summary_of(images, preprocess)
    assert found.low == pytest.approx(dark.min() if preprocess.place == "stretch" or shape == SIZE else found.low)
    assert float(wide.min()) - 1e-4 <= found.high
    assert found.high < float(preprocess(np.full((*SIZE, 3), 100, np.uint8), SIZE)[0].max())


@pytest.mark.parametrize("preprocess", PREPROCESSES)
@pytest.mark.parametrize("shape", [(40, 20), SIZE])
def test_images_that_show_nothing_are_counted(preprocess, shape):
    masks = [np.random.default_rng(k).integers(0, 2, (*shape, 3), np.uint8) for k in range(2)]
    white, uneven = np.full((*shape, 3), 255, np.uint8), picture(7, 100, 110, shape)
    found = summary_of([picture(0, shape=shape), *masks, white, uneven, picture(1, 50, 90, shape)], preprocess)
    assert (found.samples, found.blank) == (6, 4)


def test_images_of_another_range_are_not_blank():
    unit = [np.random.default_rng(k).random((3, *SIZE), np.float32) for k in range(3)]
    assert summary_of(unit, YOLO_255).blank == 0
    assert summary_of([255 * image for image in unit], YOLO).blank == 0
    assert summary_of([*unit, np.full((3, *SIZE), 0.5, np.float32)], YOLO_255).blank == 1


@pytest.mark.parametrize("preprocess", PREPROCESSES)
def test_grey_images_are_counted(preprocess):
    grey = [np.repeat(picture(k)[..., :1], 3, axis=2) for k in range(3)]
    almost = grey[0] + np.random.default_rng(0).integers(0, 2, (*SIZE, 3), np.uint8)
    tinted = grey[0] + np.array([0, 10, 0], np.uint8)
    assert summary_of([*grey, almost, tinted, picture(9)], preprocess).grey == 4


def test_one_plane_is_not_called_grey():
    assert summary_of([picture(0)], replace(YOLO, planes=1)).grey == 0


@pytest.mark.parametrize("preprocess", [YOLO, YOLO_255, replace(YOLO, values=IMAGENET)])
def test_images_that_were_reshaped_and_not_transposed_are_counted(preprocess):
    right = [preprocess(scene("calibration", number)[0], (160, 160))[0][0] for number in range(3)]
    wrong = [image.transpose(1, 2, 0).reshape(image.shape) for image in right[:2]]
    assert summary_of(right, preprocess).interleaved == 0
    assert summary_of([*right, *wrong], preprocess).interleaved == 2
    noise = [np.random.default_rng(k).random((3, *SIZE), np.float32) for k in range(3)]
    assert summary_of(noise, preprocess).interleaved == 0
    last = replace(preprocess, channels_last=True)
    assert summary_of([image.transpose(1, 2, 0) for image in right], last).interleaved == 0


def test_arrays_of_other_ranks_are_looked_at_as_a_whole():
    found = summary_of([np.float32([1, 2, 3]), np.float32([1, 2, 300])], YOLO)
    assert (found.low, found.high, found.blank, found.grey) == (1, 300, 1, 0)
