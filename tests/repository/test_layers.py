"""Imports point down: each package imports only from packages below it, and no modules of a package form a circle."""

import ast
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ORDER = (
    ("errors", "version", "progress", "process", "_text"),
    ("memory",),
    ("numerics", "remote"),
    ("ir",),
    ("pipeline", "facts"),
    ("hooks",),
    ("runtime",),
    ("cluster",),
    ("targets",),
    ("yolo",),
    ("calibration",),
    ("qdq",),
    ("reconstruction",),
    ("config",),
    ("passes",),
    ("api",),
    ("__init__",),
    ("evaluation",),
    ("compilers",),
    ("report",),
    ("console",),
    ("evaluate", "compare", "benchmark", "prove", "view"),
    ("cli",),
    ("__main__",),
)
"""Packages and modules directly in `onnxq`, from the ground up; those of one tier do not import each other."""

ONLY_IMPORTED_BY = {
    "archspec": ("onnxq.runtime",),
    "av": ("onnxq.calibration",),
    "aiohttp": ("onnxq.remote",),
    "cloudpickle": ("onnxq.cluster",),
    "dask": ("onnxq.cluster",),
    "distributed": ("onnxq.cluster",),
    "fsspec": ("onnxq.remote",),
    "msgspec": ("onnxq.calibration", "onnxq.evaluation"),
    "onnx_graphsurgeon": ("onnxq.ir",),
    "onnxruntime": ("onnxq.runtime", "onnxq.compilers.workers"),
    "onnxruntime_qnn": ("onnxq.compilers.workers",),
    "openvino": ("onnxq.runtime",),
    "pycocotools": ("onnxq.evaluation",),
    "rich": ("onnxq.console", "onnxq.evaluate", "onnxq.compare", "onnxq.benchmark", "onnxq.prove"),
    "netron": ("onnxq.view",),
    "rknn": ("onnxq.compilers.workers",),
    "tensorrt_rtx": ("onnxq.compilers.workers",),
    "yaml": ("onnxq.calibration",),
    "passes": (),
}
"""Libraries, and the packages and modules that may import them."""


