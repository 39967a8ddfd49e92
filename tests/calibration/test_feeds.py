"""Checks of samples against the inputs of a model, and batches."""

from pathlib import Path

import numpy as np
import pytest
from calibration_data import IMAGE, arrays, batched, drawn, feeds, levels, opened, refused
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import DataError


def test_a_lone_array_of_an_npz_may_have_any_name(tmp_path):
    np.savez(tmp_path / "a.npz", arrays(2))
    assert levels(opened(tmp_path / "a.npz")) == [0, 1]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_cast(tmp_path, given, order):
    np.save(tmp_path / "a.npy", np.asarray(np.ones((2, 3, 8, 8)), dtype=given, order=order))
    array = drawn(opened(tmp_path / "a.npy"))[0].feed["x"]
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert (array == 1).all()


@pytest.mark.parametrize("given", [np.uint16, np.uint32])
def test_whole_numbers_that_the_type_of_the_input_cannot_hold_are_refused(given):
    inputs = (("x", (None, 3, 8, 8), np.uint8),)
    bright = np.full((1, 3, 8, 8), 255, given)
    assert drawn(opened([bright], *inputs))[0].feed["x"].max() == 255
    bright[0, 0, 0, 0] = 256
    with refused("takes uint8, and has values from 255 to 256: scale them"):
        drawn(opened([bright], *inputs))


def test_a_generator_may_fill_the_same_array_again():
    def generate():
        buffer = np.empty((1, 3, 8, 8), np.float32)
        for array in arrays(3):
            buffer[:] = array
            yield {"x": buffer}

    assert levels(opened(generate())) == [0, 1, 2]
    loaders = list(opened(generate()).loaders)
    assert [round(float(loader().feed["x"].max()) * 255) for loader in loaders] == [0, 1, 2]


def test_an_input_without_a_batch_is_shared():
    inputs = (("x", (None, 3, 8, 8), np.float32), ("limit", (), np.float32))
    samples = drawn(opened([{"limit": 0.5, "x": arrays(2)}], *inputs))
    assert [sample.feed["limit"].tolist() for sample in samples] == [0.5, 0.5]
    assert all(next(iter(sample.feed)) == "x" for sample in samples)


@pytest.mark.parametrize("batch", [1, None, 4])
@given(cuts=st.lists(st.integers(1, 8), unique=True))
def test_how_data_is_batched_makes_no_difference(batch, cuts):
    data = [{"x": part} for part in np.split(arrays(9), sorted(cuts))]
    expected = drawn(opened(feeds(9), batched(batch)))
    got = drawn(opened(data, batched(batch)))
    assert [sample.valid for sample in got] == [sample.valid for sample in expected]
    assert all((a.feed["x"] == b.feed["x"]).all() for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("kind", ["images", "npy", "feeds", "scenes"])
def test_a_fixed_batch_is_filled_with_the_last_sample(kind, folder, tmp_path):
    np.save(tmp_path / "a.npy", arrays(10))
    source = {"images": folder, "npy": tmp_path / "a.npy", "feeds": feeds(10), "scenes": None}[kind]
    samples = opened(source, batched(4), count=10)
    got = drawn(samples)
    assert [sample.valid for sample in got] == [4, 4, 2]
    assert all(sample.feed["x"].shape == (4, 3, 8, 8) for sample in got)
    assert (got[2].feed["x"][1:] == got[2].feed["x"][1]).all()
    if kind != "scenes":
        assert levels(samples) == list(range(10))
    if kind != "feeds":
        assert (samples.count, samples.steps) == (10, 3)


def test_a_fixed_batch_does_without_its_unreadable_images(folder):
    for name in ("01.png", "04.png", "05.png", "06.png", "07.png"):
        (folder / name).write_bytes(b"no image")
    got = drawn(opened(folder, batched(4)))
    assert [sample and sample.valid for sample in got] == [3, None, 2]


def test_a_fixed_batch_is_drawn_no_further_than_it_needs():
    pulled = []
    source = (pulled.append(k) or feed for k, feed in enumerate(feeds(9)))
    next(iter(opened(source, batched(4)).loaders))
    assert pulled == [0, 1, 2, 3]


def test_a_shared_input_is_not_stacked():
    inputs = (batched(2), ("limit", (1,), np.float32), ("scale", (2, 5), np.float32))
    source = [{"x": arrays(1), "limit": np.ones(1), "scale": np.ones((1, 5))}] * 3
    feed = drawn(opened(source, *inputs))[-1].feed
    assert {name: array.shape for name, array in feed.items()} == {"x": (2, 3, 8, 8), "limit": (1,), "scale": (2, 5)}


def test_feeds_of_a_dynamic_size():
    dynamic = ("x", (None, 3, None, None), np.float32)
    source = [{"x": np.zeros((1, 3, 8, 8))}, {"x": np.zeros((1, 3, 4, 16))}]
    assert [sample.feed["x"].shape for sample in drawn(opened(source, dynamic))] == [(1, 3, 8, 8), (1, 3, 4, 16)]


def test_an_npz_with_other_names(tmp_path):
    np.savez(tmp_path / "a.npz", images=arrays(1), labels=np.zeros(1))
    with refused("a.npz: has images, labels, the model's inputs are x; give the arrays these names"):
        opened(tmp_path / "a.npz")


def test_an_npy_for_a_model_with_several_inputs(tmp_path):
    np.save(tmp_path / "a.npy", arrays(1))
    with refused("has x, the model's inputs are x, y; give the arrays these names"):
        opened(tmp_path / "a.npy", IMAGE, ("y", (1,), np.float32))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 3, 8, 9), (8, 8), (2, 2, 3, 8, 8), ()])
