"""The public API is the one in tests/support/golden/public-api.txt, and each of its names has one meaning."""

import difflib
import importlib
import inspect
import os
from collections import defaultdict
from pathlib import Path

import public_api
import pytest
from public_api import MODULES, ROOT, Defined, api, definitions, find, public_names

GOLDEN = Path(public_api.__file__).parent / "golden" / "public-api.txt"

WHOLLY_PUBLIC = ("onnxq.errors", "onnxq.facts", "onnxq.pipeline", "onnxq.hooks", "onnxq.progress")
"""Modules whose every name without an underscore is for users."""

SAME_ROLE = {"main"}
"""Names that each module of a kind has: the entry point of a command."""


def sources() -> list[str]:
    """Return the names of all modules."""
    found = []
    for folder, package in (("onnxq", "onnxq"), ("passes", "onnxq.passes")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "onnxq" and parts[0] == "passes":
                continue  # the link to the folder beside it
            found.append(".".join((package, *(part for part in parts if part != "__init__"))))
    return found


def test_the_api_is_the_recorded_one():
    if os.environ.get("ONNXQ_GOLDEN") == "write":
        GOLDEN.write_text(api(), encoding="utf-8")
    expected, actual = GOLDEN.read_text(encoding="utf-8"), api()
    difference = difflib.unified_diff(expected.splitlines(), actual.splitlines(), GOLDEN.name, "now", lineterm="", n=2)
    assert expected == actual, "\n".join([
        "the public API has changed; ONNXQ_GOLDEN=write accepts it, and CHANGELOG.md must say so:", *difference,
    ])  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_there_and_documented(module):
    imported = importlib.import_module(module)
    for name in public_names(module):
        assert hasattr(imported, name), f"{module}.__all__ has {name}, which is not there"
        thing = getattr(imported, name)
        if find(module, name).node is not None and (inspect.isclass(thing) or inspect.isfunction(thing)):
            assert inspect.getdoc(thing), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("module", WHOLLY_PUBLIC)
def test_all_is_complete(module):
    defined = {each.name for each in definitions(module) if not each.name.startswith("_") and each.name != "log"}
    assert defined - set(public_names(module)) == set()


@pytest.mark.slow
def test_a_public_name_has_one_meaning():
    """Two modules may export the same object, but not two objects under one name, nor may others define the name."""
    meanings: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for module in MODULES:
        for name in public_names(module):
            meanings[name].add(find(module, name)[:2])
    for module in sources():
        for each in definitions(module):
            if each.name in meanings:
                meanings[each.name].add((module, each.name))
    twice = {name: sorted(found) for name, found in meanings.items() if len(found) > 1 and name not in SAME_ROLE}
    assert twice == {}


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("onnxq", "quantize", ("onnxq.api", "quantize")),
        ("onnxq.ir", "Node", ("onnx_graphsurgeon", "Node")),
        ("onnxq.targets", "ORT", ("onnxq.targets.ort", "ORT")),
    ],
)
def test_definitions_are_found_through_imports(module, name, expected):
    assert find(module, name)[:2] == expected


def test_the_text_has_signatures_fields_and_types(monkeypatch):
    monkeypatch.setattr(public_api, "MODULES", ("onnxq", "onnxq.api", "onnxq.targets"))
    lines = api().splitlines()
    assert lines[0] == "onnxq"
    assert "    quantize = onnxq.api.quantize" in lines
    assert "    @dataclass(frozen=True) class Quantized" in lines
    assert "        facts: Facts" in lines
    assert "        def save(self, path: str | Path) -> None" in lines
    assert "    TARGETS: dict[str, Target]" in lines
    assert "    ORT: Target" in lines


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AssertionError, match=r"onnxq.errors.__all__ has Missing"):
        find("onnxq.errors", "Missing")
    assert isinstance(find("onnxq.errors", "OnnxqError"), Defined)
