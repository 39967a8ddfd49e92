"""What a report is made of: headings, paragraphs, lists, tables and plots; `html` and `markdown` format them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A number in a table and its format; None is shown as a dash."""

    value: float | None
    form: str

    def __str__(self) -> str:
        return "-" if self.value is None else format(self.value, self.form)


@dataclass(frozen=True)
class Name:
    """A name from the graph, and the number of the plot that it links to."""

    text: str
    plot: int | None = None


@dataclass(frozen=True)
class Curve:
    """Positive values, the greatest first, that are drawn as a curve on a logarithmic scale.

    Attributes:
        values: drawn as shares of the greatest.
        before: others that are drawn below them in the same way; none if there is nothing to compare with.
        label: what they are, for readers who do not see the curve.
    """

    values: tuple[float, ...]
    before: tuple[float, ...] = ()
    label: str = "scales of the channels"


Cell = str | Number | Name | Curve


@dataclass(frozen=True)
class Table:
    """Rows of cells; all cells of a column are of one kind.

    Attributes:
        columns: headings of the columns.
        rows: cells of each row.
        sortable: whether readers can sort and filter the rows.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = False

    def has(self, kind: type) -> list[bool]:
        """Return for each column whether its cells are of this kind."""
        return [isinstance(cell, kind) for cell in (self.rows[0] if self.rows else self.columns)]


@dataclass(frozen=True)
class Text:
    """A paragraph, with options and file names between backticks; `aside` if it only explains the next block."""

    text: str
    aside: bool = False


@dataclass(frozen=True)
class BulletList:
    """Sentences, each an item of a list, with options between backticks."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Groups:
    """Names by the reason that they share."""

    names: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Plot:
    """The values of tensors that share a scale.

    Attributes:
        number: identifies the plot, for `Name`s that link to it.
        tensors: names of the tensors, the least SQNR first.
        sqnr: signal-to-quantization-noise ratio, dB.
        counts: values in each bin; bins have equal widths.
        observed: lower edge of the first bin and upper edge of the last one.
        grid: the least and the greatest value that the integers represent.
        bounds: range method -> the bounds that it chooses.
        comparison: the chosen range beside those of all methods.
    """

    number: int
    tensors: tuple[str, ...]
    sqnr: Number
    counts: tuple[int, ...]
    observed: tuple[float, float]
    grid: tuple[float, float]
    bounds: Mapping[str, tuple[float, float]]
    comparison: Table


@dataclass(frozen=True)
class Plots:
    """Plots, and a table with the SQNR of each range method instead of them."""

    plots: tuple[Plot, ...]
    sqnr_table: Table


Block = Text | BulletList | Table | Groups | Plots


@dataclass(frozen=True)
class Section:
    """A heading and the blocks under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Overview:
    """The part of the report before the first section.

    Attributes:
        title: file name of the model.
        texts: what was done, and the options.
        facts: key figures, as pairs of label and value.
        warnings: a sentence each.
    """

    title: str
    texts: tuple[Text, ...]
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def spans(text: str) -> Iterator[tuple[bool, str]]:
    """Split a text at its backticks; yield for each part whether it is code, and the part."""
    for number, part in enumerate(text.split("`")):
        yield bool(number % 2), part
