"""A report as one Markdown file: all that the page says, but for its plots, of which the numbers are told."""

import re
from collections.abc import Iterable, Iterator

from onnxq.report.content import (
    Block,
    Cell,
    Curve,
    Groups,
    Name,
    Number,
    Plots,
    Points,
    Report,
    Table,
    Text,
    head_of,
    sections_of,
    spans,
)


def to_markdown(report: Report) -> str:
    """The report as Markdown with tables, as GitHub reads it."""
    return "\n\n".join(_parts(report)) + "\n"


def _parts(report: Report) -> Iterator[str]:
    head = head_of(report)
    yield f"# {_plain(head.title)}"
    yield from map(_block, head.texts)
    yield from (f"**Warning:** {_plain(warning)}" for warning in head.warnings)
    yield _block(Table(("", ""), head.facts))
    for section in sections_of(report):
        yield f"## {section.title}"
        yield from map(_block, section.blocks)


def _block(block: Block) -> str:
    match block:
        case Text():
            return _spans(block.text)
        case Points():
            return _list(map(_spans, block.texts))
        case Table():
            return _table(block)
        case Groups():
            return _list(
                f"{len(names)}: {_plain(what)}: {', '.join(map(_code, names))}" for what, names in block.names.items()
            )
        case Plots():
            return _table(block.noise)


def _list(points: Iterable[str]) -> str:
    return "\n".join(f"- {point}" for point in points)


def _table(table: Table) -> str:
    """Without what is drawn."""
    shown = [not is_drawn for is_drawn in table.has(Curve)]
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
    """A code span: within more backticks than the text has in a row (CommonMark, 6.1)."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{_line(text)}{space}{fence}"


def _plain(text: str) -> str:
    """A text of which nothing is taken for markup."""
    return re.sub(r"([\\`*<\[]|\b_|_\b)", r"\\\1", _line(text))


def _line(text: str) -> str:
    """Without the ends of lines, which would end a row or a point."""
    return " ".join(text.splitlines())
