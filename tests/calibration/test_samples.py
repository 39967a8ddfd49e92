"""Which samples are chosen, and how they are described."""

import random

import numpy as np
import pytest
from calibration_data import SIZE, arrays, batched, drawn, levels, opened, paint, refused
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calibration import samples
from onnxq.calibration.dead_leaves import SCENE_COUNT, SyntheticImages, dead_leaves_image
from onnxq.errors import ConfigError, DataError
from onnxq.facts import PreparedImages
from onnxq.yolo.preprocess import YOLO


def test_a_folder_gives_its_images_preprocessed(folder):
    samples = opened(folder)
    first = drawn(samples)[0]
    assert first.valid == 1
    assert list(first.feed) == ["x"]
    assert first.feed["x"].shape == (1, 3, 8, 8)
    assert first.feed["x"].dtype == np.float32
    assert levels(samples) == list(range(10))
    assert (samples.count, samples.steps) == (10, 10)
    assert samples.description == "10 images in pictures"
    assert not samples.synthetic
    assert not samples.skipped


def test_of_many_images_evenly_spaced_ones_are_taken(folder):
    samples = opened(str(folder), count=3)
    assert levels(samples) == [1, 5, 8]
    assert (samples.count, samples.steps) == (3, 3)
    assert samples.description == "3 of 10 images in pictures"


def test_how_images_are_prepared_is_told_unless_all_samples_are_arrays(folder, tmp_path):
    prepared = PreparedImages("yolo", SIZE)
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 8, 8), np.float32))
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    for source in (folder, None, SyntheticImages("scene", 2, paint), [folder / "00.png", tmp_path / "a.npy"]):
        assert opened(source).images == prepared
    for source in (tmp_path / "a.npy", [tmp_path / "a.npy", tmp_path / "a.npz"], [np.zeros((3, 8, 8), np.float32)]):
        assert opened(source).images is None


def test_no_count_takes_all(folder):
    assert len(levels(opened(folder, count=None))) == 10


@given(total=st.integers(1, 400), count=st.integers(1, 400))
def test_spread_is_even(total, count):
    chosen = samples.spread(range(total), count)
    assert len(chosen) == min(total, count)
    gaps = np.diff([-1, *chosen, total])
    if len(chosen) < total:
        assert gaps.min() >= 1
        assert np.ptp(gaps[1:-1]) <= 1 if len(gaps) > 2 else True
        assert abs(gaps[0] - gaps[-1]) <= 1


def test_several_sources_are_one_without_duplicates(folder, tmp_path):
    paint(tmp_path / "more" / "20.png", 20)
    samples = opened([folder, folder / "03.png", f"{folder}/../pictures/04.png", str(tmp_path / "more")])
    assert sorted(levels(samples)) == [*range(10), 20]
    assert samples.description == "11 images in pictures, more"


def test_many_sources_are_described_shortly(tmp_path):
    for name in "abcde":
        paint(tmp_path / name / "1.png")
    assert opened([tmp_path / name for name in "abcde"]).description == "5 images in a, b, c and 2 more"


def test_the_choice_does_not_depend_on_the_order_of_a_list(folder):
    names = [f"{level:02}.png" for level in range(10)]
    chosen = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        (folder / "list.txt").write_text("\n".join(names + names[:4]))
        chosen.append(levels(opened(folder / "list.txt", count=4)))
    assert chosen[0] == chosen[1] == chosen[2] == levels(opened(folder, count=4))


def test_no_readable_image_is_an_error(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    samples = opened(tmp_path)
    samples.require_any()
    assert drawn(samples) == [None, None]
    with pytest.raises(DataError, match=r"^none of the 2 images could be read; first: .*a\.png: cannot be read"):
        samples.require_any()


def test_without_data_there_are_scenes():
    samples = opened(None, count=3)
    assert samples.synthetic
    assert samples.description == "3 synthetic scenes"
    assert (samples.count, samples.steps) == (3, 3)
    for index, sample in enumerate(drawn(samples)):
        assert (sample.feed["x"] == YOLO(dead_leaves_image(index, SIZE), SIZE)[0]).all()


@pytest.mark.parametrize("count", [100, None])
def test_there_are_not_more_scenes_than_it_takes(count):
    assert opened(None, count=count).count == SCENE_COUNT


@pytest.mark.parametrize(("count", "wanted"), [(3, 3), (100, 5), (None, 5)])
def test_pictures_that_are_painted(count, wanted):
    grey = SyntheticImages("grey picture", 5, lambda index: np.full((*SIZE, 3), 10 * index, np.uint8))
    samples = opened(grey, batched(2), count=count)
    assert (samples.count, samples.description) == (wanted, f"{wanted} grey pictures")
    assert not samples.synthetic
    assert samples.files == ()
    assert levels(samples) == [10 * index for index in range(wanted)]


def test_images_and_arrays_together(folder, tmp_path):
    np.save(tmp_path / "z.npy", arrays(2))
    samples = opened([folder, tmp_path / "z.npy"])
    assert levels(samples) == [*range(10), 0, 1]
    assert samples.description == "12 samples in pictures, z.npy"


@pytest.mark.parametrize("source", [5, 1.5, object()])
def test_an_unknown_type(source):
    with refused(f"data of type {type(source).__name__}: give an image folder"):
        opened(source)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one(count, folder):
    with pytest.raises(ConfigError, match=f"{count} calibration samples: take at least 1"):
        opened(folder, count=count)
