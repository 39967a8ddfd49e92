"""CONTRIBUTING.md describes the code as it is."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

MOST_WORDS = 40


def rows(title):
    """Return the cells of the first table under a heading, without its head."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_rooms_are_all_there():
    named = {name for package, _ in rows("Packages") for name in re.findall(r"`(\w+)`", package)}
    packages = {path.name for path in (ROOT / "onnxq").iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in (ROOT / "onnxq").glob("*.py")}
    assert named == packages | modules | {"passes"}


def test_the_glossary_is_short_and_sorted():
    words = [word for word, _ in rows("Glossary")]
    assert len(words) <= MOST_WORDS
    assert words == sorted(words, key=str.lower)
    assert len(set(words)) == len(words)


def test_the_glossary_is_brief():
    assert [word for word, meaning in rows("Glossary") if len(meaning.split()) > 20] == []
