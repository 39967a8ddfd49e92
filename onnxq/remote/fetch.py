"""Reads files at addresses by fsspec, which is imported when the first of them is read."""

import asyncio
import contextlib
import functools
import importlib
import io
import re
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from onnxq import memory
from onnxq.errors import ConfigError, DataError, OnnxqError
from onnxq.remote.address import Address

T = TypeVar("T")

_NO_PLACES = frozenset({
    "asynclocal", "blockcache", "cached", "dask", "data", "dir", "filecache", "generic", "jlab", "jupyter",
    "libarchive", "reference", "simplecache", "tar", "zip",
})  # fmt: skip
"""Protocols that stand for other files, options or code, which a list of pictures from a stranger must not name."""

LARGEST = 500_000_000
"""Bytes of a file that is read, unless the user allows another number."""

_CONNECT, _SILENCE = 20, 60
"""Seconds in which a web server must take the connection, and then send the next bytes."""

_LEAST = 1000
"""Bytes that it must then send in a second, on the average over that time."""

_PAUSE = 0.5
"""Seconds before the second try."""

_REFUSED = (401, 403, 407)

_FOR_A_MOMENT = (429, 500, 502, 503, 504)
"""Answers of web servers that another try may not get."""

_CREDENTIALS = "check that credentials for it are where its library looks for them, on each worker too"

_PACKAGE = re.compile(r"(?i)(?:install|requires) ['\"]?([\w.-]+)")


class NothingThere(DataError):
    """There is no file at an address."""


class TooLarge(DataError):
    """A file at an address has more bytes than may be read."""


def read(address: Address, most: int = LARGEST) -> bytes:
    """Return the bytes of a file at an address that is in no archive.

    A connection that is dropped is tried once more.

    Args:
        address: of the file.
        most: bytes that it may have, unless the user allows another number.

    Raises:
        NothingThere: there is no such file.
        TooLarge: it has more bytes.
        ConfigError: it cannot be reached: the connection, the server, the credentials or a package is at fault.
        DataError: it is damaged.
    """
    limit = memory.limit(most)

    def take() -> bytes:
        if address.is_http:
            # What fsspec raises refers to itself, and so holds on to the file: what is in it is freed here.
            with _Limited(address, limit) as whole:
                download(address, whole)
                return whole.getvalue()
        system, path = opened(address)
        with system.open(path, "rb") as file:
            return up_to(address, file, limit)

    return twice(address, take)


def up_to(address: Address, file: Any, limit: int) -> bytes:
    """Read an open file to its end.

    Raises:
        TooLarge: it has more bytes.
    """
    data = bytes(file.read(limit + 1))
    if len(data) > limit:
        raise too_large(address, limit)
    return data


def too_large(address: Address, limit: int) -> TooLarge:
    """Return the error for a file of more bytes than the limit."""
    return TooLarge(
        f"{address}: has more than {memory.size_text(limit)}, which is the limit: give a smaller file, or allow more "
        f"with {memory.OPTION}"
    )


def download(address: Address, file: io.IOBase) -> None:
    """Write the file that a web server has at an address into an open file, in one piece."""
    # `open` of fsspec asks for the size first, and takes each failure of that for a missing file.
    system, url = opened(address)
    system.get_file(url, file)


def opened(address: Address) -> tuple[Any, str]:
    """Return the file system of fsspec that an address is in, and the path in it.

    Raises:
        ConfigError: fsspec, or the package that reads the protocol, is not installed.
        DataError: the protocol is of no place where files are.
    """
    if address.protocol in _NO_PLACES:
        raise DataError(f"{address}: {address.protocol}:// is no place of files; give the address of the files")
    with _packages(address):
        core: Any = importlib.import_module("fsspec.core")
        if not address.is_http:
            # A listing that is kept does not see what has changed since.
            text = address.text if "://" in address.text else f"file://{address.text}"
            found: tuple[Any, str] = core.url_to_fs(text, use_listings_cache=False)
            return found
        aiohttp: Any = importlib.import_module("aiohttp")
        fsspec: Any = importlib.import_module("fsspec")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
        options = {"timeout": timeout, "trust_env": True, "response_class": _watched(aiohttp.ClientResponse)}
        return fsspec.filesystem(address.protocol, client_kwargs=options), address.text


@functools.cache
def _watched(kind: Any) -> Any:
    """Return a class of answers of web servers, derived from that of aiohttp, which are given up if they drip."""

    class Watched(kind):  # type: ignore[misc]
        async def start(self, connection: Any) -> Any:
            await asyncio.wait_for(super().start(connection), _SILENCE)
            _look_later(weakref.ref(self), 0)
            return self

    return Watched


