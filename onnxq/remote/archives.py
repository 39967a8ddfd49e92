"""Files in ZIP archives at addresses. An archive stays open in a process: its directory is read once."""

import io
import tempfile
import threading
import weakref
import zipfile
import zlib
from dataclasses import replace
from typing import Any

from onnxq import memory
from onnxq.errors import DataError
from onnxq.remote.address import Address
from onnxq.remote.fetch import LARGEST, NothingThere, download, opened, too_large, twice, up_to

_OPEN = 4
"""Archives that stay open."""

_PIECE = 1 << 20
"""Bytes that are read of an archive at least: pictures are this large."""

_lock = threading.Lock()
_archives: dict[str, tuple[zipfile.ZipFile, str]] = {}


def members(archive: Address) -> list[Address]:
    """Return the files in an archive, below the folder in it that the address names.

    Raises:
        OnnxqError: as from `read`; or the file is no ZIP archive.
    """
    with _lock:
        _archives.pop(archive.text, None)  # it may have changed
    file, version = _open(archive)
    inside = f"{archive.member}/" if archive.member else ""
    return [
        replace(archive, member=info.filename, is_zip=True, version=version)
        for info in file.infolist()
        if not info.is_dir() and info.filename.startswith(inside)
    ]


def read_member(address: Address, most: int = LARGEST) -> bytes:
    """Return the bytes of a file in an archive; errors as from `fetch.read`.

    Raises:
        DataError: the archive is damaged, or another one than when its files were listed.
    """
    limit = memory.limit(most)

    def take() -> bytes:
        file, version = _open(address)
        if address.version not in ("", version):
            raise DataError(f"{replace(address, member='')}: changed while it was in use; run this again")
        try:
            info = file.getinfo(address.member)
        except KeyError:
            raise NothingThere(f"{address}: there is no such file in the archive; check the name") from None
        if info.file_size > limit:
            raise too_large(address, limit)
        try:
            with file.open(info) as member:
                return up_to(address, member, limit)
        except (OSError, TimeoutError):
            with _lock:
                _archives.pop(address.text, None)  # the next try opens it again
            raise

    return twice(address, take)


def _open(address: Address) -> tuple[zipfile.ZipFile, str]:
    """Return the archive, and what tells its directory from others."""
    with _lock:
        if address.text not in _archives:
            while len(_archives) >= _OPEN:
                del _archives[next(iter(_archives))]
            whole = replace(address, member="", is_zip=False)
            file = twice(whole, lambda: _archive(whole))
            _archives[address.text] = file, _version(file)
        return _archives[address.text]


def _archive(address: Address) -> zipfile.ZipFile:
    opened_file = _seekable(address)
    try:
        file = zipfile.ZipFile(opened_file)
    except (zipfile.BadZipFile, ValueError) as error:  # a file shorter than an empty archive
        opened_file.close()
        raise DataError(f"{address}: is no ZIP archive ({error}); give a folder or a list") from None
    # Others may still read an archive that is given up.
    weakref.finalize(file, opened_file.close)
    return file


def _seekable(address: Address) -> Any:
    """Open an archive so that parts of it can be read."""
    system, path = opened(address)
    if not address.is_http:
        return system.open(path, "rb", block_size=_PIECE)
    try:
        file = system.open(path, "rb", block_size=_PIECE)
        file.seek(1)
        if not file.size or not file.read(1):
            raise ValueError("unknown size")
    except ValueError:
        # The server sends files only as a whole.
        copy: io.IOBase = tempfile.TemporaryFile(prefix="onnxq-")  # noqa: SIM115 stays open with the archive
        download(address, copy)
        copy.seek(0)
        return copy
    return file


def _version(file: zipfile.ZipFile) -> str:
    told = [(each.filename, each.header_offset, each.file_size, each.CRC) for each in file.infolist()]
    return f"{zlib.crc32(repr(told).encode()):08x}"