def test_arrays_of_the_wrong_shape(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    text = ", ".join(map(str, shape))
    with refused(f"a.npy: input x has shape ({text}), not (?, 3, 8, 8); resize, transpose or split"):
        opened(tmp_path / "a.npy")
    with refused(f"item 1 of the data: input x has shape ({text})"):
        drawn(opened([{"x": np.zeros(shape, np.float32)}]))


def test_inputs_with_different_numbers_of_samples(tmp_path):
    np.savez(tmp_path / "a.npz", x=arrays(3), y=np.zeros((2, 5), np.float32))
    with refused("input y has shape (2, 5), not (3, 5)"):
        opened(tmp_path / "a.npz", IMAGE, ("y", (1, 5), np.float32))


def test_arrays_of_no_samples(tmp_path):
    np.save(tmp_path / "a.npy", arrays(0))
    with refused("a.npy: holds no samples; leave it out"):
        opened(tmp_path / "a.npy")


def test_uint8_values_are_not_scaled_by_guess(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 8, 8), np.uint8))
    message = "input x takes float32, values 0-255 as uint8: scale them as the model expects"
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "a.npy")
    with pytest.raises(DataError, match=message):
        drawn(opened([np.zeros((1, 3, 8, 8), np.uint8)]))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(np.int64, np.float32), (bool, np.float32), (np.float32, np.uint8), (complex, np.float32), ("U3", np.float32)],
)
def test_values_of_another_kind(given, wanted):
    with pytest.raises(DataError, match=f"takes {np.dtype(wanted)}, not .*: convert it as the model expects"):
        drawn(opened([np.zeros((1, 3, 8, 8), given)], ("x", (1, 3, 8, 8), wanted)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_the_sample(tmp_path, value):
    array = arrays(3)
    array[1, 2, 3, 4] = value
    np.save(tmp_path / "a.npy", array)
    with refused("a.npy, sample 1: input x has NaN or infinite values; repair it or leave it out"):
        drawn(opened(tmp_path / "a.npy"))
    with refused("item 2 of the data: input x has NaN or infinite values"):
        drawn(opened(list(array)))


def test_values_too_large_for_half_precision():
    with refused("NaN or infinite"):
        drawn(opened([np.full((1, 3, 8, 8), 1e6)], ("x", (1, 3, 8, 8), np.float16)))


@pytest.mark.parametrize("feed", [{}, {"y": 1}, {"x": arrays(1), "y": 1}])
def test_feeds_with_other_names(feed):
    given = ", ".join(feed) or "nothing"
    with refused(f"item 1 of the data: has {given}, the model's inputs are x; give the arrays these names"):
        drawn(opened([feed]))


@pytest.mark.parametrize("item", ["a.png", Path("a.png"), (arrays(1), 3), None])
def test_items_that_are_no_feeds(item):
    with refused(f"item 1 of the data is a {type(item).__name__}; give {{input name: array}} for x"):
        drawn(opened(item for item in [item]))


def test_bare_arrays_for_a_model_with_several_inputs():
    with refused("item 1 of the data is a bare array; give {input name: array} for x, y"):
        drawn(opened([arrays(1)], IMAGE, ("y", (1,), np.float32)))


def test_samples_of_different_sizes_in_one_batch():
    source = [np.zeros((1, 3, 8, 8)), np.zeros((1, 3, 4, 8))]
    with refused("(1, 3, 4, 8) and (1, 3, 8, 8) cannot be run in one batch of 2; give all the"):
        drawn(opened(source, ("x", (2, 3, None, None), np.float32)))
