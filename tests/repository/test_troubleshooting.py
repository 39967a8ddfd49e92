"""The messages that docs/troubleshooting.md quotes are those of the sources."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def texts():
    """Yield every string of the sources; an f-string without its values."""
    for path in (*ROOT.glob("onnxq/**/*.py"), *ROOT.glob("passes/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.slow
def test_quoted_messages_are_in_the_sources():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page.split("| message contains |")[1], flags=re.MULTILINE)
    assert len(quoted) > 5
    known = list(texts())
    assert [message for message in quoted if not any(message in text for text in known)] == []
