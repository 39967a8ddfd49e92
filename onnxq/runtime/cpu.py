"""The CPU of this machine: its name, and the instructions that its integer kernels are made of."""

import platform
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from archspec.cpu import brand_string, host
from archspec.cpu.detect import CpuidInfoCollector, detected_info

Found = TypeVar("Found")

_X86 = ("x86_64", "amd64", "i386", "i686", "x86")
_ARM = ("aarch64", "arm64")


@dataclass(frozen=True)
class Cpu:
    """A CPU.

    Attributes:
        name: its name, `AMD EPYC 7B13`, or its architecture if that is all that is known.
        kind: the widest instructions for products of 8-bit integers, `AVX512-VNNI` or `AVX2 without VNNI`, or its
            architecture if they are not known.
    """

    name: str
    kind: str

    def __str__(self) -> str:
        return self.name if self.name == self.kind else f"{self.name}, {self.kind}"


@cache
def this_cpu() -> Cpu:
    """Return the CPU that this process runs on; never raises.

    The features of an x86 CPU are those that the instruction CPUID reports, as runtimes see them: a hypervisor or an
    emulator may hide some that the system's own list has. Elsewhere they are the system's.
    """
    machine = platform.machine() or "unknown"
    is_x86 = machine.lower() in _X86
    features = _tried(lambda: CpuidInfoCollector().features) if is_x86 else None
    if features is None:
        features = _tried(lambda: {*detected_info().features, *host().features})
    name = _tried(lambda: CpuidInfoCollector().brand_string()) if is_x86 else None
    words = (name or _tried(brand_string) or "").replace("\x00", " ").split()
    return Cpu(" ".join(words) or machine, kind_of(machine, features or ()))


def kind_of(machine: str, features: Collection[str]) -> str:
    """Return the kind of a CPU.

    Args:
        machine: architecture, as `platform.machine` has it.
        features: names of its instruction sets, as in Linux's `/proc/cpuinfo`.
    """
    if machine.lower() in _ARM:
        for feature, kind in (("i8mm", "NEON-I8MM"), ("asimddp", "NEON-DOT"), ("asimd", "NEON")):
            if feature in features:
                return kind
        return machine
    if "avx512bw" in features:
        kind = "AVX512-VNNI" if "avx512_vnni" in features else "AVX512 without VNNI"
        return f"{kind}+AMX" if "amx_int8" in features else kind
    if "avx2" in features:
        return "AVX2-VNNI" if "avx_vnni" in features else "AVX2 without VNNI"
    narrow = (("avx", "AVX"), ("sse4_2", "SSE4.2"), ("sse4_1", "SSE4.1"))
    return next((kind for feature, kind in narrow if feature in features), machine)


def _tried(look: Callable[[], Found]) -> Found | None:
    """Return what a look-up gives, or None: the library raises whatever the system raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return look()
    except Exception:
        return None
