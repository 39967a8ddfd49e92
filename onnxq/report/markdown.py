"""The report as one Markdown file: the content of the HTML page, with numbers instead of plots."""

import re
from collections.abc import Iterable, Iterator

from onnxq._text import visible
from onnxq.report.blocks import (
    Block,
    BulletList,
    Cell,
    Curve,
    Groups,
    Name,
    Number,
    Plots,
    Table,
    Text,
    spans,
)
from onnxq.report.content import overview, sections
from onnxq.report.schema import Report


def to_markdown(report: Report) -> str:
    """Return the report as GitHub Flavored Markdown."""
    return "\n\n".join(_parts(report)) + "\n"


def _parts(report: Report) -> Iterator[str]:
    shown = overview(report)
    yield f"# {_plain(shown.title)}"
    yield from map(_block, shown.texts)
    yield from (f"**Warning:** {_plain(warning)}" for warning in shown.warnings)
    yield _block(Table(("", ""), shown.facts))
    for section in sections(report):
        yield f"## {section.title}"
        yield from map(_block, section.blocks)


def _block(block: Block) -> str:
    match block:
        case Text():
            return _spans(block.text)
        case BulletList():
            return _list(map(_spans, block.items))
        case Table():
            return _table(block)
        case Groups():
            return _list(
                f"{len(names)}: {_plain(reason)}: {', '.join(map(_code, names))}"
                for reason, names in block.names.items()
            )
        case Plots():
            return _table(block.sqnr_table)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(table: Table) -> str:
    """Return a table without its columns of curves."""
    shown = [not is_curve for is_curve in table.has(Curve)]
    rules = ["---:" if is_number else "---" for is_number in table.has(Number)]
    lines = [map(_plain, table.columns), rules, *(map(_cell, row) for row in table.rows)]
    return "\n".join(_row(cell for cell, is_shown in zip(line, shown) if is_shown) for line in lines)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(cell: Cell) -> str:
    match cell:
        case Name():
            return _code(cell.text)
        case Curve():
            return ""
        case _:
            return _plain(str(cell))


def _spans(text: str) -> str:
    return "".join(_code(part) if is_code else _plain(part) for is_code, part in spans(text))


def _code(text: str) -> str:
    """Return a code span: its fence has more backticks than the text has in a row (CommonMark, 6.1)."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{_line(text)}{space}{fence}"


def _plain(text: str) -> str:
    """Escape whatever Markdown would take for markup."""
    return re.sub(r"([\\`*<\[]|\b_|_\b)", r"\\\1", _line(text))


def _line(text: str) -> str:
    """Return the text in one line, as a line break would end a table row or a list item; no control characters."""
    return visible(text)
