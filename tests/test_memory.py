import subprocess
import sys

import pytest

from onnxq import memory
from onnxq.errors import DataError, ModelError


def test_the_default_is_half_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUPS", ())
    machine = memory.of_machine()
    assert 10**8 < machine < 10**15
    assert memory.limit() == machine // 2


def test_a_container_has_less(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("300000000\n")
    monkeypatch.setattr(memory, "_CGROUPS", (tmp_path / "none", tmp_path / "memory.max"))
    assert memory.limit() == 150_000_000


def test_a_container_without_a_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUPS", ())
    machine = memory.of_machine()
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "_CGROUPS", (tmp_path / "memory.max",))
    assert memory.of_machine() == machine


def test_a_limit_holds_within_its_block():
    before = memory.limit()
    with memory.limited_to(7):
        assert memory.limit() == 7
        with memory.limited_to(None):
            assert memory.limit() == 7
    assert memory.limit() == before


def test_what_is_refused():
    with memory.limited_to(4_000_000):
        memory.require(4_000_000, "a.npy: its array", "use less")
        with pytest.raises(DataError) as raised:
            memory.require(4_800_000, "a.npy: its array", "use less")
        with pytest.raises(ModelError, match="node 'a'"):
            memory.require(10**300, "node 'a'", "use less", ModelError)
    assert str(raised.value) == (
        "a.npy: its array would take 4.8 MB of memory, and the limit is 4.0 MB: use less, or allow more with "
        "--max-memory"
    )


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("500M", 5 * 10**8), ("2.5G", 25 * 10**8), ("4gb", 4 * 10**9), (" 1k ", 1000)]
)
def test_sizes(text, size):
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "0.1", "1e9", "nan", "4 G", "4GiB", "9" * 40])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="expected a size as 500M or 4G"):
        memory.parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (1500, "1.5 KB"), (4_800_000_000, "4.8 GB"), (10**24, "1.0e+15 GB")]
)
def test_sizes_in_words(size, text):
    assert memory.size_text(size) == text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take freed memory back by themselves")
def test_freed_memory_goes_back_to_the_system():
    script = """
from onnxq.memory import give_back
def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS:")))
held = [bytearray(60_000) for _ in range(2000)]
last = bytearray(60_000)
del held
before = resident()
give_back()
print(before - resident())
"""
    freed = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert freed > 50_000