def modules(root: Path) -> dict[str, Path]:
    """Return the modules of a source tree by name."""
    found = {}
    for folder, package in (("onnxq", "onnxq"), ("passes", "onnxq.passes")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if folder == "onnxq" and parts[0] == "passes":
                continue  # the link to the folder beside it
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, object]) -> set[str]:
    """Return the full names of the modules that a module imports, anywhere in its text."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0]
                base = f"{above}.{base}".rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return found


def room(module: str) -> str:
    """Return the package or module directly in `onnxq` that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def faults(root: Path, order: Sequence[Sequence[str]], only: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return a line for each import of a source tree that breaks the order."""
    only = only or {}
    tier = {name: k for k, names in enumerate(order) for name in names}
    found = modules(root)
    rooms = {room(name) for name in found}
    wrong = [f"{name} is not in the order" for name in sorted(rooms - tier.keys())]
    wrong += [f"{name} is in the order but not on disk" for name in tier if name not in rooms]
    inside: dict[str, set[str]] = {}
    for name, path in found.items():
        here = room(name)
        for imported in sorted(imports(name, path, found)):
            top = imported.split(".")[0]
            allowed = only.get(top)
            if allowed is not None and not any(f"{name}.".startswith(f"{each}.") for each in allowed):
                wrong.append(f"{name} may not import {imported}")
            if top != "onnxq" or here not in tier:
                continue
            there = room(imported)
            if there == here:
                inside.setdefault(name, set()).add(imported)
            elif there not in tier:
                wrong.append(f"{name} imports {imported}, which is not in the order")
            elif tier[there] > tier[here]:
                wrong.append(f"{name} imports {imported}, which is above it")
            elif tier[there] == tier[here]:
                wrong.append(f"{name} imports {imported}, which is beside it")
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        wrong.append(f"imports in a circle: {' -> '.join(error.args[1])}")
    return wrong


@pytest.mark.slow
def test_imports_point_down():
    assert faults(ROOT, ORDER, ONLY_IMPORTED_BY) == []


GOOD = {
    "onnxq/__init__.py": "from onnxq.top import run",
    "onnxq/errors.py": "import json",
    "onnxq/ir/__init__.py": "from onnxq.ir.model import Model",
    "onnxq/ir/model.py": "from onnxq.errors import ModelError",
    "onnxq/top.py": "from onnxq.passes import fold\nfrom onnxq.ir import Model\nimport rich.table",
    "passes/__init__.py": "from onnxq.passes.fold import Fold",
    "passes/fold.py": "from onnxq.ir import (\n    Model,\n    Node,\n)",
}
GOOD_ORDER = (("errors",), ("ir",), ("passes",), ("top",), ("__init__",))
GOOD_ONLY = {"rich": ("onnxq.top",)}


class TestOnMadeUpTrees:
    """The check finds each kind of fault."""

    @pytest.fixture
    def faults_of(self, tmp_path):
        """Return a function that finds the faults of the good tree after changes to some files."""

        def check(changed, order=GOOD_ORDER):
            for path, text in (GOOD | changed).items():
                (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
                if text is not None:
                    (tmp_path / path).write_text(text, encoding="utf-8")
            return faults(tmp_path, order, GOOD_ONLY)

        return check

    def test_a_good_tree_has_none(self, faults_of):
        assert faults_of({}) == []

    @pytest.mark.parametrize(
        "text",
        [
            "from onnxq.ir.model import Model",
            "import onnxq.ir.model",
            "import json, onnxq.ir.model as g",
            "from onnxq.ir import model",
            "from .ir import model",
            "from .ir.model import Model",
            "def late():\n    from onnxq.ir.model import Model",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from onnxq.ir.model import Model",
            "try:\n    import json\nexcept ImportError:\n    from onnxq.ir.model import Model",
        ],
    )
    def test_an_import_that_points_up_in_whatever_way_it_is_written(self, faults_of, text):
        assert faults_of({"onnxq/errors.py": text}) == ["onnxq.errors imports onnxq.ir.model, which is above it"]

    def test_an_import_of_a_package(self, faults_of):
        assert faults_of({"onnxq/errors.py": "from onnxq.ir import Model"}) == [
            "onnxq.errors imports onnxq.ir, which is above it"
        ]

    def test_an_import_of_the_whole(self, faults_of):
        assert faults_of({"onnxq/ir/model.py": "from onnxq import run"}) == [
            "onnxq.ir.model imports onnxq, which is above it"
        ]

    @pytest.mark.parametrize("text", ["from onnxq.passes import default", "from . import default"])
    def test_a_pass_that_imports_the_order_of_passes(self, faults_of, text):
        [fault] = faults_of({"passes/fold.py": text})
        assert fault.startswith("imports in a circle: ")

    def test_a_relative_import_from_the_package_above(self, faults_of):
        assert faults_of({"passes/fold.py": "from ..top import run\nfrom ..errors import ModelError"}) == [
            "onnxq.passes.fold imports onnxq.top, which is above it",
        ]

    def test_modules_of_a_package_that_import_each_other(self, faults_of):
        changed = {"onnxq/ir/query.py": "from onnxq.ir.model import Model"}
        assert faults_of(changed) == []
        [fault] = faults_of(changed | {"onnxq/ir/model.py": "from onnxq.ir.query import readers"})
        assert fault.startswith("imports in a circle: onnxq.ir.")

    def test_an_import_of_a_module_beside_it(self, faults_of):
        order, changed = (("errors", "version"), *GOOD_ORDER[1:]), {"onnxq/version.py": "import onnxq.errors"}
        assert faults_of(changed, order) == ["onnxq.version imports onnxq.errors, which is beside it"]

    def test_a_new_package_must_be_placed(self, faults_of):
        assert faults_of({"onnxq/new/__init__.py": "import json"}) == ["new is not in the order"]
        assert faults_of({"onnxq/new/__init__.py": "", "onnxq/top.py": "import onnxq.new"}) == [
            "new is not in the order",
            "onnxq.top imports onnxq.new, which is not in the order",
        ]

    def test_a_module_that_is_gone_must_be_struck_out(self, faults_of):
        assert "errors is in the order but not on disk" in faults_of({"onnxq/errors.py": None})

    @pytest.mark.parametrize(
        ("text", "module"),
        [("import rich", "rich"), ("from rich import box", "rich"), ("from rich.table import Table", "rich.table")],
    )
    def test_a_library_that_only_some_may_import(self, faults_of, text, module):
        assert faults_of({"onnxq/ir/model.py": text}) == [f"onnxq.ir.model may not import {module}"]
