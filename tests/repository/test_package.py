"""The package ships all its modules, exports its public names, and starts."""

import configparser
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import onnxq
from onnxq.pipeline import Analysis, Pass, Rewrite
from onnxq.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
PASS_FILES = sorted(path.stem for path in (ROOT / "passes").glob("*.py") if path.stem != "__init__")


def python(*arguments):
    """Run the interpreter at the root of the repository, without settings from the environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["COLUMNS"] = "100"
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_public_names():
    assert sorted(onnxq.__all__) == [
        "Config", "ConfigError", "DataError", "ModelError", "OnnxqError", "PipelineError", "Quantized", "__version__",
        "plan", "quantize",
    ]  # fmt: skip
    names = {}
    exec("from onnxq import *", names)
    assert set(onnxq.__all__) <= set(names)


def test_public_names_say_what_they_are():
    for name in onnxq.__all__:
        thing = getattr(onnxq, name)
        assert isinstance(thing, str) or inspect.getdoc(thing), name


def test_every_package_is_in_the_wheel():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = {path.parent for path in (ROOT / "onnxq").rglob("__init__.py")} | {ROOT / "onnxq" / "passes"}
    packages = sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)
    assert settings["options"]["packages"].split() == packages
    with_modules = {path.parent for path in (ROOT / "onnxq").rglob("*.py")}
    assert with_modules <= folders, "a folder of modules without __init__.py is no package"


def test_errors_share_a_base():
    for name in ("ConfigError", "DataError", "ModelError", "PipelineError"):
        assert issubclass(getattr(onnxq, name), onnxq.OnnxqError)


@pytest.mark.slow
def test_the_version():
    assert onnxq.__version__ == VERSION
    done = python("-m", "onnxq", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"onnxq {VERSION}\n", "")


@pytest.mark.slow
def test_the_help():
    done = python("-m", "onnxq", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: onnxq ")
    assert "python -m onnxq yolov8n.onnx --calib" in done.stdout


@pytest.mark.slow
def test_passes_are_not_to_be_imported_under_another_name():
    done = python("-c", "import passes")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "ImportError: import onnxq.passes, not passes"


@pytest.mark.parametrize("stem", PASS_FILES)
class TestPasses:
    def test_one_file_one_class_one_name(self, stem):
        module = importlib.import_module(f"onnxq.passes.{stem}")
        classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
        [found] = [c for c in classes if issubclass(c, Pass)]
        assert found.__name__ == "".join(word.capitalize() for word in stem.split("_"))
        assert found.name == stem.replace("_", "-")
        assert issubclass(found, Rewrite | Analysis)
        assert not inspect.isabstract(found)

    def test_is_documented(self, stem):
        module = importlib.import_module(f"onnxq.passes.{stem}")
        assert module.__doc__.startswith(f"{stem.replace('_', '-')}: ")


def test_there_are_passes():
    assert {"plan_quantization", "observe", "insert_qdq"} <= set(PASS_FILES)


def test_all_passes_are_in_the_default_order():
    source = (ROOT / "passes" / "__init__.py").read_text(encoding="utf-8")
    assert [stem for stem in PASS_FILES if f"from onnxq.passes.{stem} import" not in source] == []
