import platform
import subprocess
import sys
import warnings
from pathlib import Path

import archspec.cpu
import pytest

from onnxq.runtime import cpu
from onnxq.runtime.cpu import Cpu, kind_of, this_cpu

V3 = ["avx", "avx2", "sse4_1", "sse4_2"]
V4 = [*V3, "avx512f", "avx512bw"]


@pytest.mark.parametrize(
    ("machine", "features", "kind"),
    [
        ("x86_64", [*V4, "avx512_vnni", "amx_int8", "avx_vnni"], "AVX512-VNNI+AMX"),
        ("x86_64", [*V4, "avx512_vnni"], "AVX512-VNNI"),
        ("AMD64", V4, "AVX512 without VNNI"),
        ("x86_64", [*V3, "avx_vnni"], "AVX2-VNNI"),
        ("x86_64", V3, "AVX2 without VNNI"),
        ("x86_64", ["avx", "sse4_2"], "AVX"),
        ("x86_64", ["sse4_1", "sse4_2"], "SSE4.2"),
        ("x86_64", [], "x86_64"),
        ("aarch64", ["asimd", "asimddp", "i8mm"], "NEON-I8MM"),
        ("arm64", ["asimd", "asimddp"], "NEON-DOT"),
        ("aarch64", ["asimd"], "NEON"),
        ("aarch64", [], "aarch64"),
        ("riscv64", [], "riscv64"),
    ],
)
def test_the_kind_is_named_after_the_widest_products(machine, features, kind):
    assert kind_of(machine, features) == kind


@pytest.fixture
def fresh():
    """Look the CPU up anew, in the test and after it."""
    this_cpu.cache_clear()
    yield
    this_cpu.cache_clear()


def fails():
    raise OSError("this system does not tell")


@pytest.mark.usefixtures("fresh")
def test_what_no_system_tells_is_the_architecture(monkeypatch):
    for name in ("CpuidInfoCollector", "detected_info", "host", "brand_string"):
        monkeypatch.setattr(cpu, name, fails)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert this_cpu() == Cpu("riscv64", "riscv64")
    assert str(this_cpu()) == "riscv64"
    this_cpu.cache_clear()
    monkeypatch.setattr(platform, "machine", lambda: "")
    assert this_cpu() == Cpu("unknown", "unknown")


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(sys.platform != "linux", reason="hides /proc/cpuinfo")
def test_a_container_without_cpuinfo_is_no_error(monkeypatch):
    """The library warns where it cannot read the file; other tests turn warnings into errors."""

    def hiding(path, *arguments, **options):
        if path == "/proc/cpuinfo":
            raise FileNotFoundError(path)
        return open(path, *arguments, **options)

    monkeypatch.setattr(archspec.cpu.detect, "open", hiding, raising=False)
    monkeypatch.setattr(cpu, "CpuidInfoCollector", fails)
    forget = getattr(archspec.cpu.host, "cache_clear", lambda: None)  # archspec 0.2.5 looks anew each time
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = this_cpu()
    forget()
    assert found.name
    assert found.kind == platform.machine()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks an x86 CPU")
def test_the_instructions_are_some_that_the_system_lists():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    listed = kind_of("x86_64", next(line for line in lines if line.startswith("flags")).split())
    order = ["SSE4.2", "AVX", "AVX2 without VNNI", "AVX2-VNNI", "AVX512 without VNNI", "AVX512-VNNI", "AVX512-VNNI+AMX"]
    assert order.index(this_cpu().kind) <= order.index(listed)


def test_the_text_has_name_and_kind():
    assert str(Cpu("AMD EPYC 7B13", "AVX2 without VNNI")) == "AMD EPYC 7B13, AVX2 without VNNI"
    assert "\n" not in str(this_cpu())


def test_nothing_is_printed():
    code = "from onnxq.runtime.cpu import this_cpu; this_cpu()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
