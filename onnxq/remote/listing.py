"""The files below an address: of a folder, of a web server's page of links, or of a ZIP archive."""

import fnmatch
import html.parser
from collections.abc import Iterator, Sequence
from urllib.parse import urldefrag, urljoin, urlsplit

from onnxq.errors import DataError
from onnxq.remote.address import Address
from onnxq.remote.archives import members
from onnxq.remote.fetch import NothingThere, opened, read, twice

_PAGE = 64_000_000
"""Bytes of a page of links, some 500,000 links."""

_PAGES = 10_000
"""Pages that are read at most: a server may link folders in a circle."""


def files_below(folder: Address) -> list[Address]:
    """Return the files below a folder or in an archive, in order, without hidden files and folders.

    A web server's folder is a page of links: those that lead to names directly below it are followed.

    Raises:
        NothingThere: there is no such folder, or it is empty.
        OnnxqError: as from `fetch.read`.
    """
    found = members(folder) if folder.is_zip else list(_linked(folder)) if folder.is_http else _stored(folder)
    above = len(folder.parts)
    shown = [each for each in found if not any(name.startswith(".") for name in each.parts[above:])]
    if not shown:
        more = "; the server's page of the folder must have links to its files" if folder.is_http else ""
        raise NothingThere(f"{folder}: there is no such folder, or it has no files; check the address{more}")
    return sorted(shown, key=lambda each: each.key)


def is_pattern(address: Address) -> bool:
    """Return whether an address has a `*`; the other letters of patterns are common in names."""
    return "*" in (address.member if address.is_zip else address.text)


def matching(pattern: Address) -> list[Address]:
    """Return the files whose names match a pattern, in order; `**` stands for any folders.

    Raises:
        OnnxqError: as from `files_below`.
    """
    root = pattern
    while is_pattern(root):
        root = root.parent
    wanted = pattern.parts[len(root.parts) :]
    return [each for each in files_below(root) if _matches(each.parts[len(root.parts) :], wanted)]


def _matches(names: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not names
    if wanted[0] == "**":
        return any(_matches(names[start:], wanted[1:]) for start in range(len(names) + 1))
    # Only `*` is special, also beside brackets.
    pattern = wanted[0].replace("[", "[[]").replace("?", "[?]")
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern) and _matches(names[1:], wanted[1:])


def _stored(folder: Address) -> list[Address]:
    """Return the files that the file system of fsspec finds."""

    def find() -> list[Address]:
        system, path = opened(folder)
        system.invalidate_cache()
        # Names come without the protocol, some also without the server.
        given = folder.text.rstrip("/")
        start = given.removesuffix(path.rstrip("/"))
        names = [str(name) for name in system.find(path)]
        if start == given and path.rstrip("/"):
            return [Address(str(system.unstrip_protocol(name))) for name in names]
        return [Address(start + name) for name in names if name.rstrip("/") != path.rstrip("/")]

    return twice(folder, find)


def _linked(folder: Address) -> Iterator[Address]:
    """Yield the files that pages of a web server link to, page by page."""
    pages, seen = [folder.text.partition("?")[0].rstrip("/") + "/"], set[str]()
    while pages:
        page = pages.pop()
        if len(seen) >= _PAGES:
            raise DataError(f"{folder}: has more than {_PAGES:,} folders; give a list of its pictures as .txt")
        seen.add(page)
        links = _Links()
        links.feed(read(Address(page), _PAGE).decode("utf-8", "replace"))
        for target in dict.fromkeys(links.found):
            url = urldefrag(urljoin(page, target)).url
            parts, above = urlsplit(url), urlsplit(page)
            name = parts.path.removeprefix(above.path)
            is_below = parts.netloc == above.netloc and parts.path.startswith(above.path) and not parts.query
            if not is_below or parts.scheme not in ("http", "https") or not name or "/" in name.rstrip("/"):
                continue
            if not name.endswith("/"):
                yield Address(page + name)
            elif page + name not in seen and not name.startswith("."):
                pages.append(page + name)


class _Links(html.parser.HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the target of a link."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]
