"""The built distributions: their modules, the demo model, and the links of the description."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip(
    "setuptools", minversion="77", reason="building needs setuptools 77 or later: pip install -e '.[dev]'"
)

ROOT = Path(__file__).resolve().parents[2]
BUILT = (".ci", "onnxq", "passes", "models", "docs", "examples", "tests")
URL = "https://example.org/somebody/onnxq"
LINK = re.compile(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
PICTURE = re.compile(r"!\[[^]]*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")


def python(code, folder, **environment):
    """Run the interpreter in a folder, and return what it prints."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, *code]
    ran = subprocess.run(command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def checkout(folder):
    """Copy the files that a release is built from."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", "*.int8.onnx")
    for name in BUILT:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=unwanted)
    for path in ROOT.iterdir():
        if path.suffix in (".md", ".in", ".py", ".cfg", ".toml") or path.name == "LICENSE":
            shutil.copy(path, folder)
    return folder


def built(kind, source, out):
    """Build a `wheel` or an `sdist`, or the `metadata` of a wheel."""
    hook = {"metadata": "prepare_metadata_for_build_wheel"}.get(kind, f"build_{kind}")
    python(["-c", f"from setuptools import build_meta; build_meta.{hook}({str(out)!r})"], source)
    return out


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    [path] = built("sdist", checkout(tmp_path_factory.mktemp("checkout")), folder).glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    return source


@pytest.fixture(scope="module")
def shipped(sdist):
    """The paths in the source distribution."""
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def installed(unpacked, tmp_path_factory):
    """Return the folder into which a wheel, built from the source distribution, is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    [path] = built("wheel", unpacked, folder).glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def files(folder, suffix=".py"):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob(f"*{suffix}"))}


@pytest.mark.slow
def test_the_wheel_holds_every_module(installed):
    passes = {f"passes/{name}": text for name, text in files(ROOT / "passes").items()}
    modules = {name: text for name, text in files(ROOT / "onnxq").items() if not name.startswith("passes/")}
    assert files(installed / "onnxq") == modules | passes
    assert (installed / "onnxq" / "py.typed").is_file()


@pytest.mark.slow
def test_the_wheel_holds_nothing_else(installed):
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"onnxq"}
    assert {path.suffix for path in (installed / "onnxq").rglob("*") if path.is_file()} == {".py", ".typed", ".onnx"}


@pytest.mark.slow
def test_the_wheel_holds_the_demo_model(installed):
    assert files(installed, ".onnx") == {"onnxq/demo.onnx": (ROOT / "models" / "demo.onnx").read_bytes()}


@pytest.mark.slow
def test_the_demo_needs_no_path(installed, tmp_path):
    where = python(["-c", "import onnxq; print(onnxq.__file__)"], tmp_path, PYTHONPATH=str(installed))
    assert Path(where.strip()).is_relative_to(installed)
    said = python(["-m", "onnxq", "--demo", "--count", "8", "--no-speed"], tmp_path, PYTHONPATH=str(installed))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.int8.onnx"]
    assert said.splitlines()[-1] == "next: python -m onnxq.evaluate demo demo.int8.onnx --demo"


def test_the_source_distribution_is_whole(shipped):
    wanted = {path.relative_to(ROOT).as_posix() for name in BUILT for path in (ROOT / name).rglob("*.py")}
    wanted = {path for path in wanted if not path.startswith("onnxq/passes/")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md")}
    for folder in (".ci", "docs", "examples", "tests/support/golden"):
        wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).iterdir() if path.is_file()}
    assert sorted(wanted - shipped) == []


def test_the_source_distribution_holds_nothing_that_was_built(shipped):
    assert [name for name in shipped if name.endswith(".onnx")] == ["models/demo.onnx"]
    assert [name for name in shipped if name.endswith(".pyc") or name.startswith(("build/", "onnxq/passes"))] == []


class TestDescription:
    @pytest.fixture
    def source(self, tmp_path):
        """Copy the files that the metadata is built from."""
        folder = tmp_path / "source"
        (folder / "onnxq").mkdir(parents=True)
        for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "onnxq/version.py"):
            shutil.copy(ROOT / name, folder / name)
        config = folder / "setup.cfg"
        text = config.read_text(encoding="utf-8")
        packages = re.compile(r"^packages =\n( +onnxq.*\n)+", re.MULTILINE)
        assert packages.search(text)
        config.write_text(packages.sub("packages =\n    onnxq\n", text), encoding="utf-8")
        return folder

    def metadata(self, source):
        built("metadata", source, source.parent)
        [path] = source.parent.glob("*.dist-info/METADATA")
        return email.message_from_string(path.read_text(encoding="utf-8"))

    def test_links_stay_relative_without_a_repository(self, source):
        found = self.metadata(source)
        assert found.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
        assert found["Description-Content-Type"] == "text/markdown"

    def test_links_are_absolute_with_a_repository(self, source):
        config = source / "setup.cfg"
        text, count = re.subn(r"# (Repository = )\S+", rf"\g<1>{URL}", config.read_text(encoding="utf-8"))
        assert count == 1
        config.write_text(text, encoding="utf-8")
        found = self.metadata(source)
        assert found.get_all("Project-URL") == [f"Repository, {URL}"]
        description, readme = found.get_payload(), (ROOT / "README.md").read_text(encoding="utf-8")
        pictures = ["".join(link) for link in PICTURE.findall(description)]
        assert len(pictures) == len(PICTURE.findall(readme)) > 0
        tag = f"v{found['Version']}"
        for link in pictures:
            base, path = link.split(f"/raw/{tag}/")
            assert base == URL
            assert (ROOT / path).is_file()
        others = {"".join(link) for link in LINK.findall(description)} - set(pictures)
        assert f"{URL}/blob/{tag}/docs/targets.md" in others
        assert [link for link in others if not link.startswith(("https:", "#"))] == []
