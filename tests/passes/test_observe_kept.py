"""What is finished when a pool is lost is kept, and the next run continues from it."""

import json

import numpy as np
import pytest
from cut_pool import Cut, Losing
from graphs import csp, feed, planned
from PIL import Image

from onnxq.calibration.array_files import write_archive
from onnxq.calibration.samples import open_samples
from onnxq.calibration.statistics_file import save_statistics
from onnxq.errors import ConfigError, DataError
from onnxq.facts import InputSummary, Probe, Statistics
from onnxq.passes.observe import Observe
from onnxq.pipeline import Pipeline
from onnxq.runtime.pool import IN_PROCESS
from onnxq.targets import OPENVINO
from onnxq.yolo.preprocess import YOLO

STEPS = 40

CUTS = range(0, STEPS, 3)


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures, one of which cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(STEPS):
        # Those of few levels are blank, though the pictures together have not many more.
        values = rng.integers(100, 140 if number % 5 else 108, (20, 30, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{number:02}.png")
    (folder / "07.png").write_text("no picture")
    return folder


def opened(source):
    inputs = {"images": ((1, 3, 32, 32), np.float32)}
    return open_samples(source, inputs=inputs, image_input="images", size=(32, 32), preprocess=YOLO)


def observed(source, pool, progress=None, model=None):
    """The bytes of the calibration file, and all else that is found."""
    working, plan = planned(model or csp(), OPENVINO)
    data = opened(source)
    step = Observe(data, progress or (lambda *_: None), every_conv=True, pool=pool)
    facts = Pipeline([step], pinned=[plan]).run(working)
    return facts[Statistics], facts[Probe], facts[InputSummary], data.unreadable


def as_bytes(found, path):
    save_statistics(found[0], path)
    probe = [{name: values.tobytes() for name, values in each.items()} for each in found[1].feeds]
    return path.read_bytes(), probe, *found[2:]


def test_the_next_run_continues_with_the_same_bytes(pictures, tmp_path):
    whole = as_bytes(observed(str(pictures), IN_PROCESS), tmp_path / "whole.npz")
    kept = tmp_path / "kept.npz"
    first, second = Losing(4, kept, CUTS), Losing(3, kept, range(0, STEPS, 2), seed=5)
    for pool in (first, second):
        with pytest.raises(ConfigError) as caught:
            observed(str(pictures), pool)
        assert caught.value.args[:2] == ("the connection was lost", "a second line")
        assert f"of {STEPS} samples are finished, and kept in {kept}: run the same again" in caught.value.args[2]
        assert kept.exists()
    last, told = Losing(None, kept, CUTS), []
    found = as_bytes(observed(str(pictures), last, lambda *what: told.append(what)), tmp_path / "last.npz")
    assert found == whole
    assert not kept.exists()
    steps = [k for pool in (first, second, last) for chunk in pool.done for k in range(chunk.start, chunk.stop)]
    assert sorted(steps) == list(range(STEPS))
    assert told[-1] == ("calibrating", STEPS, STEPS)
    assert min(done for _, done, _ in told) > STEPS - sum(chunk.stop - chunk.start for chunk in last.done)


def test_equal_sums_are_kept_with_equal_bytes(pictures, tmp_path):
    kept = []
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ConfigError):
            observed(str(pictures), Losing(4, tmp_path / name, CUTS))
        kept.append((tmp_path / name).read_bytes())
    assert kept[0] == kept[1]


@pytest.mark.parametrize("what", ["a picture", "another picture", "the model", "the version"])
def test_what_is_stale_is_done_again(pictures, tmp_path, what, monkeypatch):
    kept = tmp_path / "kept.npz"
    with pytest.raises(ConfigError):
        observed(str(pictures), Losing(4, kept, CUTS))
    model = csp()
    if what == "a picture":
        Image.new("RGB", (9, 9), "red").save(pictures / "05.png")
    elif what == "another picture":
        Image.new("RGB", (9, 9), "red").save(pictures / "more.png")
    elif what == "the model":
        model = planned(csp(), OPENVINO)[0].to_proto()
        weights = next(each for each in model.graph.initializer if len(each.dims) == 4)
        weights.raw_data = np.full(weights.dims, 0.1, np.float32).tobytes()
    else:
        monkeypatch.setattr("onnxq.calibration.kept_sums.VERSION", "0")
    whole = as_bytes(observed(str(pictures), IN_PROCESS, model=model), tmp_path / "whole.npz")
    pool = Losing(None, kept, CUTS)
    assert as_bytes(observed(str(pictures), pool, model=model), tmp_path / "again.npz") == whole
    assert len(pool.done) == len(pool.chunks(whole[2].samples + 1))
    assert not kept.exists()


def test_nothing_is_kept_of_nothing(pictures, tmp_path):
    with pytest.raises(ConfigError) as caught:
        observed(str(pictures), Losing(0, tmp_path / "kept.npz", CUTS))
    assert len(caught.value.args) == 2
    assert not (tmp_path / "kept.npz").exists()


def test_arrays_are_known_by_their_values(tmp_path):
    kept = tmp_path / "kept.npz"
    feeds = [feed(csp(), k) for k in range(STEPS)]
    whole = as_bytes(observed(feeds, IN_PROCESS), tmp_path / "whole.npz")
    with pytest.raises(ConfigError):
        observed(feeds, Losing(4, kept, CUTS))
    last = Losing(None, kept, CUTS)
    assert as_bytes(observed([feed(csp(), k) for k in range(STEPS)], last), tmp_path / "last.npz") == whole
    assert len(last.done) < len(last.chunks(STEPS))


def test_a_file_that_is_no_such_file_is_refused(pictures, tmp_path):
    kept = tmp_path / "kept.npz"
    kept.write_text("notes of mine")
    with pytest.raises(DataError, match=r"kept.npz: is no file of finished samples \(.*\); remove it, and run this"):
        observed(str(pictures), Losing(None, kept, CUTS))
    assert kept.read_text() == "notes of mine"


def test_histograms_that_no_values_make_are_refused(pictures, tmp_path):
    kept = tmp_path / "kept.npz"
    with pytest.raises(ConfigError):
        observed(str(pictures), Losing(4, kept, CUTS))
    with np.load(kept) as archive:
        arrays = {name: archive[name] for name in archive.files}
    counts = {name: values for name, values in arrays.items() if values.ndim == 1 and name != "header"}
    changed = {name: -values.astype(np.int64) for name, values in counts.items() if values.dtype.kind in "ui"}
    write_archive(kept, arrays | changed)
    with pytest.raises(DataError, match=r"kept.npz: is no file of finished samples \(has counts below 0"):
        observed(str(pictures), Losing(None, kept, CUTS))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("_checksums", {"list": [{"list": []}]}),
        ("_spans", {"list": [{"tuple": ["wide", "a.png"]}]}),
        ("_feeds", {"dict": [["0", None]]}),
        ("_low", "low"),
        ("samples", "3"),
        ("unreadable", {"dict": [["a.png", None]]}),
        ("done", {"list": [{"tuple": [0, 3, 6]}]}),
    ],
)
def test_attributes_of_other_types_are_refused(pictures, tmp_path, attribute, value):
    kept = tmp_path / "kept.npz"
    with pytest.raises(ConfigError):
        observed(str(pictures), Losing(2, kept, CUTS))
    with np.load(kept) as archive:
        arrays = {name: archive[name] for name in archive.files}
    content = json.loads(arrays["header"].tobytes())
    sums = dict(content["state"]["state"]["dict"])
    where = sums["inputs"]["state"]["dict"] if attribute.startswith("_") else content["state"]["state"]["dict"]
    [item] = [item for item in where if item[0] == attribute]
    item[1] = value
    write_archive(kept, arrays | {"header": np.frombuffer(json.dumps(content).encode(), np.uint8)})
    with pytest.raises(DataError, match=r"kept.npz: is no file of finished samples"):
        observed(str(pictures), Losing(None, kept, CUTS))


def test_blank_pictures_are_those_of_one_process(pictures):
    alone, cut = (observed(str(pictures), pool)[2] for pool in (IN_PROCESS, Cut([9])))
    assert alone.blank > 0
    assert cut == alone
