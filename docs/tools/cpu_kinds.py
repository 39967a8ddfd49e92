"""Kinds of CPUs, and how to start Python as on each of them: natively, with instructions hidden, or emulated."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_HELPER = Path(__file__).with_name("limit_isa.c")

_PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28", "manylinux_2_31", "manylinux_2_35")
"""Wheels for AArch64 that run on Debian 12, whose glibc is 2.36."""

_DEBIAN = "bookworm"
_PYTHON = "3.11"
"""The release of Debian whose packages make the system for AArch64, and its Python."""


class Unavailable(Exception):
    """A kind of CPU cannot be had here; the message says why."""


@dataclass(frozen=True)
class Launcher:
    """How to start Python on a kind of CPU.

    Attributes:
        command: the interpreter and what stands before it.
        environment: variables to set.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Kind:
    """A kind of CPU.

    Attributes:
        title: its name in tables.
        how: `native`, `hidden` (instructions are hidden from the program) or `emulated`.
        launcher: makes the `Launcher`, in a folder for files that it needs; raises `Unavailable`.
    """

    title: str
    how: str
    launcher: Callable[[Path], Launcher]

    @property
    def is_timed(self) -> bool:
        """Whether times on it are those of a real CPU."""
        return self.how != "emulated"


def flags() -> frozenset[str]:
    """Return the flags of this CPU in /proc/cpuinfo; none on other systems than Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def this_cpu() -> str:
    """Return the instruction set of this CPU that its integer kernels use."""
    found = flags()
    names = {"amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI"}
    vnni = [name for flag, name in names.items() if flag in found]
    without = {"avx512bw": "AVX512 without VNNI", "avx2": "AVX2", "sse4_2": "SSE4.2"}
    return ", ".join(vnni) or next((name for flag, name in without.items() if flag in found), platform.machine())


def _native(_: Path) -> Launcher:
    return Launcher((sys.executable,), {})


def _hidden(level: str, *needed: str) -> Callable[[Path], Launcher]:
    """Return what hides instructions natively; `needed` are flags that the CPU must have."""

    def launcher(folder: Path) -> Launcher:
        missing = [flag for flag in ("cpuid_fault", *needed) if flag not in flags()]
        if missing:
            raise Unavailable(f"this CPU lacks {', '.join(missing)}")
        if shutil.which("gcc") is None:
            raise Unavailable("gcc is not installed")
        library = folder / "limit_isa.so"
        if not library.exists():
            _run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(_HELPER)])
        return Launcher((sys.executable,), {"LIMIT_ISA": level, "LD_PRELOAD": str(library)})

    return launcher


def _qemu_x86(model: str) -> Callable[[Path], Launcher]:
    def launcher(_: Path) -> Launcher:
        return Launcher((_found("qemu-x86_64"), "-cpu", model, sys.executable), {})

    return launcher


def _qemu_arm(model: str, part: str, features: str) -> Callable[[Path], Launcher]:
    """Return what emulates an AArch64 CPU; part and features stand in its /proc/cpuinfo, which runtimes read."""

    def launcher(folder: Path) -> Launcher:
        emulator = _found("qemu-aarch64")
        system, packages = _arm_system(folder / "aarch64"), _arm_packages(folder / "aarch64")
        root = folder / "aarch64" / model.partition(",")[0]
        _write_root(root, system, part, features)
        python = str(root / "usr" / "bin" / f"python{_PYTHON}")
        return Launcher((emulator, "-cpu", model, "-L", str(root), python), {"PYTHONPATH": str(packages)})

    return launcher


_ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOTPROD = f"{_ARMV8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"

KINDS: Mapping[str, Kind] = {
    "native": Kind(f"this one: {this_cpu()}", "native", _native),
    "no-amx": Kind("AVX512-VNNI", "hidden", _hidden("no-amx", "avx512_vnni")),
    "avx-vnni": Kind("AVX-VNNI", "hidden", _hidden("avx-vnni", "avx_vnni")),
    "no-vnni": Kind("AVX512 without VNNI", "hidden", _hidden("no-vnni", "avx512bw")),
    "avx2": Kind("AVX2", "hidden", _hidden("avx2", "avx2")),
    "sse42": Kind("SSE4.2", "hidden", _hidden("sse42", "sse4_2")),
    "haswell": Kind("Haswell (AVX2)", "emulated", _qemu_x86("Haswell")),
    "epyc": Kind("EPYC, first generation (AVX2)", "emulated", _qemu_x86("EPYC")),
    "nehalem": Kind("Nehalem (SSE4.2)", "emulated", _qemu_x86("Nehalem")),
    "a72": Kind("Cortex-A72 (NEON)", "emulated", _qemu_arm("cortex-a72", "0xd08", _ARMV8)),
    "a76": Kind("Cortex-A76 (dot products)", "emulated", _qemu_arm("cortex-a76", "0xd0b", _DOTPROD)),
    "i8mm": Kind("AArch64 with i8mm", "emulated", _qemu_arm("max,sve=off,sme=off", "0xd4d", f"{_DOTPROD} i8mm bf16")),
}
"""Name on the command line -> kind of CPU."""


def _arm_system(folder: Path) -> Path:
    """Return the root of a Debian for AArch64 with Python, after unpacking its packages into a folder."""
    root, apt = folder / "system", folder / "apt"
    if (root / "usr" / "bin" / f"python{_PYTHON}").exists():
        return root
    _found("apt-get"), _found("dpkg-deb")
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(
        "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
        f"http://deb.debian.org/debian {_DEBIAN} main\n"
    )
    settings = {
        "APT::Architecture": "arm64", "APT::Architectures::": "arm64", "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "root", "Dir::State::lists": apt / "lists", "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache", "Dir::Etc::sourcelist": apt / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
    }  # fmt: skip
    command = ["apt-get", "-q", "-y", *(f"-o{name}={value}" for name, value in settings.items())]
    _run([*command, "update"])
    wanted = ["python3-minimal", f"libpython{_PYTHON}-stdlib", "libstdc++6", "libgomp1", "zlib1g"]
    _run([*command, "--download-only", "install", *wanted])
    root.mkdir(exist_ok=True)
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(root)])
    return root


def _arm_packages(folder: Path) -> Path:
    """Return a folder with the packages for AArch64, of the versions that are installed here."""
    packages = folder / "packages"
    if not packages.exists():
        platforms = [f"--platform={name}_aarch64" for name in _PLATFORMS]
        wanted = [f"{name}=={release}" for name, release in versions().items()]
        options = ["--quiet", "--only-binary=:all:", f"--python-version={_PYTHON}", *platforms]
        _run([sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "partial"), *wanted])
        (folder / "partial").rename(packages)
    return packages


def _write_root(root: Path, system: Path, part: str, features: str) -> None:
    """Make a root like `system` with its own /proc/cpuinfo, of two cores; qemu-user shows the host's otherwise."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    for name in os.listdir(system):
        if not (root / name).exists():
            (root / name).symlink_to((system / name).absolute())
    core = {"BogoMIPS": "48.00", "Features": features, "CPU implementer": "0x41", "CPU architecture": "8",
            "CPU variant": "0x0", "CPU part": part, "CPU revision": "3"}  # fmt: skip
    cores = ({"processor": str(number), **core} for number in range(2))
    text = "\n".join("".join(f"{key}\t: {value}\n" for key, value in lines.items()) for lines in cores)
    (root / "proc" / "cpuinfo").write_text(text)


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that compute."""
    found = {}
    for name in ("numpy", "onnxruntime", "openvino"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def emulator_version() -> str:
    """Return name and version of qemu-user; empty if it is not installed."""
    program = shutil.which("qemu-x86_64") or shutil.which("qemu-aarch64")
    if program is None:
        return ""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return f"qemu-user {said.partition('version ')[2].split()[0]}"


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise Unavailable(f"{program} is not installed")
    return path


def _run(command: list[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"{command[0]} failed: {last}")
