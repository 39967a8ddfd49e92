"""Text for pictures: titles that explain colours, labels that keep off each other, and lists with bars."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = "#ffffff", "#212529"
"""Of titles: text and what it stands on; on colours it is the other way round."""

_GREY = "#868e96"

_USUAL = 640
"""Px of a picture that is looked at as large as it is; a larger one is seen scaled down, and its letters with it."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, px."""


@dataclass(frozen=True)
class Sizes:
    """How large things are drawn, px.

    Attributes:
        letters: height of a line of text.
        margin: around text.
        line: width of a line.
    """

    letters: int
    margin: int
    line: int

    @classmethod
    def on(cls, size: tuple[int, int]) -> "Sizes":
        """For a picture of a size, (width, height) in px, so large that they are seen when all of it is."""
        unit = max(1.0, max(size) / _USUAL)
        return cls(round(14 * unit), round(4 * unit), round(3 * unit))

    @property
    def font(self) -> "ImageFont.ImageFont | ImageFont.FreeTypeFont":
        """What text is written with."""
        return ImageFont.load_default(self.letters)

    @property
    def strip(self) -> int:
        """Height of a title."""
        return self.letters + 3 * self.margin


Key = Sequence[tuple[str, str]]
"""Colours, each with what it means."""


def title(text: str, key: Key, sizes: Sizes) -> Image.Image:
    """A line that says what is below it and what its colours mean, just as wide as that takes."""
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
    """Names, each with a number from 0 to 1 over a bar that is as long.

    Attributes:
        told: names and numbers.
        colour: of the first bar; the others are grey.
        sizes: how large things are.
    """

    told: Sequence[tuple[str, float]]
    colour: str
    sizes: Sizes

    @property
    def _texts(self) -> list[str]:
        return [f"{share:.2f}  {name}" for name, share in self.told]

    @property
    def width(self) -> int:
        """Px that the texts take."""
        font = self.sizes.font
        return max(round(font.getlength(text)) for text in self._texts) + 2 * self.sizes.margin

    def draw(self, width: int) -> Image.Image:
        """Draw them so wide that a bar of 1 fills the width, px."""
        margin, letters = self.sizes.margin, self.sizes.letters
        row = letters + 5 * margin
        canvas = Image.new("RGB", (width, row * len(self.told)), PAPER)
        pen, font = ImageDraw.Draw(canvas), self.sizes.font
        for number, (text, (_, share)) in enumerate(zip(self._texts, self.told)):
            pen.text((margin, row * number + margin), text, INK, font)
            top = row * number + letters + 2 * margin
            end = margin + (width - 2 * margin) * min(max(share, 0.0), 1.0)
            pen.rectangle((margin, top, end, top + margin), self.colour if number == 0 else _GREY)
        return canvas


class Labels:
    """Labels beside boxes on a picture, none of which covers another; the first to come have the choice."""

    def __init__(self, picture: Image.Image, sizes: Sizes) -> None:
        self._pen = ImageDraw.Draw(picture)
        self._size = picture.size
        self._sizes, self._font = sizes, sizes.font
        self._taken: list[Box] = []

    def write(self, text: str, box: Box, colour: str) -> None:
        """Write at a side of a box, where there is room; nowhere if there is none."""
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
        """Corners within the picture at which a label may begin, the best first."""
        left, top, right, bottom = box
        most, lowest = max(0.0, self._size[0] - width), self._size[1] - height
        rows = [y for y in (top - height, top, bottom, bottom - height) if 0 <= y <= lowest]
        return [(min(max(0.0, x), most), y) for y in rows for x in (left, right - width)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
