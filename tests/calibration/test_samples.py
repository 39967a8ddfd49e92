import json
import logging
import random
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxq.calibration import samples
from onnxq.calibration.dead_leaves import SCENE_COUNT, SyntheticImages, dead_leaves_image
from onnxq.calibration.samples import open_samples
from onnxq.errors import ConfigError, DataError
from onnxq.yolo.preprocess import YOLO

SIZE = (8, 8)
IMAGE = ("x", (1, 3, 8, 8), np.float32)


def opened(source, *inputs, **options):
    """Open for a model with the given (name, shape, dtype) inputs, the first of which takes images."""
    inputs = inputs or (IMAGE,)
    specs = {name: (shape, dtype) for name, shape, dtype in inputs}
    return open_samples(source, inputs=specs, image_input=inputs[0][0], size=SIZE, preprocess=YOLO, **options)


def batched(batch):
    return ("x", (batch, 3, 8, 8), np.float32)


def drawn(samples):
    return [loader() for loader in samples.loaders]


def levels(samples):
    """The grey level that each of the samples was painted with, and the padding left out."""
    rows = [row for sample in drawn(samples) if sample for row in sample.feed["x"][: sample.valid]]
    return [round(float(row[0, 4, 4]) * 255) for row in rows]


def refused(message):
    """Expect a DataError that has the message in it."""
    return pytest.raises(DataError, match=re.escape(message))


