import io
import struct
import zipfile

import numpy as np
import pytest
from calibration_data import arrays, drawn, levels, opened, refused

from onnxq import memory
from onnxq.calibration.array_files import load_arrays, read_headers


def with_header(shape, descr="'<f4'", values=b"", version=(1, 0)):
    """The bytes of an array whose header says what it likes."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + values


def packed(path, content, name="x.npy"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def test_headers(tmp_path):
    np.save(tmp_path / "a.npy", arrays(3))
    np.savez_compressed(tmp_path / "b.npz", x=arrays(2), y=np.zeros((), np.int8))
    assert read_headers(tmp_path / "a.npy", "name") == {"name": ((3, 3, 8, 8), np.dtype(np.float32))}
    assert read_headers(tmp_path / "b.npz") == {
        "x": ((2, 3, 8, 8), np.dtype(np.float32)),
        "y": ((), np.dtype(np.int8)),
    }
    assert load_arrays(tmp_path / "b.npz", {"z": "x"})["z"].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize(
    "shape",
    [
        "(-1, 3, 8, 8)", "(True, 3, 8, 8)", f"({2**63}, 3, 8, 8)", f"({2**40}, 3, 8, 8)", "(100000000, 3, 8, 8)", "3",
        "(3.0,)",
    ],
)  # fmt: skip
def test_shapes_that_the_file_does_not_hold(tmp_path, suffix, shape):
    path = tmp_path / f"a.{suffix}"
    content = with_header(shape, values=bytes(768))
    path.write_bytes(content) if suffix == "npy" else packed(path, content)
    with refused(f"{path}: cannot be read as arrays ("):
        opened(path)


@pytest.mark.parametrize("descr", ["'|O'", "[('a', '<f4')]", "'|V4'", "'S0'", "'<f3'", "3", "['a', 1, {}]"])
def test_other_kinds_of_values(tmp_path, descr):
    packed(tmp_path / "a.npz", with_header("(1, 3, 8, 8)", descr, bytes(768)))
    with refused(f"{tmp_path}/a.npz"):
        opened(tmp_path / "a.npz")


@pytest.mark.parametrize("version", [(2, 0), (3, 0), (9, 9)])
def test_versions(tmp_path, version):
    (tmp_path / "a.npy").write_bytes(with_header("(1, 3, 8, 8)", values=bytes(768), version=version))
    if version == (2, 0):
        assert len(drawn(opened(tmp_path / "a.npy"))) == 1
    else:
        with refused("cannot be read as arrays"):
            opened(tmp_path / "a.npy")


def test_an_array_that_is_longer_than_its_header_says(tmp_path):
    (tmp_path / "a.npy").write_bytes(with_header("(1, 3, 8, 8)", values=bytes(769)))
    with refused("769 bytes of values, and the shape (1, 3, 8, 8) of float32 takes 768"):
        opened(tmp_path / "a.npy")


def test_zeros_are_refused_before_they_are_unpacked(tmp_path):
    rows = 3000
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((rows, 3, 8, 8), np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    with memory.limited_to(2_000_000), refused("a.npz: its arrays would take 2.3 MB of memory, and the limit is 2.0"):
        opened(tmp_path / "a.npz")
    assert len(drawn(opened(tmp_path / "a.npz", count=2))) == 2


def test_a_directory_that_states_too_much(tmp_path):
    packed(tmp_path / "a.npz", with_header("(100000, 3, 8, 8)", values=bytes(768)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 76_800_000 + 80)
    (tmp_path / "a.npz").write_bytes(content)
    with refused("x.npy cannot have the 76800080 bytes that are stated"):
        opened(tmp_path / "a.npz")


def test_an_encrypted_archive(tmp_path):
    packed(tmp_path / "a.npz", with_header("(1, 3, 8, 8)", values=bytes(768)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with refused("x.npy is encrypted"):
        opened(tmp_path / "a.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_packing(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("x.npy", with_header("(1, 3, 8, 8)", values=bytes(768)))
    with refused("packed in a way that numpy does not use"):
        opened(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_comes_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for _ in range(2):
            archive.writestr("x.npy", with_header("(1, 3, 8, 8)", values=bytes(768)))
    with refused("x is in it twice"):
        opened(tmp_path / "a.npz")


def test_many_samples_take_no_time_before_they_are_read(tmp_path):
    # A file with a hole: 40 GB of values, a few kilobytes on the disk.
    rows = 50_000_000
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (rows, 3, 8, 8)})
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(header.getvalue())
        file.truncate(len(header.getvalue()) + rows * 768)
    samples = opened(tmp_path / "a.npy", count=3)
    assert samples.description == "3 of 50000000 samples in a.npy"
    assert levels(samples) == [0, 0, 0]