def _look_later(answer: "weakref.ref[Any]", before: int) -> None:
    asyncio.get_running_loop().call_later(_SILENCE, _look, answer, before)


def _look(answer: "weakref.ref[Any]", before: int) -> None:
    """Let the reading of an answer fail if too few bytes have come since there were `before`."""
    content = getattr(answer(), "content", None)
    if content is None or content.is_eof():
        return
    if content.total_bytes - before < _LEAST * _SILENCE:
        content.set_exception(TimeoutError())
    else:
        _look_later(answer, content.total_bytes)


def twice(address: Address, take: Callable[[], T]) -> T:
    """Return what a function returns that reads at an address; it is called again if the connection is dropped.

    Raises:
        OnnxqError: as from `read`.
    """
    for is_last in (False, True):
        try:
            return take()
        except OnnxqError:
            raise
        except Exception as error:  # each library raises its own types
            cause = _cause(error)
            refusal = _refusal(address, cause, is_last)
        if is_last or not _is_dropped(cause):
            # Errors of libraries cannot all be pickled, and workers send what an error was raised from along.
            raise refusal
        time.sleep(_PAUSE)
    raise AssertionError


class _Limited(io.BytesIO):
    """Bytes that a file is written to, up to a limit."""

    def __init__(self, address: Address, limit: int) -> None:
        super().__init__()
        self._address = address
        self._limit = limit

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._limit:
            raise too_large(self._address, self._limit)
        return super().write(data)


def _cause(error: Exception) -> BaseException:
    """Return what is behind an error: fsspec says of any failure of a web server that the file is missing."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return error.__cause__
    return error


def _status(error: BaseException) -> int:
    """Return the status of HTTP that an error tells of; 0 for other errors."""
    found = getattr(error, "status", 0) or getattr(error, "code", 0)
    return found if isinstance(found, int) else 0


def _is_dropped(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError) or _is_late(error):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    is_connection = isinstance(error, ConnectionError) or bool(names & {"ClientConnectionError", "ClientPayloadError"})
    return is_connection or _status(error) in _FOR_A_MOMENT


def _is_late(error: BaseException) -> bool:
    return isinstance(error, TimeoutError)


def _refusal(address: Address, error: BaseException, was_tried_twice: bool) -> OnnxqError:
    """Return the error for what a library has raised."""
    status, names = _status(error), " ".join(kind.__name__ for kind in type(error).__mro__)
    words = str(error).strip().splitlines()
    told = f" ({words[0]})" if words else f" ({type(error).__name__})"
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        why = f" ({status or 404})" if address.is_http else ""
        return NothingThere(f"{address}: there is no such file{why}; check the address")
    if status in _REFUSED or isinstance(error, PermissionError) or "Credential" in names:
        why = f" ({status})" if status in _REFUSED else told
        return ConfigError(f"{address}: access is refused{why}; {_CREDENTIALS}")
    if _is_late(error):
        return ConfigError(f"{address}: gives no answer in time; check the address and the network, and run this again")
    if _is_dropped(error):
        often = "twice" if was_tried_twice else "once"
        why = f" ({status})" if status else told
        return ConfigError(f"{address}: the connection failed {often}{why}; check the network, and run this again")
    # What is wrong with a file in an archive is wrong with this picture alone.
    kind = ConfigError if status or isinstance(error, OSError) else DataError
    return kind(f"{address}: cannot be read{f' ({status})' if status else told}; check the address")


@contextlib.contextmanager
def _packages(address: Address) -> Iterator[None]:
    """Name the package that is not installed."""
    try:
        yield
    except ImportError as error:
        name = getattr(error, "name", None)
        cause = error.__cause__ or error
        lacking = getattr(cause, "name", None) or name or ""
        if address.is_http or lacking.partition(".")[0] == "fsspec":
            remedy = "pip install 'onnxq[remote]'"
        else:
            found = _PACKAGE.search(str(error))
            remedy = f"pip install {found[1] if found else lacking.partition('.')[0]}"
        told = f"the package {lacking.partition('.')[0]}" if lacking else "what reads it"
        raise ConfigError(f"{address}: {told} is not installed, here or on a worker; {remedy}") from None
    except ValueError as error:
        if "rotocol not known" not in str(error):
            raise
        raise ConfigError(
            f"{address}: fsspec knows no protocol {address.protocol}; check the address, or install the package that "
            "reads it"
        ) from None
