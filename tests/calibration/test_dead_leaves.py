import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibration import dead_leaves
from onnxq.calibration.dead_leaves import dead_leaves_image

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


def test_radii_fall_with_density_r_to_the_minus_three():
    radii = dead_leaves._radii(np.random.default_rng(0), 100_000, 4.0, 300.0)
    assert (np.diff(radii) <= 1e-9).all()
    assert radii.min() >= 4.0
    assert radii.max() <= 300.0
    # The share above r is (r^-2 - b^-2) / (a^-2 - b^-2).
    for r in (5, 8, 16, 50):
        expected = (r**-2 - 300**-2) / (4**-2 - 300**-2)
        assert (radii > r).mean() == pytest.approx(expected, rel=0.01)


def test_every_octave_of_radii_covers_the_same_area():
    radii = dead_leaves._radii(np.random.default_rng(0), 200_000, 4.0, 256.0)
    areas, _ = np.histogram(np.log2(radii), bins=6, range=(2, 8), weights=radii**2)
    assert areas == pytest.approx(np.full(6, areas.mean()), rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_leaves_cover_the_scene_as_often_as_meant(seed):
    radii = dead_leaves._leaves(np.random.default_rng(seed), (320, 480))
    assert np.pi * (radii**2).sum() / (320 * 480) == pytest.approx(dead_leaves._COVERAGE, rel=0.15)


def test_leaves_scale_with_the_scene():
    small, large = (dead_leaves._leaves(np.random.default_rng(0), size) for size in [(160, 160), (320, 320)])
    assert large == pytest.approx(2 * small)


@pytest.mark.parametrize("seed", range(5))
def test_radii_are_4_to_300_pixels_in_a_scene_of_640(seed):
    radii = dead_leaves._leaves(np.random.default_rng(seed), (640, 640))
    assert 4 <= radii.min() <= 25
    assert 100 < radii.max() <= 300


def test_small_leaves_lie_on_large_ones():
    labels = dead_leaves._paint(np.random.default_rng(0), np.array([200.0, 5.0]), (40, 40))
    assert set(np.unique(labels)) == {1, 2}


def test_outlines_stay_in_the_unit_circle():
    corners = np.tile(np.array(dead_leaves._CORNERS), 100)
    outlines = dead_leaves._outlines(np.random.default_rng(0), corners)
    assert outlines.shape == (len(corners), max(dead_leaves._CORNERS), 2)
    assert np.linalg.norm(outlines, axis=-1).max() <= 1 + 1e-9


def test_statistics_are_those_of_photographs(many):
    """Photographs of COCO: mean 108, deviation 70, channel correlation 0.8 to 0.9, half of all steps below 5 levels."""
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
