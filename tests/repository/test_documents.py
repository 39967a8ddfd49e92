"""The pages' links lead to files and headings that exist, and their tables and code blocks are well formed."""

import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT, *(ROOT / name for name in ("docs", "examples", "models")))
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")


def prose(page):
    """Return the text of a page without its code."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("[", "").replace("]", ""), text)


def anchor(title):
    """Return the anchor that GitHub gives a heading."""
    kept = (c for c in title.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
    return "".join(kept).replace(" ", "-")


def anchors(page):
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), flags=re.MULTILINE)
    return {anchor(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)) for title in titles}


def links(page):
    """Yield the file and the anchor of each link into the repository, as they are written."""
    for written in LINK.findall(prose(page)):
        target = "".join(written)
        if not target.startswith(("http:", "https:", "mailto:")):
            path, _, heading = target.partition("#")
            yield path, heading


def test_there_are_pages():
    assert {"README.md", "CONTRIBUTING.md", "targets.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for path, heading in links(page):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path} is not there"
        if heading:
            assert heading in anchors(target), f"{page.name}: {path or page.name} has no heading {heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_rows_of_a_table_have_one_width(page):
    width = 0
    for number, line in enumerate(prose(page).splitlines(), start=1):
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not (width and cells and cells != width), f"{page.name}, table row {number}: {line}"
        width = cells
        assert not cells or line.endswith("|"), f"{page.name}, table row {number} does not end: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_ends(page):
    fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(fences) % 2 == 0


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Weights as INT4", "weights-as-int4"),
        ("`ort`: onnxruntime on CPUs", "ort-onnxruntime-on-cpus"),
        ("RKNN, Hailo and others", "rknn-hailo-and-others"),
    ],
)
def test_the_names_of_headings(title, name):
    assert anchor(title) == name
