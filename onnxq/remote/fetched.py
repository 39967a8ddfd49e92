"""A file that was read from an address, in memory, in the form in which files are opened."""

import io
from dataclasses import dataclass
from pathlib import Path

from onnxq.remote.address import Address, Location
from onnxq.remote.archives import read_member
from onnxq.remote.fetch import read


class _Opened(io.BytesIO):
    """Bytes that are named by where they come from: messages of libraries show them."""

    def __init__(self, file: "Fetched") -> None:
        super().__init__(file.data)
        self._name = str(file)

    def __repr__(self) -> str:
        return repr(self._name)


@dataclass(frozen=True)
class Fetched:
    """A file in memory; as text it is its address.

    Attributes:
        address: where it was read.
        data: its bytes.
    """

    address: Address
    data: bytes

    def __str__(self) -> str:
        return str(self.address)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return the bytes as an open file."""
        return _Opened(self)


def fetched(place: Location) -> Path | Fetched:
    """Return a path as it is, and what is at an address as bytes in memory.

    Raises:
        NothingThere: there is nothing at the address.
        TooLarge: it has more bytes than may be read.
        ConfigError: it cannot be reached.
        DataError: it cannot be read for another reason.
    """
    return Fetched(place, read_bytes(place)) if isinstance(place, Address) else place


def read_bytes(place: Location) -> bytes:
    """Return the bytes of a file, wherever it is; errors as from `fetched`, of a path OSError."""
    if not isinstance(place, Address):
        return place.read_bytes()
    return read_member(place) if place.is_zip else read(place)