def paint(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, level, level)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Ten images 00.png to 09.png; the grey level of each is its number."""
    for level in range(10):
        paint(tmp_path / "pictures" / f"{level:02}.png", level)
    return tmp_path / "pictures"


def arrays(count):
    """Float32 (count, 3, 8, 8); sample i is filled with i / 255, as a picture of level i would be."""
    return np.repeat(np.arange(count, dtype=np.float32) / 255, 3 * 8 * 8).reshape(count, 3, 8, 8)


# --- images -----------------------------------------------------------------------------------------------------------


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


def test_no_count_takes_all(folder):
    assert len(levels(opened(folder, count=None))) == 10


@given(total=st.integers(1, 400), count=st.integers(1, 400))
def test_aspread_is_even(total, count):
    chosen = samples.spread(range(total), count)
    assert len(chosen) == min(total, count)
    gaps = np.diff([-1, *chosen, total])
    if len(chosen) < total:
        assert gaps.min() >= 1
        assert np.ptp(gaps[1:-1]) <= 1 if len(gaps) > 2 else True
        assert abs(gaps[0] - gaps[-1]) <= 1


def test_subfolders_count_only_where_the_folder_has_no_images(tmp_path):
    paint(tmp_path / "a" / "1.JPG", 1)
    paint(tmp_path / "b" / "c" / "2.png", 2)
    assert levels(opened(tmp_path)) == [1, 2]
    paint(tmp_path / "3.png", 3)
    assert levels(opened(tmp_path)) == [3]


def test_hidden_files_and_other_files_in_a_folder_do_not_count(tmp_path):
    paint(tmp_path / "1.png", 1)
    paint(tmp_path / "._1.png", 2)
    (tmp_path / "labels.txt").write_text("0 1 2 3 4")
    assert levels(opened(tmp_path)) == [1]
    (tmp_path / "1.png").rename(tmp_path / ".1.png")
    paint(tmp_path / ".cache" / "3.png")
    with pytest.raises(DataError):
        opened(tmp_path)


def test_an_image_file(folder):
    samples = opened(folder / "07.png")
    assert levels(samples) == [7]
    assert samples.description == "1 image in pictures"


def test_a_glob(folder):
    samples = opened(f"{folder}/0[2-4].png")
    assert levels(samples) == [2, 3, 4]
    assert samples.description == f"3 images in {folder}/0[2-4].png"
    (folder / "note.txt").write_text("no image")
    assert len(levels(opened(f"{folder.parent}/**/*"))) == 10


def test_a_folder_whose_name_looks_like_a_glob(tmp_path):
    paint(tmp_path / "run [1]" / "4.png", 4)
    samples = opened(tmp_path / "run [1]")
    assert levels(samples) == [4]
    assert samples.description == "1 image in run [1]"


def test_several_sources_are_one_without_duplicates(folder, tmp_path):
    paint(tmp_path / "more" / "20.png", 20)
    samples = opened([folder, folder / "03.png", f"{folder}/../pictures/04.png", str(tmp_path / "more")])
    assert sorted(levels(samples)) == [*range(10), 20]
    assert samples.description == "11 images in pictures, more"


def test_many_sources_are_described_shortly(tmp_path):
    for name in "abcde":
        paint(tmp_path / name / "1.png")
    assert opened([tmp_path / name for name in "abcde"]).description == "5 images in a, b, c and 2 more"


def test_a_list_is_relative_to_itself_or_the_working_directory(folder, tmp_path, monkeypatch):
    paint(tmp_path / "elsewhere" / "30.png", 30)
    monkeypatch.chdir(tmp_path / "elsewhere")
    lines = ["# chosen by hand", "", "pictures/02.png", "./pictures/01.png ", str(folder / "05.png"), "30.png"]
    (tmp_path / "some.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    samples = opened(tmp_path / "some.txt")
    assert sorted(levels(samples)) == [1, 2, 5, 30]
    assert samples.description == "4 images in some.txt"


def test_the_choice_does_not_depend_on_the_order_of_a_list(folder):
    names = [f"{level:02}.png" for level in range(10)]
    chosen = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        (folder / "list.txt").write_text("\n".join(names + names[:4]))
        chosen.append(levels(opened(folder / "list.txt", count=4)))
    assert chosen[0] == chosen[1] == chosen[2] == levels(opened(folder, count=4))


COCO = [  # annotations, images
    ("instances_val2017.json", "val2017"),
    ("annotations/instances_val2017.json", "val2017"),
    ("annotations/instances_val2017.json", "images/val2017"),
    ("annotations/train.json", "images"),
    ("images/labels.json", "images"),
    ("val2017.json", "val2017"),
]


@pytest.mark.parametrize(("annotations", "images"), COCO)
def test_coco_annotations_name_images_in_the_usual_places(tmp_path, annotations, images):
    paint(tmp_path / images / "1.png", 1)
    paint(tmp_path / images / "2.png", 2)
    path = tmp_path / annotations
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "2.png"}], "annotations": []}))
    samples = opened(path)
    assert levels(samples) == [2]
    assert samples.description == f"1 image in {path.name}"


def test_coco_annotations_with_a_byte_order_mark(tmp_path):
    paint(tmp_path / "1.png", 1)
    text = json.dumps({"images": [{"id": 1, "file_name": "1.png"}]})
    (tmp_path / "a.json").write_text(text, "utf-8-sig")
    assert levels(opened(tmp_path / "a.json")) == [1]


def test_nothing_is_decoded_before_a_loader_is_called(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        "onnxq.calibration.readers.read_image", lambda path: read.append(path) or np.zeros((8, 8, 3), np.uint8)
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


def test_no_readable_image_is_an_error(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    samples = opened(tmp_path)
    samples.require_any()
    assert drawn(samples) == [None, None]
    with pytest.raises(DataError, match=r"^none of the 2 images could be read; first: .*a\.png: cannot be read"):
        samples.require_any()


def test_missing_files_of_a_list_are_named_and_skipped(folder, caplog):
    (folder / "list.txt").write_text("\n".join(["02.png", *(f"no{k}.png" for k in range(5))]))
    samples = opened(folder / "list.txt")
    assert levels(samples) == [2]
    assert samples.count == 1
    assert list(samples.skipped) == [f"no{k}.png" for k in range(5)]
    assert samples.skipped["no0.png"] == f"{folder}/list.txt names it, and it does not exist"
    assert f"{folder}/list.txt: 5 of its 6 files do not exist: no0.png, no1.png, no2.png and 2 more" in caplog.text


# --- scenes -----------------------------------------------------------------------------------------------------------


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


# --- arrays -----------------------------------------------------------------------------------------------------------


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


def test_a_lone_array_of_an_npz_may_have_any_name(tmp_path):
    np.savez(tmp_path / "a.npz", arrays(2))
    assert levels(opened(tmp_path / "a.npz")) == [0, 1]


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


def test_images_and_arrays_together(folder, tmp_path):
    np.save(tmp_path / "z.npy", arrays(2))
    samples = opened([folder, tmp_path / "z.npy"])
    assert levels(samples) == [*range(10), 0, 1]
    assert samples.description == "12 samples in pictures, z.npy"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_cast(tmp_path, given, order):
    np.save(tmp_path / "a.npy", np.asarray(np.ones((2, 3, 8, 8)), dtype=given, order=order))
    array = drawn(opened(tmp_path / "a.npy"))[0].feed["x"]
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert (array == 1).all()


def test_images_for_a_half_precision_model(folder):
    assert drawn(opened(folder, ("x", (1, 3, 8, 8), np.float16)))[0].feed["x"].dtype == np.float16


# --- iterables and readers --------------------------------------------------------------------------------------------


class Reader:
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


class Tensor:
    """What a tensor of another library looks like to numpy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


def feeds(count):
    return [{"x": row[None]} for row in arrays(count)]


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
    assert samples.steps == 0
    assert samples.description == f"samples of a Python {type(source).__name__}"
    assert levels(samples) == [0, 1, 2]


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


def test_a_generator_may_fill_the_same_array_again():
    def generate():
        buffer = np.empty((1, 3, 8, 8), np.float32)
        for array in arrays(3):
            buffer[:] = array
            yield {"x": buffer}

    assert levels(opened(generate())) == [0, 1, 2]
    loaders = list(opened(generate()).loaders)
    assert [round(float(loader().feed["x"].max()) * 255) for loader in loaders] == [0, 1, 2]


def test_errors_of_a_generator_stay_its_own():
    def generate():
        yield feeds(1)[0]
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="camera unplugged"):
        drawn(opened(generate()))


