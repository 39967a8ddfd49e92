"""The address of a file or folder that is elsewhere, and what it has in common with a path."""

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from onnxq.errors import DataError

HTTP = ("http", "https")

_ADDRESS = re.compile(r"(?P<protocol>[A-Za-z][\w+.-]+)://")
"""How an address begins. A protocol has two letters at least: `C://` is a drive."""

_CHAIN = re.compile(r"[A-Za-z]\w+::.*://")
"""How addresses that are chained may begin."""

_COLLAPSED = re.compile(r"[A-Za-z][\w+.-]+:/")
"""How an address begins that was taken for a path, in which two slashes are one."""

_SECRET = re.compile(r"(?i)([^&=]*(?:sig|token|secret|password|credential|key)[^&=]*)=[^&]*")
"""A part of a query that whoever reads a message must not see."""

_ZIP = "zip://"

_CHAINED = "::"


@dataclass(frozen=True)
class Address:
    """An address of fsspec. As text it is without passwords, for messages.

    Attributes:
        text: the address as it was given or found, or that of the ZIP archive.
        member: the file or folder in a ZIP archive, without slashes around it; empty for the archive as a whole.
        is_zip: whether the file is in a ZIP archive.
        version: what tells the directory of the archive from others; empty: any.
    """

    text: str
    member: str = ""
    is_zip: bool = False
    version: str = ""

    def __str__(self) -> str:
        shown = _without_secrets(self.text) if _ADDRESS.match(self.text) else self.text
        return f"{_ZIP}{self.member}{_CHAINED}{shown}" if self.is_zip else shown

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Return what a text means.

        Raises:
            DataError: it chains addresses in another way than `zip://MEMBER::ADDRESS`.
        """
        member, mark, archive = text.partition(_CHAINED)
        if not mark:
            return cls(text)
        if not member.startswith(_ZIP) or _CHAINED in archive or not archive:
            raise DataError(f"{cls(text)}: only ZIP archives can be chained, as zip://FOLDER::ADDRESS; give another")
        return cls(archive, member.removeprefix(_ZIP).strip("/"), is_zip=True)

    @property
    def protocol(self) -> str:
        """The protocol, in lower case; that of the archive for a file in one."""
        found = _ADDRESS.match(self.text)
        return found["protocol"].lower() if found else "file"

    @property
    def is_http(self) -> bool:
        """Whether a web server has it: then names are percent-encoded, and a query may follow the path."""
        return self.protocol in HTTP

    @property
    def parts(self) -> tuple[str, ...]:
        """The protocol, the server and the names of folders and file, as they are in a file system."""
        found = _ADDRESS.match(self.text)
        names = (self.text[found.end() :] if found else self.text).split("/")
        if self.is_http:
            path = re.split("[?#]", self.text[found.end() :] if found else "")[0]
            names = [unquote(name) for name in path.split("/")]
        return self.protocol, *filter(None, names), *filter(None, self.member.split("/"))

    @property
    def key(self) -> str:
        """What files are put in order by: as their paths would be in a folder of this machine."""
        return "\n".join(("/".join(self.parts), self.text))

    @property
    def name(self) -> str:
        """The name of the file, decoded."""
        return self.parts[-1]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the name, with the dot; empty for a folder that ends in a slash."""
        is_folder = not self.is_zip and self.text.partition("?")[0].endswith("/")
        return "" if is_folder else PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "Address":
        """The folder that it is in; a server or bucket is its own."""
        if self.is_zip and self.member:
            return replace(self, member=self.member.rpartition("/")[0])
        text = self.text.partition("?")[0] if self.is_http else self.text
        return Address(text.rstrip("/").rpartition("/")[0]) if len(self.parts) > 2 else self

    def __truediv__(self, name: str) -> "Address":
        """Return what has a name in this folder; the name is as in a file system, and may have folders in it."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        place = self
        while parts and parts[0] == "..":
            place, parts = place.parent, parts[1:]
        inner = "/".join(parts)
        if place.is_zip:
            return replace(place, member=f"{place.member}/{inner}".strip("/"))
        return Address(f"{place.text.rstrip('/')}/{quote(inner) if place.is_http else inner}")

    def with_suffix(self, suffix: str) -> "Address":
        """Return the address of a file that has another suffix."""
        return self.parent / f"{self.stem}{suffix}"

    def swapped(self, folder: str, other: str) -> "Address | None":
        """Return the same with another name of the last folder of a name; None if it is in no such folder."""
        place, below = self.parent, [self.name]
        while len(place.parts) > 2 and place.name != folder:
            place, below = place.parent, [place.name, *below]
        return place.parent / "/".join([other, *below]) if len(place.parts) > 2 else None


Location: TypeAlias = Path | Address
"""Where a file or folder is."""


def location(text: "str | Path | Address") -> Location:
    """Return the address or the path that a text means.

    Raises:
        DataError: as from `Address.parse`.
    """
    if not isinstance(text, str):
        return text
    return Address.parse(text) if is_address(text) else Path(text)


def is_address(text: object) -> bool:
    """Return whether a text, or what was a text, is an address."""
    return isinstance(text, Address) or (
        isinstance(text, str) and (_ADDRESS.match(text) or _CHAIN.match(text)) is not None
    )


def was_address(path: Path) -> bool:
    """Return whether a path was made of an address."""
    return _COLLAPSED.match(str(path)) is not None


def _without_secrets(text: str) -> str:
    """Return an address without password and signature."""
    if "@" not in text and "?" not in text:
        return text
    parts = urlsplit(text)
    user, mark, server = parts.netloc.rpartition("@")
    if mark:
        server = f"{user.partition(':')[0]}:***@{server}" if ":" in user else f"{user}@{server}"
    return urlunsplit(parts._replace(netloc=server, query=_SECRET.sub(r"\1=***", parts.query)))
