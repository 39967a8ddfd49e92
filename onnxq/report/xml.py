"""Builds HTML and SVG that is also well-formed XML; all text is escaped."""

import html
import re

_SELF_CLOSING = frozenset({"br", "circle", "input", "line", "link", "meta", "path", "polyline", "rect", "wbr"})

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 forbids (section 2.2)."""


class Markup(str):
    """Text that is markup and must not be escaped again."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """Escape a text; characters that XML forbids are written out, as `\\x00`."""
    if isinstance(text, Markup):
        return text
    plain = _FORBIDDEN.sub(lambda found: ascii(found[0])[1:-1], str(text))
    return Markup(html.escape(plain, quote=True))


def tag(name: str, /, *inner: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: name of the element.
        inner: its content; texts are escaped.
        attributes: a trailing `_` is removed (`class_`), other `_` become `-`; an attribute that is None is left out.
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
    """Concatenate parts; texts are escaped."""
    return Markup("".join(map(escaped, parts)))
