"""Files and folders that the pages name in backticks are in the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "models" / "README.md"]
PATH = re.compile(r"`((?:onnxq|passes|tests|docs|models|examples|\.ci)/[\w./-]*)(?:::\w+)*`")
MADE = {"models/sketch.onnx", "models/yolov5n.onnx", "models/yolox_nano.onnx"}
"""Models that a script writes, or that are in the folder of test data."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_paths_exist(page):
    named = set(PATH.findall(page.read_text(encoding="utf-8"))) - MADE
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
