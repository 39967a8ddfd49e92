"""Text on images: titles with a colour key, labels that do not overlap, and bar charts."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = "#ffffff", "#212529"
"""Colours of text and background in titles; labels on a colour swap them."""

_GREY = "#868e96"

_USUAL = 640
"""Longer side of an image in px from which on text grows with the image, as larger images are viewed scaled down."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, px."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of text and lines, px.

    Attributes:
        letters: height of a line of text.
        margin: margin around text.
        line: width of a line.
    """

    letters: int
    margin: int
    line: int

    @classmethod
    def on(cls, size: tuple[int, int]) -> "Sizes":
        """Return the sizes for an image of this size, (width, height) in px."""
        unit = max(1.0, max(size) / _USUAL)
        return cls(round(14 * unit), round(4 * unit), round(3 * unit))

    @property
    def font(self) -> "ImageFont.ImageFont | ImageFont.FreeTypeFont":
        """The font of all text."""
        return ImageFont.load_default(self.letters)

    @property
    def strip(self) -> int:
        """Height of a title."""
        return self.letters + 3 * self.margin


Key = Sequence[tuple[str, str]]
"""Colours and their meanings."""


def title(text: str, key: Key, sizes: Sizes) -> Image.Image:
    """Draw a line of text and a colour key, as wide as its content."""
    font, gap = sizes.font, sizes.margin
    swatch, spaces = sizes.letters + gap, (len(key) + 1) * 3 * gap
    width = sum(round(font.getlength(words)) for words in (text, *(words for _, words in key)))
    strip = Image.new("RGB", (width + len(key) * swatch + spaces, sizes.strip), PAPER)
    pen = ImageDraw.Draw(strip)
    pen.text((gap, gap), text, INK, font)
    left = round(font.getlength(text)) + 4 * gap
    for colour, words in key:
        pen.rectangle((left, gap, left + sizes.letters, gap + sizes.letters), fill=colour)
        pen.text((left + swatch, gap), words, INK, font)
        left += swatch + round(font.getlength(words)) + 3 * gap
    return strip


@dataclass(frozen=True)
class Bars:
    """A bar chart of names with shares from 0 to 1.

    Attributes:
        rows: names and shares.
        colour: colour of the first bar; the others are grey.
        sizes: sizes of text and lines.
    """

    rows: Sequence[tuple[str, float]]
    colour: str
    sizes: Sizes

    @property
    def _texts(self) -> list[str]:
        return [f"{share:.2f}  {name}" for name, share in self.rows]

    @property
    def width(self) -> int:
        """Width of the texts, px."""
        font = self.sizes.font
        return max(round(font.getlength(text)) for text in self._texts) + 2 * self.sizes.margin

    def draw(self, width: int) -> Image.Image:
        """Draw the chart; a bar of 1 fills the width, px."""
        margin, letters = self.sizes.margin, self.sizes.letters
        row = letters + 5 * margin
        canvas = Image.new("RGB", (width, row * len(self.rows)), PAPER)
        pen, font = ImageDraw.Draw(canvas), self.sizes.font
        for number, (text, (_, share)) in enumerate(zip(self._texts, self.rows)):
            pen.text((margin, row * number + margin), text, INK, font)
            top = row * number + letters + 2 * margin
            end = margin + (width - 2 * margin) * min(max(share, 0.0), 1.0)
            pen.rectangle((margin, top, end, top + margin), self.colour if number == 0 else _GREY)
        return canvas


class LabelPlacer:
    """Writes labels beside boxes on an image so that none covers another; the first label has the first choice."""

    def __init__(self, image: Image.Image, sizes: Sizes) -> None:
        self._pen = ImageDraw.Draw(image)
        self._size = image.size
        self._sizes, self._font = sizes, sizes.font
        self._taken: list[Box] = []

    def write(self, text: str, box: Box, colour: str) -> None:
        """Write a label at a side of a box where there is room; leave it out if there is none."""
        margin = self._sizes.margin
        width, height = self._font.getlength(text) + 2 * margin, self._sizes.letters + margin
        for x, y in self._places(box, width, height):
            place = (x, y, x + width, y + height)
            if not any(_overlap(place, other) for other in self._taken):
                self._taken.append(place)
                self._pen.rectangle(place, fill=colour)
                self._pen.text((x + margin, y + margin // 4), text, PAPER, self._font)
                return

    def _places(self, box: Box, width: float, height: float) -> list[tuple[float, float]]:
        """Return the possible upper left corners of a label within the image, the best first."""
        left, top, right, bottom = box
        most, lowest = max(0.0, self._size[0] - width), self._size[1] - height
        rows = [y for y in (top - height, top, bottom, bottom - height) if 0 <= y <= lowest]
        return [(min(max(0.0, x), most), y) for y in rows for x in (left, right - width)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
