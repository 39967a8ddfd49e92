"""Tests mirror the modules; folders and files stay small."""

from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SOURCES = {"onnxq": "tests", "passes": "tests/passes"}
"""Folders whose modules each have a test file, and the folders that mirror them."""

SCRIPTS = {"models": "tests/models", "docs/tools": "tests/tools"}
"""Folders whose test files each belong to a script, though not each script has one."""

COMMANDS = ("cli", "evaluate", "compare", "benchmark", "prove", "view")
"""Modules directly in `onnxq` whose tests are in `tests/commands`."""

BY_TOPIC = ("tests/fuzz", "tests/interop", "tests/repository", "tests/support")
"""Folders that mirror no package: malformed inputs, other tools, tests of the repository as a whole, helpers."""

MOST_FILES = 16
MOST_LINES = 420

MANY_FILES = ("passes", "tests/passes")
"""Folders without a limit on files: one file for each pass."""

WITHOUT_TESTS: dict[str, str] = {
    "onnxq/numerics/arrays.py": "names of types",
    "onnxq/compilers/base.py": "names of fields; the compilers are tested by them",
    **dict.fromkeys(
        (f"onnxq/compilers/workers/{name}.py" for name in ("build_tensorrt", "run_qnn", "run_rknn")),
        "runs in a compiler's own environment; the tests of the compiler run it",
    ),
    "onnxq/evaluation/annotations/records.py": "names of fields; the readers of files are tested by them",
}
"""Modules that need no test file, and why."""

OF_NO_MODULE: dict[str, str] = {
    "tests/targets/test_custom_target.py": "a target of a user's own, through all packages",
}
"""Test files beside those of modules, and what they test."""

LONG: dict[str, str] = {}
"""Files that may be longer, and why."""


def python_files(root: Path, folder: str) -> Iterator[Path]:
    """Yield the Python files below a folder, as paths from the root, without following links."""
    for path in sorted((root / folder).glob("*")):
        if path.is_symlink():
            continue
        if path.is_dir():
            yield from python_files(root, str(path.relative_to(root)))
        elif path.suffix == ".py":
            yield path.relative_to(root)


def is_special(path: Path) -> bool:
    """Return whether a file is `__init__` or `__main__`, which need no tests of their own."""
    return path.stem.startswith("__")


def test_file(module: Path) -> Path:
    """Return the path of the tests of a module."""
    folder = next(folder for folder in SOURCES | SCRIPTS if module.is_relative_to(folder))
    inside = module.relative_to(folder).parent
    if folder == "onnxq" and str(inside) == "." and module.stem in COMMANDS:
        inside = Path("commands")
    return Path((SOURCES | SCRIPTS)[folder], inside, f"test_{module.stem.lstrip('_')}.py")


test_file.__test__ = False  # it is no test


def untested(root: Path) -> list[str]:
    """Return the modules without a test file."""
    modules = [path for folder in SOURCES for path in python_files(root, folder) if not is_special(path)]
    return [path.as_posix() for path in modules if not (root / test_file(path)).is_file()]


def stray(root: Path) -> list[str]:
    """Return the test files that are named after no module.

    They must be called `test_<module>`, `test_<module>_<topic>` or, for a package as a whole, `test_<package>`.
    """
    modules = [path for folder in (*SOURCES, *SCRIPTS) for path in python_files(root, folder) if not is_special(path)]
    allowed = {test_file(path).with_suffix("").as_posix() for path in modules}
    allowed |= {(test_file(path).parent / f"test_{path.parent.name}").as_posix() for path in modules}
    wrong = []
    for path in python_files(root, "tests"):
        if not path.stem.startswith("test_") or path.as_posix().startswith(BY_TOPIC):
            continue
        words = path.with_suffix("").as_posix().split("_")
        if not any("_".join(words[:count]) in allowed for count in range(len(words), 0, -1)):
            wrong.append(path.as_posix())
    return wrong


def crowded(root: Path) -> list[str]:
    """Return the folders with too many modules."""
    counts: dict[str, int] = {}
    for folder in (*SOURCES, *SCRIPTS, "tests"):
        for path in python_files(root, folder):
            counts[path.parent.as_posix()] = counts.get(path.parent.as_posix(), 0) + (not is_special(path))
    return [folder for folder, count in sorted(counts.items()) if count > MOST_FILES]


def long(root: Path) -> list[str]:
    """Return the files with too many lines."""
    files = [path for folder in (*SOURCES, *SCRIPTS, "tests", "examples") for path in python_files(root, folder)]
    return [path.as_posix() for path in files if len((root / path).read_text("utf-8").splitlines()) > MOST_LINES]


@pytest.mark.parametrize(
    ("find", "allowed"),
    [(untested, WITHOUT_TESTS), (stray, OF_NO_MODULE), (crowded, MANY_FILES), (long, LONG)],
    ids=["every module has a test file", "every test file has a module", "no folder is crowded", "no file is long"],
)
def test_the_tree(find, allowed: Collection[str]):
    found = find(ROOT)
    assert [path for path in found if path not in allowed] == []
    assert [path for path in allowed if path not in found] == [], "strike these out: they need no exception any more"


class TestOnMadeUpTrees:
    """The checks find each kind of fault."""

    @pytest.fixture
    def tree(self, tmp_path):
        """Make a good tree, and return a function that adds files and returns the root."""

        def write(*paths: str, lines: int = 1) -> Path:
            for path in paths:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_text("pass\n" * lines)
            return tmp_path

        write("onnxq/__init__.py", "onnxq/api.py", "onnxq/cli.py", "onnxq/_files.py", "onnxq/ir/model.py")
        write("passes/fold.py", "models/make.py", "tests/test_api.py", "tests/commands/test_cli.py")
        write("tests/test_files.py", "tests/ir/test_model.py", "tests/passes/test_fold.py")
        return write

    def test_nothing_is_wrong_with_a_good_tree(self, tree):
        tree("tests/ir/test_ir.py", "tests/passes/test_passes.py", "tests/commands/test_cli_output.py")
        root = tree("tests/repository/test_names.py", "tests/models/test_make.py", "tests/ir/conftest.py")
        assert [find(root) for find in (untested, stray, crowded, long)] == [[], [], [], []]

    @pytest.mark.parametrize("module", ["onnxq/hooks.py", "onnxq/view.py", "onnxq/ir/query.py", "passes/cut.py"])
    def test_a_module_without_tests(self, tree, module):
        assert untested(tree(module, "tests/test_query.py", "tests/test_view.py")) == [module]

    @pytest.mark.parametrize("path", ["tests/ir/test_graph.py", "tests/test_cli.py", "tests/models/test_train.py"])
    def test_tests_of_no_module(self, tree, path):
        assert stray(tree(path)) == [path]

    @pytest.mark.parametrize("folder", ["onnxq/ir", "tests/yolo"])
    def test_a_crowded_folder(self, tree, folder):
        root = tree(*(f"{folder}/m{number}.py" for number in range(15)), f"{folder}/__init__.py")
        assert crowded(root) == []
        assert crowded(tree(f"{folder}/more.py", f"{folder}/most.py")) == [folder]

    def test_a_long_file(self, tree):
        assert long(tree("tests/ir/test_model.py", lines=420)) == []
        assert long(tree("tests/ir/test_model.py", lines=421)) == ["tests/ir/test_model.py"]
