"""Dead leaves: images that are the same for each seed, with the statistics of photographs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibration.dead_leaves import dead_leaves_image, develop, generator, leaves

SIZE = (160, 224)


@pytest.fixture(scope="module")
def many():
    return np.stack([dead_leaves_image(index, SIZE) for index in range(24)])


def test_a_scene_is_an_rgb_picture_of_the_size():
    picture = dead_leaves_image(0, SIZE)
    assert picture.shape == (*SIZE, 3)
    assert picture.dtype == np.uint8


def test_index_and_size_decide_the_scene():
    np.random.seed(1)
    first = dead_leaves_image(5, SIZE)
    np.random.seed(2)
    assert (first == dead_leaves_image(5, SIZE)).all()


def test_scenes_do_not_touch_the_global_random_state():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    dead_leaves_image(0, SIZE)
    assert np.random.random() == expected


def test_every_index_is_another_scene(many):
    assert len({picture.tobytes() for picture in many}) == len(many)


@settings(max_examples=15, deadline=None)
@given(index=st.integers(0, 10**6), height=st.integers(1, 90), width=st.integers(1, 90))
def test_any_index_and_size_work(index, height, width):
    assert dead_leaves_image(index, (height, width)).shape == (height, width, 3)


def extent(labels, label):
    """The longer side of the box around what is visible of a leaf, px."""
    mask = labels == label
    return max(np.ptp(np.flatnonzero(mask.any(axis=axis))) for axis in (0, 1)) + 1


def area_by_octave(labels, smallest, largest=300.0, octaves=6):
    """Share of the pixels that leaves of each octave of radii have, of those that smaller leaves leave to them.

    The radii follow from the labels: their density is ~ r^-3, and they fall.
    """
    count = labels.max()
    quantiles = (np.arange(count) + 0.5) / count
    radii = 1 / np.sqrt(largest**-2 + quantiles * (smallest**-2 - largest**-2))
    octave = np.floor(np.log2(radii / smallest)).astype(int).clip(0, octaves - 1)
    visible = np.bincount(labels.ravel(), minlength=count + 1)[1:] / labels.size
    shares = np.bincount(octave, weights=visible, minlength=octaves)
    return shares / (1 - np.cumsum(shares) + shares)


def test_every_octave_of_radii_covers_the_same_area():
    """The density of radii is ~ r^-3; with r^-2 each octave would cover twice the area of the one below it."""
    smallest = 300 / 2**6
    scenes = [leaves(generator(seed), (640, 640), (smallest, smallest)) for seed in range(4)]
    found = np.mean([area_by_octave(labels, smallest) for labels in scenes], axis=0)
    assert found[:4] == pytest.approx(np.full(4, found[:4].mean()), rel=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_leaves_cover_most_of_the_scene(seed):
    covered = (leaves(generator(seed), (320, 480)) > 0).mean()
    assert 0.5 < covered < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_leaves_scale_with_the_scene(seed):
    small, large = (leaves(generator(seed), size) for size in [(160, 160), (320, 320)])
    assert small.max() == large.max()
    assert (small == large[::2, ::2]).mean() > 0.8  # all but pixels at edges


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_leaves_have_a_radius_of_4_to_24_pixels_in_a_scene_of_640(seed):
    labels = leaves(generator(seed), (640, 640))
    last = labels.max()
    extents = [extent(labels, label) for label in range(last - 4, last + 1)]
    assert min(extents) >= 4
    assert max(extents) <= 2 * 24 + 2


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_radius_can_be_chosen(seed):
    busy, calm = (leaves(generator(seed), (640, 640), (radius, radius)) for radius in (5.0, 40.0))
    assert busy.max() > 20 * calm.max()
    assert extent(busy, busy.max()) <= 2 * 5 + 2
    assert extent(calm, calm.max()) <= 2 * 40 + 2


@pytest.mark.parametrize("seed", range(5))
def test_small_leaves_lie_on_large_ones(seed):
    labels = leaves(generator(seed), (320, 320))
    shown = np.unique(labels[labels > 0])
    sizes = [extent(labels, label) for label in (*shown[:5], *shown[-5:])]
    assert min(sizes[:5]) > max(sizes[5:])


def test_vivid_labels_have_more_colour():
    labels = np.repeat(np.arange(64, dtype=np.int32), 64).reshape(64, 64)
    colour = []
    for seed in range(8):
        image = develop(generator(seed), labels, vivid=32).astype(float)
        spread = np.ptp(image, axis=2)
        colour.append((spread[:32].mean(), spread[32:].mean()))
    plain, vivid = np.mean(colour, axis=0)
    assert vivid > 1.5 * plain


def test_an_image_is_as_much_smaller_than_its_labels_as_asked():
    labels = leaves(generator(0), (80, 120))
    assert develop(generator(1), labels, shrink=2).shape == (40, 60, 3)


def test_statistics_are_those_of_photographs(many):
    """Photographs in COCO: mean 108, deviation 70, channel correlation 0.8 to 0.9, half of all steps below 5 levels."""
    flat = many.reshape(-1, 3).astype(float)
    grey = many.mean(axis=-1)
    steps = np.abs(np.diff(grey, axis=2))
    assert 90 < flat.mean() < 135
    assert 50 < flat.std() < 80
    assert np.corrcoef(flat.T)[np.triu_indices(3, 1)].min() > 0.65
    assert np.corrcoef(flat.T)[np.triu_indices(3, 1)].max() < 0.97
    assert 2 < np.median(steps) < 12
    assert np.percentile(steps, 99) > 40


def test_the_whole_range_is_used(many):
    share = np.bincount(many.ravel(), minlength=256) / many.size
    assert share[0] > 0
    assert share[255] > 0
    assert share.min() > 0.0005
    assert share.max() < 0.05


def test_scenes_differ_in_brightness_and_contrast(many):
    grey = many.mean(axis=-1)
    assert grey.mean(axis=(1, 2)).std() > 10
    assert np.ptp(grey.std(axis=(1, 2))) > 15