def test_an_input_without_a_batch_is_shared():
    inputs = (("x", (None, 3, 8, 8), np.float32), ("limit", (), np.float32))
    samples = drawn(opened([{"limit": 0.5, "x": arrays(2)}], *inputs))
    assert [sample.feed["limit"].tolist() for sample in samples] == [0.5, 0.5]
    assert all(next(iter(sample.feed)) == "x" for sample in samples)


# --- batches ----------------------------------------------------------------------------------------------------------


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


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist(tmp_path):
    with refused("nowhere: no such file or folder; check the path"):
        opened(tmp_path / "nowhere")
    with refused("no such file or folder"):
        opened("")


def test_a_folder_without_images(tmp_path):
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(DataError, match=r"has no images \(\.bmp, .*\), \.npy or \.npz files; give another folder"):
        opened(tmp_path)


def test_a_glob_without_matches(tmp_path):
    (tmp_path / "note.txt").write_text("")
    for pattern in ("*.png", "*"):
        with refused("matches no image, .npy or .npz file; check the pattern"):
            opened(f"{tmp_path}/{pattern}")


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "film.mp4").touch()
    with refused("film.mp4: unknown kind of file; give a folder or one of .bmp"):
        opened(tmp_path / "film.mp4")


@pytest.mark.parametrize("source", [5, 1.5, object()])
def test_an_unknown_type(source):
    with refused(f"data of type {type(source).__name__}: give an image folder"):
        opened(source)


def test_a_list_without_files(tmp_path):
    (tmp_path / "list.txt").write_text("\n# none\n")
    with refused("list.txt: names no files; write one path per line"):
        opened(tmp_path / "list.txt")


def test_a_list_of_missing_files_only(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\nb.png\na.png")
    with refused(f"names 2 files and none exists, such as a.png; put them in one of these folders: {tmp_path},"):
        opened(tmp_path / "list.txt")


def test_a_list_that_is_not_text(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match=r"cannot be read as a list of files \(.*\); write one path per line"):
        opened(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "text",
    ["{", pytest.param("[" * 100_000, id="too deep"), "[]", "{}", '{"images": [{"id": 1}]}', '{"images": 3}'],
)
def test_json_that_is_not_coco(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with refused("has no images with a file_name; give annotations in COCO's format"):
        opened(tmp_path / "a.json")


def test_coco_annotations_without_their_images(tmp_path):
    (tmp_path / "a_val.json").write_text(json.dumps({"images": [{"file_name": "1.png"}]}))
    (tmp_path / "val").mkdir()
    with refused(f"names 1 file and none exists, such as 1.png; put them in one of these folders: {tmp_path}"):
        opened(tmp_path / "a_val.json")


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


def test_an_npz_with_other_names(tmp_path):
    np.savez(tmp_path / "a.npz", images=arrays(1), labels=np.zeros(1))
    with refused("a.npz: has images, labels, the model's inputs are x; name the arrays so"):
        opened(tmp_path / "a.npz")


def test_an_npy_for_a_model_with_several_inputs(tmp_path):
    np.save(tmp_path / "a.npy", arrays(1))
    with refused("has x, the model's inputs are x, y; name the arrays so"):
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
    message = "input x takes float32, values 0-255 as uint8: scale them as the model wants"
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "a.npy")
    with pytest.raises(DataError, match=message):
        drawn(opened([np.zeros((1, 3, 8, 8), np.uint8)]))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(np.int64, np.float32), (bool, np.float32), (np.float32, np.uint8), (complex, np.float32), ("U3", np.float32)],
)
def test_values_of_another_kind(given, wanted):
    with pytest.raises(DataError, match=f"takes {np.dtype(wanted)}, not .*: convert it as the model wants"):
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
    with refused(f"item 1 of the data: has {given}, the model's inputs are x; name the arrays so"):
        drawn(opened([feed]))


@pytest.mark.parametrize("item", ["a.png", Path("a.png"), (arrays(1), 3), None])
def test_items_that_are_no_feeds(item):
    with refused(f"item 1 of the data is a {type(item).__name__}; give {{input name: array}} for x"):
        drawn(opened(item for item in [item]))


def test_bare_arrays_for_a_model_with_several_inputs():
    with refused("item 1 of the data is a bare array; give {input name: array} for x, y"):
        drawn(opened([arrays(1)], IMAGE, ("y", (1,), np.float32)))


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


def test_samples_of_different_sizes_in_one_batch():
    source = [np.zeros((1, 3, 8, 8)), np.zeros((1, 3, 4, 8))]
    with refused("(1, 3, 4, 8) and (1, 3, 8, 8) cannot be run in one batch of 2; give all the"):
        drawn(opened(source, ("x", (2, 3, None, None), np.float32)))


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one(count, folder):
    with pytest.raises(ConfigError, match=f"{count} calibration samples: take at least 1"):
        opened(folder, count=count)


def test_warnings_name_their_module(folder, caplog):
    (folder / "03.png").write_bytes(b"no image")
    drawn(opened(folder))
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("onnxq.calibration.readers", logging.WARNING)
    ]
