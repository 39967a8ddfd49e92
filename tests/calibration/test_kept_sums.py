import json
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from command_line import ROOT

from onnxq.calibration.array_files import write_archive
from onnxq.calibration.kept_sums import KeptSums, key_of
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError


@dataclass(frozen=True)
class Plain:
    numbers: tuple[float, ...]
    by_pair: dict


class Own:
    def __init__(self, values):
        self.values = values

    def __getstate__(self):
        return (self.values * 2,)

    def __setstate__(self, state):
        self.values = state[0] // 2


class Other:
    pass


def good(_):
    pass


@pytest.fixture
def kept(tmp_path):
    return KeptSums(tmp_path / "kept.npz", "key", (Plain, Own))


def test_an_object_comes_back_as_it_was(kept):
    plain = Plain((1.5, float("inf"), 2**70, 0.1), {("a", 1): {2: None}, (): True})
    what = [plain, Own(np.arange(3))]
    kept.save(what)
    [first, second] = kept.load(good)
    assert first == what[0]
    assert isinstance(second, Own)
    assert second.values.dtype == np.int64
    np.testing.assert_array_equal(second.values, np.arange(3))
    kept.remove()
    kept.remove()
    assert kept.load(good) is None


def test_equal_objects_give_equal_bytes(kept):
    found = []
    for _ in range(2):
        kept.save(Own(np.arange(5)))
        found.append(kept.path.read_bytes())
    assert found[0] == found[1]


def test_other_classes_are_not_written(kept):
    with pytest.raises(TypeError, match="Other is not among the classes that are kept"):
        kept.save(Other())
    assert not kept.path.exists()


def test_a_file_of_something_else_is_passed_over(kept):
    KeptSums(kept.path, "another key", (Other,)).save(Other())
    assert kept.load(good) is None


def header(**values):
    content = {"format": "onnxq finished 1", "key": "key", "state": None, **values}
    return {"header": np.frombuffer(json.dumps(content).encode(), np.uint8)}


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        (header(format="onnxq calibration 3"), "is 'onnxq calibration 3'"),
        (header(state={"class": "Other", "state": {"dict": []}}), "'Other'"),
        (header(state={"array": "a0"}), "'a0'"),
        (header(state={"class": "Own", "state": 5}), "not subscriptable"),
        (header(state={"dict": [[{"list": []}, 1]]}), "unhashable"),
        (header(state={}), "'list'"),
        ({"x": np.zeros(3)}, "header"),
    ],
)
def test_what_cannot_be_is_refused(kept, arrays, why):
    write_archive(kept.path, arrays)
    with pytest.raises(DataError, match=r"kept.npz: is no file of finished samples \(.*\); remove it") as caught:
        kept.load(good)
    assert why in str(caught.value)


def test_a_pipe_is_not_waited_for(kept):
    os.mkfifo(kept.path)
    with pytest.raises(DataError, match=r"kept.npz: is a pipe, a socket or a device; give a file"):
        kept.load(good)


def test_what_does_not_pass_the_check_is_refused(kept):
    kept.save(Own(np.arange(3)))

    def check(found):
        raise ValueError(f"has {len(found.values)} values")

    with pytest.raises(DataError, match=r"finished samples \(has 3 values\)"):
        kept.load(check)


def test_the_key_tells_all_that_matters(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(b"x")
    model, other = onnx.ModelProto(ir_version=9), onnx.ModelProto(ir_version=10)

    def made(count=2, model=model, counted="c", description="d"):
        return key_of(model, Samples((print,) * count, count, description, files=tuple(files[:count])), counted)

    keys = [made(), made(1), made(model=other), made(counted="other")]
    files[0].write_bytes(b"xy")
    keys.append(made())
    assert len(set(keys)) == 5
    assert made() == made(description="another")


KEY = """
import numpy, onnx, sys
from onnxq.calibration.kept_sums import key_of
from onnxq.calibration.samples import open_samples
from onnxq.yolo.preprocess import YOLO
inputs = {"x": ((1, 3, 8, 8), numpy.float32), "size": ((1, 2), numpy.float32)}
given = {"inputs": inputs, "image_input": "x", "size": (8, 8), "preprocess": YOLO, "companions": {"size": (8, 8)}}
print(key_of(onnx.ModelProto(), open_samples(sys.argv[1], **given).to_send(), "c"))
"""


def test_the_key_is_the_same_in_another_process(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"x")
    found = set()
    for seed in "12":
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", KEY, tmp_path]
        found.add(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == 64


def test_what_cannot_be_pickled_has_no_key():
    assert key_of(onnx.ModelProto(), Samples((lambda: None,), 1, "d"), "c") is None
