"""The public API as text: every name in the `__all__` of a public module, with its signature.

Signatures are read from the sources: annotations read there are the same in every version of Python.

When the API is meant to change, write tests/support/golden/public-api.txt anew with

    ONNXQ_GOLDEN=write pytest tests/repository/test_public_api.py

and put a line for the change into CHANGELOG.md.
"""

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

MODULES = (
    "onnxq", "onnxq.api", "onnxq.config", "onnxq.errors", "onnxq.facts", "onnxq.pipeline", "onnxq.hooks",
    "onnxq.progress", "onnxq.passes", "onnxq.ir", "onnxq.targets", "onnxq.evaluate", "onnxq.compare",
    "onnxq.benchmark", "onnxq.prove", "onnxq.view",
)  # fmt: skip
"""The modules that are stable or extension points (docs/stability.md)."""

_SPECIAL = ("__init__", "__call__", "__getitem__", "__contains__", "__iter__", "__len__")

Definition = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign


class Defined(NamedTuple):
    """A name at the top of a module; `node` is None for what another project defines."""

    module: str
    name: str
    node: Definition | None


def path_of(module: str) -> Path:
    """Return the source file of a module of onnxq."""
    parts = module.split(".")
    place = ROOT.joinpath("passes", *parts[2:]) if parts[1:2] == ["passes"] else ROOT.joinpath(*parts)
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def definitions(module: str) -> Iterator[Defined]:
    """Yield what a module defines at its top: classes, functions and constants."""
    for node in _tree(module).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield Defined(module, name, node)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                yield Defined(module, name, node)


def find(module: str, name: str) -> Defined:
    """Return the definition of a name, through imports within onnxq."""
    for each in definitions(module):
        if each.name == name:
            return each
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    if node.module.split(".")[0] == "onnxq":
                        return find(node.module, alias.name)
                    return Defined(node.module, alias.name, None)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return Defined(alias.name, "", None)
    raise AssertionError(f"{module}.__all__ has {name}, which the module does not define")


def public_names(module: str) -> list[str]:
    """Return the names in the `__all__` of a module."""
    return sorted(importlib.import_module(module).__all__)


def api() -> str:
    """Return the public API as text: a section per module, a line per name, field and method."""
    home: dict[tuple[str, str], str] = {}
    lines: list[str] = []
    for module in (*MODULES[1:], MODULES[0]):  # the root re-exports what the others define
        for name in public_names(module):
            found = find(module, name)
            home.setdefault((found.module, found.name), f"{module}.{name}")
    for module in MODULES:
        lines += ["", module]
        for name in public_names(module):
            found = find(module, name)
            where = home[found.module, found.name]
            if where != f"{module}.{name}":
                lines.append(f"    {name} = {where}")
            else:
                lines += [f"    {line}" for line in _described(module, name, found)]
    return "\n".join(lines[1:]) + "\n"


def _described(module: str, name: str, found: Defined) -> Iterator[str]:
    node = found.node
    if node is None:
        yield f"{name} = {found.module}{'.' * bool(found.name)}{found.name}"
    elif isinstance(node, ast.ClassDef):
        yield from _class(node, getattr(importlib.import_module(module), name))
    elif isinstance(node, ast.FunctionDef):
        yield _function(node)
    elif isinstance(node, ast.AnnAssign):
        yield f"{name}: {ast.unparse(node.annotation)}"
    else:
        value = getattr(importlib.import_module(module), name)
        is_value = isinstance(value, str | bytes | int | float | tuple | list | dict | set | frozenset)
        is_value = is_value or type(value).__module__.startswith("onnxq.")
        yield f"{name}: {type(value).__name__}" if is_value else f"{name} = {ast.unparse(node.value)}"


def _class(node: ast.ClassDef, found: type) -> Iterator[str]:
    bases = ", ".join(map(ast.unparse, node.bases))
    decorators = "".join(f"@{ast.unparse(each)} " for each in node.decorator_list)
    yield f"{decorators}class {node.name}({bases})" if bases else f"{decorators}class {node.name}"
    for member in node.body:
        match member:
            case ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                default = "" if member.value is None else f" = {_default(member.value, vars(found).get(name, ...))}"
                yield f"    {name}: {ast.unparse(member.annotation)}{default}"
            case ast.Assign(targets=[ast.Name(id=name)]) if not name.startswith("_"):
                yield f"    {name}"
            case ast.FunctionDef(name=name) if name in _SPECIAL or not name.startswith("_"):
                yield f"    {_function(member)}"


def _default(written: ast.expr, value: object) -> str:
    """Return the default of a field as the source has it; of a field with metadata, which a call makes, the value."""
    is_plain = isinstance(value, str | int | float | tuple | None)
    return repr(value) if isinstance(written, ast.Call) and is_plain else ast.unparse(written)


def _function(node: ast.FunctionDef) -> str:
    decorators = "".join(f"@{ast.unparse(each)} " for each in node.decorator_list)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{decorators}def {node.name}({ast.unparse(node.args)}){returns}"
