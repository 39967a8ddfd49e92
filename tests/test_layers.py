"""Imports point one way: each module imports only from layers below its own."""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = {
    # Knows nothing of the others.
    "onnxq.advice": 0,
    "onnxq.boxes": 0,
    "onnxq.errors": 0,
    "onnxq.histogram": 0,
    "onnxq.lettering": 0,
    "onnxq.markup": 0,
    "onnxq.progress": 0,
    "onnxq.scenes": 0,
    "onnxq.version": 0,
    # Knows the errors.
    "onnxq.files": 1,
    "onnxq.graph": 1,
    "onnxq.heads": 1,
    "onnxq.images": 1,
    "onnxq.plots": 1,
    "onnxq.scheme": 1,
    "onnxq.sources": 1,
    # What passes are made of.
    "onnxq.exports": 2,
    "onnxq.opaque": 2,
    "onnxq.storage": 2,
    "onnxq.coco": 2,
    "onnxq.data": 2,
    "onnxq.detector": 2,
    "onnxq.facts": 2,
    "onnxq.fresh": 2,
    "onnxq.pipeline": 2,
    "onnxq.ranges": 2,
    "onnxq.shapes": 2,
    "onnxq.stem": 2,
    "onnxq.tensorrt": 2,
    # The runtimes, as data.
    "onnxq.demo": 3,
    "onnxq.noise": 3,
    "onnxq.outcome": 3,
    "onnxq.sections": 3,
    "onnxq.session": 3,
    "onnxq.targets": 3,
    # What chooses among them, and hangs on them.
    "onnxq.choice": 4,
    "onnxq.config": 4,
    "onnxq.decode": 4,
    "onnxq.doubts": 4,
    "onnxq.hooks": 4,
    "onnxq.markdown": 4,
    "onnxq.page": 4,
    "onnxq.runtimes": 4,
    # What is found out by them, and what several passes need.
    "onnxq.least_squares": 0,
    "onnxq.placement": 5,
    "onnxq.qdq": 5,
    "onnxq.sightings": 5,
    "onnxq.sweep": 5,
    "onnxq.unfold": 5,
    "onnxq.weights": 5,
    "onnxq.agreement": 5,
    "onnxq.divergence": 5,
    "onnxq.network": 5,
    "onnxq.trace": 5,
    "onnxq.draw": 6,
    # The passes, which do not know each other, and their order.
    "onnxq.passes.choose": 6,
    "onnxq.passes.clean_up": 6,
    "onnxq.passes.correct_bias": 6,
    "onnxq.passes.cut_head": 6,
    "onnxq.passes.document": 6,
    "onnxq.passes.equalise": 6,
    "onnxq.passes.expand_softmax": 6,
    "onnxq.passes.find_head": 6,
    "onnxq.passes.fit_ranges": 6,
    "onnxq.passes.fit_weights": 6,
    "onnxq.passes.fold_batch_norm": 6,
    "onnxq.passes.fold_constants": 6,
    "onnxq.passes.fold_pad": 6,
    "onnxq.passes.infer_shapes": 6,
    "onnxq.passes.insert": 6,
    "onnxq.passes.normalise": 6,
    "onnxq.passes.observe": 6,
    "onnxq.passes.pack": 6,
    "onnxq.passes.pointwise_to_matmul": 6,
    "onnxq.passes.reconstruct": 6,
    "onnxq.passes.sensitivity": 6,
    "onnxq.passes.sequence_to_split": 6,
    "onnxq.passes.strip_qdq": 6,
    "onnxq.passes.take_back": 6,
    "onnxq.passes.to_float": 6,
    "onnxq.passes.to_half": 6,
    "onnxq.passes.upsample_to_concat": 6,
    "onnxq.passes.verify": 6,
    "onnxq.passes": 7,
    # The two doors, and what stands beside them.
    "onnxq.api": 8,
    "onnxq": 9,
    "onnxq.report": 9,
    "onnxq.terminal": 9,
    "onnxq.benchmark": 10,
    "onnxq.compare": 10,
    "onnxq.evaluate": 10,
    "onnxq.view": 10,
    "onnxq.budget": 11,
    "onnxq.screens": 12,
    "onnxq.cli": 13,
    "onnxq.__main__": 14,
}

