"""HTML and SVG that is well-formed as XML too, with every text in it escaped."""

import html
import re

_SELF_CLOSING = frozenset({"br", "circle", "input", "line", "link", "meta", "path", "polyline", "rect", "wbr"})

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no place for, section 2.2."""


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """A text as markup shows it; characters that no document may hold are spelt out, as `\\x00`."""
    if isinstance(text, Markup):
        return text
    plain = _FORBIDDEN.sub(lambda found: ascii(found[0])[1:-1], str(text))
    return Markup(html.escape(plain, quote=True))


def tag(name: str, /, *inner: object, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element.
        inner: what is in it; texts are escaped.
        attributes: `class_` and the like stand for words that Python keeps, `_` for `-`; None leaves one out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _SELF_CLOSING:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{together(*inner)}</{name}>")


def together(*parts: object) -> Markup:
    """Parts one behind the other; texts are escaped."""
    return Markup("".join(map(escaped, parts)))
