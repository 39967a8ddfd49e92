"""Reading of images, array files, iterables and readers."""

import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from calibration_data import IMAGE, Reader, Tensor, arrays, drawn, feeds, levels, opened, refused

from onnxq.errors import DataError


def test_nothing_is_decoded_before_a_loader_is_called(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        "onnxq.calibration.readers.ImageReader.__call__",
        lambda self, path: read.append(path) or np.zeros((8, 8, 3), np.uint8),
    )
    samples = opened(folder)
    loaders = list(samples.loaders)
    assert read == []
    loaders[4]()
    assert read == [folder / "04.png"]


def test_loaders_can_be_called_again_and_by_threads(folder):
    samples = opened(folder)
    with ThreadPoolExecutor(4) as pool:
        first = [s.feed["x"].mean() for s in pool.map(lambda load: load(), samples.loaders)]
    assert first == [s.feed["x"].mean() for s in drawn(samples)]


def test_unreadable_images_are_named_and_skipped(folder, caplog):
    (folder / "03.png").write_bytes(b"no image")
    samples = opened(folder)
    assert levels(samples) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert list(samples.unreadable) == [str(folder / "03.png")]
    assert samples.skipped == samples.unreadable
    assert samples.count == 10
    assert f"skipped {folder}/03.png" in caplog.text
    samples.require_any()


def test_warnings_name_their_module(folder, caplog):
    (folder / "03.png").write_bytes(b"no image")
    drawn(opened(folder))
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("onnxq.calibration.readers", logging.WARNING)
    ]


def test_images_for_a_half_precision_model(folder):
    assert drawn(opened(folder, ("x", (1, 3, 8, 8), np.float16)))[0].feed["x"].dtype == np.float16


def test_images_for_a_model_with_several_inputs(folder):
    inputs = (IMAGE, ("y", (1,), np.float32))
    with refused("images can feed one input only, the model has x, y; give .npz files or an it"):
        opened(folder, *inputs)
    with refused("no data is given, and synthetic scenes can feed one input only"):
        opened(None, *inputs)


def test_images_for_a_model_that_takes_none(folder):
    with refused("images: input x has shape (1, 3, 8, 8), not (?, 1, 8, 8)"):
        opened(folder, ("x", (1, 1, 8, 8), np.float32))
    with refused("images: input x takes uint8, not float32: convert it"):
        opened(folder, ("x", (1, 3, 8, 8), np.uint8))


def test_npy_of_many_samples(tmp_path):
    np.save(tmp_path / "a.npy", arrays(20))
    samples = opened(tmp_path / "a.npy", count=5)
    assert levels(samples) == [2, 6, 10, 14, 18]
    assert samples.description == "5 of 20 samples in a.npy"


def test_npy_of_one_sample_and_a_folder_of_them(tmp_path):
    for level in range(3):
        np.save(tmp_path / f"{level}.npy", arrays(3)[level])
    assert levels(opened(tmp_path / "2.npy")) == [2]
    assert levels(opened(tmp_path)) == [0, 1, 2]
    assert levels(opened(f"{tmp_path}/*.npy", count=1)) == [1]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_a_model_with_several_inputs(tmp_path, save):
    inputs = (("x", (None, 3, 8, 8), np.float32), ("scale", (None, 2), np.float32), ("limit", (1,), np.int64))
    save(tmp_path / "a.npz", limit=np.int64([7]), scale=np.ones((4, 2)), x=arrays(4), unused=np.zeros(2))
    samples = opened(tmp_path / "a.npz", *inputs)
    assert levels(samples) == [0, 1, 2, 3]
    feed = drawn(samples)[2].feed
    assert list(feed) == ["x", "scale", "limit"]
    assert feed["scale"].shape == (1, 2)
    assert feed["scale"].dtype == np.float32
    assert feed["limit"].tolist() == [7]