SAME_LAYER: frozenset[tuple[str, str]] = frozenset()
"""Pairs (importer, imported) within one layer that are meant."""

ONLY_IMPORTED_BY = {
    "onnxq.report": {"onnxq.cli"},
    "onnxq.page": {"onnxq.report"},
    "onnxq.markdown": {"onnxq.report"},
    "onnxq.sections": {"onnxq.page", "onnxq.markdown"},
    "onnxq.advice": {"onnxq.report"},
    "onnxq.benchmark": set(),
    "onnxq.compare": set(),
    "onnxq.view": set(),
    "onnxq.draw": {"onnxq.compare"},
    "onnxq.evaluate": {"onnxq.budget", "onnxq.cli"},
    "onnxq.budget": {"onnxq.cli", "onnxq.screens"},
    "onnxq.screens": {"onnxq.cli"},
    "onnxq.cli": {"onnxq.__main__"},
    "rich": {"onnxq.screens", "onnxq.terminal", "onnxq.evaluate", "onnxq.benchmark", "onnxq.compare"},
    "onnx_graphsurgeon": {"onnxq.graph"},
    "pycocotools": {"onnxq.coco"},
    "passes": set(),
}
"""Modules and libraries that only these may import."""


def modules(root: Path) -> dict[str, Path]:
    """The modules of a source tree by name."""
    found = {}
    for folder, package in (("onnxq", "onnxq"), ("passes", "onnxq.passes")):
        for path in sorted((root / folder).glob("*.py")):
            found[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, object]) -> set[str]:
    """Full names of the modules that a module imports, wherever in its text."""
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


def faults(
    root: Path,
    layers: Mapping[str, int],
    same_layer: frozenset[tuple[str, str]] = frozenset(),
    only: Mapping[str, set[str]] | None = None,
) -> list[str]:
    """What is wrong with the imports of a source tree, a line each."""
    found = modules(root)
    wrong = [f"{name} has no layer" for name in found if name not in layers]
    wrong += [f"{name} has a layer but no file" for name in layers if name not in found]
    for name, path in found.items():
        for imported in sorted(imports(name, path, found)):
            top = imported.split(".")[0]
            for guarded in {imported, top} & set(only or {}):
                if name not in (only or {})[guarded]:
                    wrong.append(f"{name} may not import {imported}")
            if top != "onnxq" or name not in layers:
                continue
            if imported not in layers:
                wrong.append(f"{name} imports {imported}, which has no layer")
            elif layers[imported] > layers[name]:
                wrong.append(f"{name} imports {imported}, which is above it")
            elif layers[imported] == layers[name] and (name, imported) not in same_layer:
                wrong.append(f"{name} imports {imported}, which is beside it")
    return wrong


def test_imports_point_down():
    assert faults(ROOT, LAYERS, SAME_LAYER, ONLY_IMPORTED_BY) == []


GOOD = {
    "onnxq/__init__.py": "from onnxq.top import run",
    "onnxq/errors.py": "import json",
    "onnxq/graph.py": "from onnxq.errors import ModelError",
    "onnxq/top.py": "from onnxq.passes import fold\nfrom onnxq.graph import Model\nimport rich.table",
    "passes/__init__.py": "from onnxq.passes.fold import Fold",
    "passes/fold.py": "from onnxq.graph import (\n    Model,\n    Node,\n)",
}
GOOD_LAYERS = {
    "onnxq.errors": 0,
    "onnxq.graph": 1,
    "onnxq.passes.fold": 2,
    "onnxq.passes": 3,
    "onnxq.top": 4,
    "onnxq": 5,
}
GOOD_ONLY = {"rich": {"onnxq.top"}, "onnxq.top": {"onnxq"}}


