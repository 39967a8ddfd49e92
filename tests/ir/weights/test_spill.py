import gc
import os
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import ConfigError
from onnxq.ir.weights.links import is_linked, values_of
from onnxq.ir.weights.spill import Spill


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_arrays_are_read_back(folder):
    spill = Spill()
    assert list(folder.iterdir()) == []
    arrays = [
        np.arange(n, dtype=kind).reshape(-1, 1) for n, kind in ((2001, np.int8), (1500, np.float32), (3, np.int64))
    ]
    arrays.append(np.arange(12, dtype=np.float32).reshape(3, 4).T)
    tensors = [spill.linked(f"w{k}", values) for k, values in enumerate(arrays)]
    for tensor, values in zip(tensors, arrays, strict=True):
        assert is_linked(tensor)
        found = values_of(tensor)
        assert found.dtype == values.dtype
        assert np.array_equal(found, values)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert int(entries["offset"]) % 64 == 0


def test_the_file_goes_with_it_and_arrays_that_are_in_use_stay(folder):
    spill = Spill()
    found = values_of(spill.linked("w", np.ones(5000, np.float32)))
    assert len(list(folder.iterdir())) == 1
    del spill
    gc.collect()
    assert list(folder.iterdir()) == []
    assert found.sum() == 5000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is missing")
def test_a_full_disk_is_told(folder, monkeypatch):
    spill = Spill()
    spill.linked("w", np.ones(5000, np.float32))
    os.unlink(spill._path)
    os.symlink("/dev/full", spill._path)
    with pytest.raises(ConfigError, match=r"cannot take temporary files .*TMPDIR"):
        spill.linked("w", np.ones(5_000_000, np.float32))


def test_arrays_behind_one_that_found_no_room_are_read_back():
    resource = pytest.importorskip("resource", reason="the system has no limit on the size of files")
    spill = Spill()
    first = spill.linked("first", np.ones(5000, np.float32))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_003, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot take temporary files .*TMPDIR"):
            spill.linked("large", np.full(50_000, 2, np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    later = spill.linked("later", np.full(5000, 3, np.float32))
    assert np.array_equal(values_of(first), np.ones(5000))
    assert np.array_equal(values_of(later), np.full(5000, 3))