def test_arrays_that_no_input_takes_are_warned_of(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", x=arrays(2), labels=np.zeros(2), **{f"box{n}": np.zeros(2) for n in range(3)})
    assert levels(opened(tmp_path / "a.npz")) == [0, 1]
    said = "a.npz: labels, box0, box1 and 1 more not used, because the model's inputs are x; check the names of the"
    assert [said in record.getMessage() for record in caplog.records] == [True]


def test_arrays_that_no_input_takes_are_warned_of_once_for_all_files(tmp_path, caplog):
    for number in range(4):
        np.savez(tmp_path / f"{number}.npz", x=arrays(1), **{f"label{number % 2}": np.zeros(1)} if number else {})
    assert levels(opened(tmp_path)) == [0, 0, 0, 0]
    said = f"{tmp_path}/1.npz and 2 more files: label1, label0 not used"
    assert [said in record.getMessage() for record in caplog.records] == [True]


def test_of_arrays_for_all_inputs_nothing_is_said(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", x=arrays(1), y=np.zeros((1, 5), np.float32))
    np.savez(tmp_path / "lone.npz", anything=arrays(1))
    np.save(tmp_path / "a.npy", arrays(1))
    opened(tmp_path / "a.npz", IMAGE, ("y", (1, 5), np.float32))
    opened([tmp_path / "lone.npz", tmp_path / "a.npy"])
    assert not caplog.records


def test_an_npz_is_read_once_and_not_at_opening(tmp_path, monkeypatch):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", x=arrays(4))
    samples = opened([tmp_path / "a.npz", tmp_path / "b.npz"])
    read = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda file, **options: read.append(Path(file).name) or load(file, **options))
    loaders = list(samples.loaders)
    assert read == []
    for loader in loaders:
        loader()
    assert read == ["a.npz", "b.npz"]


def test_an_npy_is_mapped(tmp_path):
    np.save(tmp_path / "a.npy", arrays(4))
    samples = opened(tmp_path / "a.npy")
    bad = np.load(tmp_path / "a.npy", mmap_mode="r+")
    bad[3] = np.nan
    bad.flush()
    loaders = list(samples.loaders)
    assert loaders[0]().feed["x"].base is None
    with pytest.raises(DataError, match="sample 3"):
        loaders[3]()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("content", [b"", b"no arrays", b"PK\x03\x04 broken"])
def test_a_file_without_arrays(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: cannot be read as arrays \(.*\); write it with numpy.save or savez"):
        opened(tmp_path / name)


def test_arrays_of_python_objects_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with refused("cannot be read as arrays"):
        opened(tmp_path / "a.npy")


def test_a_damaged_archive_is_found_when_it_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=arrays(4))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[1000] ^= 255
    (tmp_path / "a.npz").write_bytes(whole)
    with refused("a.npz: cannot be read as arrays"):
        drawn(opened(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "source",
    [
        feeds(3),
        tuple(feeds(3)),
        (feed for feed in feeds(3)),
        list(arrays(3)),
        arrays(3),
        {"x": arrays(3)},
        [{"x": arrays(3)}],
        [{"x": Tensor(arrays(3))}],
        [Tensor(arrays(3))],
        Tensor(arrays(3)),
        Reader(feeds(3)),
        Reader(list(arrays(3))),
    ],
    ids=lambda source: type(source).__name__,
)
def test_iterables_and_readers(source):
    samples = opened(source, count=2)
    assert samples.count is None
    is_known = isinstance(source, list | tuple | dict) or hasattr(source, "__array__")
    assert samples.steps == (3 if is_known else 0)
    assert samples.description == f"samples of a Python {type(source).__name__}"
    assert levels(samples) == [0, 1, 2]


def test_steps_of_a_list_are_runs_of_the_batch():
    model = ("x", (2, 3, 8, 8), np.float32)
    assert opened(feeds(5), model).steps == 3
    assert opened(list(np.split(arrays(6), [1, 4])), model).steps == 3
    assert opened([*feeds(2), "no feed"], model).steps == 0


def test_a_list_of_feeds_can_be_gone_through_again():
    samples = opened(feeds(3))
    assert levels(samples) == levels(samples) == [0, 1, 2]


def test_a_generator_is_not_drawn_from_ahead():
    pulled = []

    def generate():
        for number, feed in enumerate(feeds(5)):
            pulled.append(number)
            yield feed

    samples = opened(generate())
    assert pulled == []
    loaders = iter(samples.loaders)
    next(loaders)
    assert pulled == [0]
    next(loaders)
    assert pulled == [0, 1]


def test_feeds_are_not_kept():
    class Watched(np.ndarray):
        pass

    kept = []

    def generate():
        for array in arrays(3):
            watched = array.copy().view(Watched)
            kept.append(weakref.ref(watched))
            yield {"x": watched}
            del watched

    loaders = iter(opened(generate()).loaders)
    next(loaders)()
    next(loaders)()
    assert kept[0]() is None


def test_errors_of_a_generator_stay_its_own():
    def generate():
        yield feeds(1)[0]
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="camera unplugged"):
        drawn(opened(generate()))


@pytest.mark.parametrize("source", [[], iter([]), Reader([])], ids=["list", "iterator", "reader"])
def test_iterables_of_nothing(source):
    kind = type(source).__name__
    with refused(f"the {kind} gave no samples; a generator or reader can be read once only"):
        drawn(opened(source))


def test_a_generator_that_was_read_before():
    samples = opened(feed for feed in feeds(2))
    drawn(samples)
    with refused("the generator gave no samples"):
        drawn(samples)


def test_data_that_gives_its_samples_once_is_told_without_reading_it(folder):
    for source in (iter(feeds(2)), (each for each in feeds(2)), map(dict, feeds(2)), Reader(feeds(2))):
        samples = opened(source)
        assert samples.is_read_once
        assert len(drawn(samples)) == 2
    for source in (feeds(2), tuple(feeds(2)), folder, None):
        samples = opened(source)
        assert not samples.is_read_once
        assert levels(samples) == levels(samples)