class TestOnMadeUpTrees:
    """The test above finds what it is meant to find."""

    @pytest.fixture
    def faults_of(self, tmp_path):
        """The faults of the good tree with some files changed."""

        def check(changed, layers=GOOD_LAYERS, meant=frozenset()):
            for path, text in (GOOD | changed).items():
                (tmp_path / path).parent.mkdir(exist_ok=True)
                if text is not None:
                    (tmp_path / path).write_text(text, encoding="utf-8")
            return faults(tmp_path, layers, meant, GOOD_ONLY)

        return check

    def test_a_good_tree_has_none(self, faults_of):
        assert faults_of({}) == []

    @pytest.mark.parametrize(
        "text",
        [
            "from onnxq.graph import Model",
            "import onnxq.graph",
            "import json, onnxq.graph as g",
            "from onnxq import graph",
            "from . import graph",
            "from .graph import Model",
            "def late():\n    from onnxq.graph import Model",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from onnxq.graph import Model",
            "try:\n    import json\nexcept ImportError:\n    from onnxq.graph import Model",
        ],
    )
    def test_an_import_that_points_up_in_whatever_way_it_is_written(self, faults_of, text):
        assert faults_of({"onnxq/errors.py": text}) == ["onnxq.errors imports onnxq.graph, which is above it"]

    def test_an_import_of_the_whole_package(self, faults_of):
        assert faults_of({"onnxq/graph.py": "from onnxq import run"}) == [
            "onnxq.graph imports onnxq, which is above it"
        ]

    @pytest.mark.parametrize("text", ["from onnxq.passes import default", "from . import default"])
    def test_a_pass_that_imports_the_order_of_passes(self, faults_of, text):
        assert faults_of({"passes/fold.py": text}) == ["onnxq.passes.fold imports onnxq.passes, which is above it"]

    def test_a_relative_import_from_the_package_above(self, faults_of):
        assert faults_of({"passes/fold.py": "from ..top import run\nfrom ..errors import ModelError"}) == [
            "onnxq.passes.fold may not import onnxq.top",
            "onnxq.passes.fold imports onnxq.top, which is above it",
        ]

    def test_an_import_of_a_module_beside_it_unless_it_is_meant(self, faults_of):
        layers, changed = {**GOOD_LAYERS, "onnxq.files": 1}, {"onnxq/files.py": "from onnxq.graph import Model"}
        assert faults_of(changed, layers) == ["onnxq.files imports onnxq.graph, which is beside it"]
        assert faults_of(changed, layers, frozenset({("onnxq.files", "onnxq.graph")})) == []
        assert faults_of(changed, layers, frozenset({("onnxq.graph", "onnxq.files")})) == [
            "onnxq.files imports onnxq.graph, which is beside it"
        ]

    def test_a_new_module_must_be_placed(self, faults_of):
        assert faults_of({"passes/new.py": "import json"}) == ["onnxq.passes.new has no layer"]
        assert faults_of({"passes/new.py": "", "passes/fold.py": "import onnxq.passes.new"}) == [
            "onnxq.passes.new has no layer",
            "onnxq.passes.fold imports onnxq.passes.new, which has no layer",
        ]

    def test_a_module_that_is_gone_must_be_struck_out(self, faults_of):
        assert "onnxq.errors has a layer but no file" in faults_of({"onnxq/errors.py": None})

    @pytest.mark.parametrize(
        ("text", "module"),
        [("import rich", "rich"), ("from rich import box", "rich"), ("from rich.table import Table", "rich.table")],
    )
    def test_a_library_that_only_some_may_import(self, faults_of, text, module):
        assert faults_of({"onnxq/graph.py": text}) == [f"onnxq.graph may not import {module}"]

    def test_a_module_that_only_some_may_import(self, faults_of):
        changed = {"onnxq/over.py": "from onnxq import top"}
        assert faults_of(changed, {**GOOD_LAYERS, "onnxq.over": 9}) == ["onnxq.over may not import onnxq.top"]
