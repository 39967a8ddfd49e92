"""Kinds of CPUs, and what a program sees on them."""

import subprocess

import pytest

from docs.tools import cpu_kinds
from docs.tools.cpu_kinds import KINDS, Unavailable

FEATURES = "from numpy._core._multiarray_umath import __cpu_features__ as f; print([k for k, v in f.items() if v])"


def launched(cpu, folder):
    try:
        return KINDS[cpu].launcher(folder)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("cpu", "has", "lacks"),
    [
        ("no-amx", "AVX512_CLX", "none"),
        ("no-vnni", "AVX512_SKX", "AVX512_CLX"),
        ("avx-vnni", "AVX2", "AVX512F"),
        ("avx2", "AVX2", "AVX512F"),
        ("sse42", "SSE42", "AVX"),
    ],
)
def test_instructions_are_hidden(cpu, has, lacks, tmp_path):
    launcher = launched(cpu, tmp_path)
    ran = subprocess.run(
        [*launcher.command, "-c", FEATURES], env=dict(launcher.environment), capture_output=True, text=True, check=True
    )
    assert repr(lacks) not in ran.stdout
    assert repr(has) in ran.stdout


def test_an_unknown_level_is_refused(tmp_path):
    launcher = launched("avx2", tmp_path)
    environment = {**launcher.environment, "LIMIT_ISA": "mmx"}
    ran = subprocess.run([*launcher.command, "-c", ""], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "LIMIT_ISA=mmx" in ran.stderr


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_kinds, "flags", lambda: frozenset({"avx2"}))
    with pytest.raises(Unavailable, match="this CPU lacks cpuid_fault, avx512_vnni"):
        KINDS["no-amx"].launcher(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="qemu-x86_64 is not installed"):
        KINDS["haswell"].launcher(tmp_path)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"avx2", "avx512bw", "avx512_vnni", "amx_int8"}, "AMX, AVX512-VNNI"),
        ({"avx2", "avx_vnni"}, "AVX-VNNI"),
        ({"avx2", "avx512bw"}, "AVX512 without VNNI"),
        ({"sse4_2", "avx2"}, "AVX2"),
    ],
)
def test_this_cpu_is_named_by_its_integer_kernels(flags, name, monkeypatch):
    monkeypatch.setattr(cpu_kinds, "flags", lambda: frozenset(flags))
    assert cpu_kinds.this_cpu() == name


def test_only_emulated_kinds_are_not_timed():
    assert [name for name, kind in KINDS.items() if not kind.is_timed] == [
        "haswell", "epyc", "nehalem", "a72", "a76", "i8mm",
    ]  # fmt: skip
