import io
import itertools
import json
import math
import os
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from onnxq import memory
from onnxq.calibration.statistics_file import load_statistics, save_statistics
from onnxq.errors import ConfigError, DataError
from onnxq.facts import PreparedImages, Statistics
from onnxq.numerics.channel_statistics import ChannelStatistics
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.input_covariance import InputCovariance


def histogram(*values, floor=-math.inf):
    made = Histogram(floor)
    made.add(np.asarray(values, np.float32))
    return made


def statistics(order=1):
    histograms = {
        "images": histogram(0.0, 0.5, 1.0),
        "conv/out": histogram(-40.0, 3.0, 7.5, floor=-10.0),
        "größe": histogram(-1e-20, 1e20),
        "never seen": Histogram(),
    }
    rng = np.random.default_rng(0)
    channels = {
        name: ChannelStatistics(*(rng.normal(size=n) for n in (c, c, c, c // 2)))
        for name, c in (("images", 3), ("größe", 8))
    }
    shared = InputCovariance(rng.normal(size=(1, 27, 27)).astype(np.float32), np.ones((1, 1)))
    blocks = InputCovariance(rng.normal(size=(2, 40, 40)).astype(np.float32), rng.normal(size=(9, 9)))
    inputs = {"conv0": shared, "conv1": shared, "stem/conv": blocks}
    migration = {name: np.exp(rng.normal(size=c)).astype(np.float32) for name, c in (("conv/out", 5), ("größe", 8))}
    parts = (dict(list(d.items())[::order]) for d in (histograms, channels, inputs, migration))
    histograms, channels, inputs, migration = parts
    images = PreparedImages("bgr,0-1,centred", (32, 64))
    return Statistics(histograms, 17, "abc123", channels, inputs, migration, images)


def same(first, second):
    return (
        first.samples == second.samples
        and first.digest == second.digest
        and first.images == second.images
        and first.histograms.keys() == second.histograms.keys()
        and all(vars_of(h) == vars_of(second.histograms[n]) for n, h in first.histograms.items())
        and arrays_of(first) == arrays_of(second)
    )


def arrays_of(found):
    channels = {(name, kind): array for name, c in found.channels.items() for kind, array in vars(c).items()}
    return {key: (array.tobytes(), array.dtype, array.shape) for key, array in {**channels, **_named(found)}.items()}


def _named(found):
    inputs = {(name, kind): array for name, c in found.inputs.items() for kind, array in vars(c).items()}
    return {**inputs, **{("migration", name): array for name, array in found.migration.items()}}


def vars_of(h):
    return h.counts.tobytes(), h.counts.dtype, h.exponent, h.start, h.low, h.high, h.floor


def rewritten(path, **members):
    """The bytes of a saved file with some of its arrays replaced, or left out where they are None."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update(members)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def header(path):
    with np.load(path) as archive:
        return json.loads(archive["header"].tobytes())


def as_bytes(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def test_what_was_saved_is_loaded(tmp_path):
    save_statistics(statistics(), tmp_path / "a.npz")
    assert same(load_statistics(tmp_path / "a.npz"), statistics())


def test_a_difference_would_be_seen():
    # Of the helper above.
    changed = statistics()
    changed.histograms["images"].add(np.float32([0.5]))
    assert not same(changed, statistics())
    assert not same(replace(statistics(), digest="other"), statistics())
    for kind in ("channels", "inputs"):
        assert not same(replace(statistics(), **{kind: {}}), statistics())
    assert not same(
        replace(statistics(), inputs={**statistics().inputs, "conv0": statistics().inputs["stem/conv"]}), statistics()
    )
    assert not same(Statistics({}, 17, "abc123"), statistics())
    assert not same(replace(statistics(), images=None), statistics())


def test_of_arrays_nothing_is_said_of_images(tmp_path):
    save_statistics(replace(statistics(), images=None), tmp_path / "a.npz")
    assert header(tmp_path / "a.npz")["images"] is None
    assert load_statistics(tmp_path / "a.npz").images is None


def test_without_any_tensor(tmp_path):
    save_statistics(Statistics({}, digest="x"), tmp_path / "a.npz")
    assert same(load_statistics(tmp_path / "a.npz"), Statistics({}, digest="x"))


def test_counting_can_go_on_after_loading(tmp_path):
    save_statistics(statistics(), tmp_path / "a.npz")
    loaded = load_statistics(tmp_path / "a.npz").histograms["conv/out"]
    expected = statistics().histograms["conv/out"]
    for h in (loaded, expected):
        h.add(np.float32([-500, 3, 200]))
    assert vars_of(loaded) == vars_of(expected)


def test_two_runs_merge_to_what_one_run_over_both_would_have_seen(tmp_path):
    one, other = histogram(1, 2, 3), histogram(-200, 9)
    save_statistics(Statistics({"x": one}), tmp_path / "a.npz")
    merged = load_statistics(tmp_path / "a.npz").histograms["x"]
    merged.merge(other)
    assert vars_of(merged) == vars_of(histogram(1, 2, 3, -200, 9))


def test_same_statistics_same_bytes_whatever_the_order_and_the_time(tmp_path, monkeypatch):
    save_statistics(statistics(), tmp_path / "a.npz")
    clock = itertools.count(1_900_000_000, 86_400)
    monkeypatch.setattr("time.time", lambda: next(clock))
    save_statistics(statistics(order=-1), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_other_statistics_other_bytes(tmp_path):
    save_statistics(statistics(), tmp_path / "a.npz")
    changed = statistics()
    changed.histograms["images"].add(np.float32([0.5]))
    save_statistics(changed, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "b.npz").read_bytes()


def test_the_file_is_small(tmp_path):
    save_statistics(Statistics({f"tensor{n}": histogram(n, -n, n / 3) for n in range(200)}), tmp_path / "a.npz")
    assert (tmp_path / "a.npz").stat().st_size < 50_000


def test_numpy_reads_the_file(tmp_path):
    save_statistics(statistics(), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["counts"].shape == (4, 2048)
        assert archive["pair_peaks_0"].shape == (4,)  # in the order of the header: größe, images
        assert archive["covariance_0"].shape == (1, 27, 27)  # conv0 and conv1 share it
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match=r"pipe\.npz: is a pipe, a socket or a device; give a file"):
        load_statistics(tmp_path / "pipe.npz")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz: no such calibration file; make one with --save-calibration"):
        load_statistics(tmp_path / "none.npz")


@pytest.mark.parametrize("content", [b"hello", b"\x93NUMPY\x01\x00", b"\x80\x04."])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not a calibration file written by --save-calibration"):
        load_statistics(tmp_path / "a.npz")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a calibration file"):
        load_statistics(tmp_path)


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match="not a calibration file"):
        load_statistics(tmp_path / "a.npy")


def test_other_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 3, 8, 8)))
    with pytest.raises(DataError, match="not a calibration file"):
        load_statistics(tmp_path / "a.npz")


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    save_statistics(statistics(), path)
    content = path.read_bytes()
    for length in range(0, len(content), 61):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="not a calibration file"):
            load_statistics(path)


def test_a_damaged_file_is_refused_or_the_damage_does_no_harm(tmp_path):
    path = tmp_path / "a.npz"
    save_statistics(statistics(), path)
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 41):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            assert same(load_statistics(path), statistics())
        except DataError:
            refused += 1
    assert refused > 20


def test_another_format_asks_for_a_new_calibration(tmp_path):
    path = tmp_path / "a.npz"
    save_statistics(statistics(), path)
    assert header(path)["format"] == "onnxq calibration 4"
    path.write_bytes(rewritten(path, header=as_bytes(header(path) | {"format": "onnxq calibration 0"})))
    with pytest.raises(
        DataError, match="is 'onnxq calibration 0', this onnxq reads 'onnxq calibration 4'; calibrate again"
    ):
        load_statistics(path)


@pytest.mark.parametrize(
    "members",
    [
        {"counts": None},
        {"header": None},
        {"counts": np.zeros((2, 2048), np.int64)},
        {"pair_peaks_1": None},
        {"covariance_0": None},
        {"taps_1": None},
        {"migration_1": None},
        {"migration_0": np.array([1, 0, 2], np.float32)},
        {"migration_0": np.array([1, -1, 2], np.float32)},
        {"header": as_bytes([1, 2])},
        {"header": as_bytes({})},
        {"header": np.frombuffer(b"{", np.uint8)},
        {"header": np.frombuffer(b"\xff\xfe", np.uint8)},
    ],
)
def test_a_file_that_lacks_something_is_refused(tmp_path, members):
    path = tmp_path / "a.npz"
    save_statistics(statistics(), path)
    path.write_bytes(rewritten(path, **members))
    with pytest.raises(DataError, match="not a calibration file"):
        load_statistics(path)


@pytest.mark.parametrize("member", ["peaks_0", "pair_peaks_1", "variances_1", "covariance_0", "taps_1", "migration_0"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused(tmp_path, member, value):
    path = tmp_path / "calibration.npz"
    save_statistics(statistics(), path)
    with np.load(path) as archive:
        damaged = archive[member].copy()
    damaged.flat[-1] = value
    path.write_bytes(rewritten(path, **{member: damaged}))
    with pytest.raises(DataError, match="not a calibration file written by --save-calibration"):
        load_statistics(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": -1}, "Expected `int` >= 0 - at `$.samples`"),
        ({"samples": True}, "Expected `int`, got `bool` - at `$.samples`"),
        ({"digest": 3}, "Expected `str`, got `int` - at `$.digest`"),
        ({"more": 1}, "Object contains unknown field `more`"),
        ({"images": "yolo"}, "Expected `object | null`, got `str` - at `$.images`"),
        ({"images": {"preprocess": "yolo", "size": [0, 8]}}, "Expected `int` >= 1 - at `$.images.size[0]`"),
        ({"images": {"preprocess": "yolo", "size": [8]}}, "Expected `array` of length 2, got 1 - at `$.images.size`"),
        ({"images": {"preprocess": "yuv", "size": [8, 8]}}, "preprocess: 'yuv' is unknown"),
        ({"images": {"preprocess": "auto", "size": [8, 8]}}, "preprocess 'auto' is not in its usual form"),
        ({"channels": ["images", 3]}, "Expected `str`, got `int` - at `$.channels[1]`"),
        ({"channels": ["images", "images"]}, "a name comes twice"),
        ({"inputs": "stem"}, "Expected `object`, got `str` - at `$.inputs`"),
    ],
)
def test_a_header_that_was_changed(tmp_path, change, said):
    path = tmp_path / "a.npz"
    save_statistics(statistics(), path)
    path.write_bytes(rewritten(path, header=as_bytes(header(path) | change)))
    with pytest.raises(DataError, match=re.escape(said)):
        load_statistics(path)


@pytest.mark.parametrize(
    "change",
    [
        {"exponent": -59}, {"exponent": 2**40}, {"exponent": 1.5}, {"start": 7}, {"start": None}, {"low": 3.0},
        {"low": math.nan}, {"high": -math.inf}, {"high": 1e308}, {"high": 0.9}, {"floor": math.nan}, {"floor": 5.0},
        {"name": "conv/out"}, {"name": ["images"]}, {"low": math.inf, "high": -math.inf},
    ],
    ids=str,
)  # fmt: skip
def test_a_histogram_that_no_values_make(tmp_path, change):
    path = tmp_path / "a.npz"
    save_statistics(statistics(), path)
    changed = header(path)
    next(each for each in changed["tensors"] if each["name"] == "images").update(change)
    path.write_bytes(rewritten(path, header=as_bytes(changed)))
    with pytest.raises(DataError, match="not a calibration file written by --save-calibration"):
        load_statistics(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda counts: -counts, lambda counts: counts.astype(np.float64), lambda counts: counts[:, :-1],
        lambda counts: counts + 1, lambda counts: counts * 2**62, lambda counts: counts[:, None],
    ],
)  # fmt: skip
def test_counts_that_were_changed(tmp_path, change):
    path = tmp_path / "a.npz"
    save_statistics(statistics(), path)
    with np.load(path) as archive:
        counts = archive["counts"]
    path.write_bytes(rewritten(path, counts=change(counts)))
    with pytest.raises(DataError, match="not a calibration file written by --save-calibration"):
        load_statistics(path)


@pytest.mark.parametrize(
    ("member", "change"),
    [
        ("means_0", lambda a: a[:-1]), ("pair_peaks_0", lambda a: np.append(a, 1.0)), ("peaks_1", lambda a: a[None]),
        ("variances_0", lambda a: a.astype(np.float32)), ("covariance_0", lambda a: a[:, :-1]),
        ("migration_0", lambda a: a.astype(np.float64)), ("migration_1", lambda a: a.astype(bool)),
    ],
)  # fmt: skip
def test_arrays_that_were_changed(tmp_path, member, change):
    path = tmp_path / "a.npz"
    save_statistics(statistics(), path)
    with np.load(path) as archive:
        array = archive[member]
    path.write_bytes(rewritten(path, **{member: change(array)}))
    with pytest.raises(DataError, match="not a calibration file written by --save-calibration"):
        load_statistics(path)


def test_a_file_that_no_memory_holds(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, header=as_bytes({}), counts=np.zeros((1000, 2048), np.int64))
    with memory.limited_to(10**6), pytest.raises(DataError, match=r"would take 16\.4 MB of memory"):
        load_statistics(path)


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "a.npz"
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return open, (str(ran), "w")

    np.savez(path, header=np.array([Evil()], object), counts=np.zeros((0, 1)))
    with pytest.raises(DataError, match="not a calibration file"):
        load_statistics(path)
    assert not ran.exists()


def test_a_place_that_cannot_be_written_to(tmp_path):
    with pytest.raises(ConfigError, match=r"none.a\.npz: cannot be written"):
        save_statistics(statistics(), tmp_path / "none" / "a.npz")
