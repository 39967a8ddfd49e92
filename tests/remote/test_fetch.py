import importlib
import io
import sys

import pytest

from onnxq import memory as limits
from onnxq.errors import ConfigError, DataError
from onnxq.remote import fetch
from onnxq.remote.address import Address
from onnxq.remote.fetch import NothingThere, TooLarge, download, opened, read, twice

PICTURE = "/pics/a%20b.jpg"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """No pause before the second try."""
    monkeypatch.setattr(fetch, "_PAUSE", 0)


def test_bytes_are_read(web, memory, folder):
    for text in (f"{web.address}{PICTURE}", "memory://pics/a b.jpg", f"file://{folder}/pics/a b.jpg"):
        assert read(Address(text)) == b"a b.jpg"


def test_the_size_is_not_asked_for_before(web):
    read(Address(web.address + PICTURE))
    assert web.requests == {PICTURE: 1}


@pytest.mark.parametrize("fault", ["drop", 500, 503, 429])
def test_a_connection_that_is_dropped_is_tried_once_more(web, fault):
    address = Address(web.address + PICTURE)
    web.faults[PICTURE] = fault, 1
    assert read(address) == b"a b.jpg"
    web.faults[PICTURE] = fault, 2
    with pytest.raises(ConfigError, match=r"a%20b.jpg: the connection failed twice \(.*\); check the network, and run"):
        read(address)
    assert web.requests[PICTURE] == 4


@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_is_no_missing_file(web, status):
    web.faults[PICTURE] = status, 5
    with pytest.raises(ConfigError, match=rf"a%20b.jpg: access is refused \({status}\); check that credentials"):
        read(Address(web.address + PICTURE))
    assert web.requests[PICTURE] == 1


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file(web, status):
    web.faults[PICTURE] = status, 1
    with pytest.raises(NothingThere, match=rf"a%20b.jpg: there is no such file \({status}\); check the address"):
        read(Address(web.address + PICTURE))


def test_another_status(web):
    web.faults[PICTURE] = 418, 1
    with pytest.raises(ConfigError, match=r"a%20b.jpg: cannot be read \(418\); check the address"):
        read(Address(web.address + PICTURE))


def test_missing_files_of_other_systems(memory, folder):
    for text in ("memory://pics/none.jpg", f"file://{folder}/none.jpg"):
        with pytest.raises(NothingThere, match=r"none.jpg: there is no such file; check the address"):
            read(Address(text))


def test_silence_is_not_waited_for(web, monkeypatch):
    monkeypatch.setattr(fetch, "_SILENCE", 0.2)
    web.faults[PICTURE] = "silent", 1
    with pytest.raises(ConfigError, match=r"a%20b.jpg: gives no answer in time; check the address and the network"):
        read(Address(web.address + PICTURE))


@pytest.mark.parametrize("fault", ["drip", "drip headers"])
def test_a_server_that_drips_is_not_waited_for(web, monkeypatch, fault):
    monkeypatch.setattr(fetch, "_SILENCE", 0.2)
    web.faults[PICTURE] = fault, 1
    with pytest.raises(ConfigError, match=r"a%20b.jpg: gives no answer in time; check the address and the network"):
        read(Address(web.address + PICTURE))


def test_a_slow_server_is_waited_for(web, monkeypatch):
    monkeypatch.setattr(fetch, "_SILENCE", 0.6)
    monkeypatch.setattr(fetch, "_LEAST", 1)
    web.faults[PICTURE] = "drip", 1
    assert read(Address(web.address + PICTURE)) == b"x" * 100


def test_what_cannot_be_read_is_not_kept_in_memory(web, monkeypatch):
    kept = []

    class Kept(fetch._Limited):
        def __init__(self, *args):
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(fetch, "_Limited", Kept)
    web.faults[PICTURE] = "drop", 2
    with pytest.raises(ConfigError):
        read(Address(web.address + PICTURE))
    with pytest.raises(TooLarge):
        read(Address(web.address + PICTURE), 6)
    assert [each.closed for each in kept] == [True, True, True]


def test_nobody_is_there(web):
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9/a.jpg: the connection failed twice \(Cannot connect"):
        read(Address("http://127.0.0.1:9/a.jpg"))


@pytest.mark.parametrize("protocol", ["http", "memory"])
def test_large_files_are_refused(web, memory, protocol):
    address = Address(web.address + PICTURE if protocol == "http" else "memory://pics/a b.jpg")
    assert read(address, 7) == b"a b.jpg"
    with pytest.raises(TooLarge, match=r"has more than 6 bytes, which is the limit: .*or allow more with --max-memory"):
        read(address, 6)
    with limits.limited_to(6), pytest.raises(TooLarge):
        read(address)
    with limits.limited_to(7):
        assert read(address, 1) == b"a b.jpg"


class Odd(Exception):
    pass


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NoCredentialsError("Unable to locate credentials"), "access is refused \\(Unable to locate credentials\\)"),
        (PermissionError("Forbidden\nmore"), "access is refused \\(Forbidden\\); check that credentials"),
        (ConnectionResetError(), "the connection failed twice \\(ConnectionResetError\\)"),
        (TimeoutError(), "gives no answer in time"),
        (OSError("no bucket"), "cannot be read \\(no bucket\\)"),
        (Odd("broken"), "cannot be read \\(broken\\)"),
    ],
)
def test_errors_of_libraries(error, message):
    def fail():
        raise error

    with pytest.raises(DataError if isinstance(error, Odd) else ConfigError, match=f"s3://b/a.jpg: {message}"):
        twice(Address("s3://b/a.jpg"), fail)


@pytest.mark.parametrize(
    ("address", "package", "module"),
    [
        ("s3://b/a.jpg", "s3fs", "s3fs"),
        ("gs://b/a.jpg", "gcsfs", "gcsfs"),
        ("sftp://h/a.jpg", "paramiko", "paramiko"),
        ("http://h/a.jpg", "'onnxq[remote]'", "aiohttp"),
        ("s3://h/a.jpg", "'onnxq[remote]'", "fsspec"),
    ],
)
def test_packages_that_are_not_installed_are_named(address, package, module, monkeypatch):
    registry = pytest.importorskip("fsspec.registry", reason="the extra remote is not installed")
    monkeypatch.setattr(registry, "_registry", {})
    for name in [name for name in sys.modules if name.partition(".")[0] == module] or [module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as caught:
        opened(Address(address))
    assert str(caught.value) == (
        f"{address}: the package {module} is not installed, here or on a worker; pip install {package}"
    )


def test_unknown_protocols():
    pytest.importorskip("fsspec", reason="the extra remote is not installed")
    with pytest.raises(ConfigError, match="foo://x: fsspec knows no protocol foo; check the address, or install"):
        read(Address("foo://x"))


@pytest.mark.parametrize("protocol", ["reference", "simplecache", "data", "tar"])
def test_protocols_that_stand_for_something_else(protocol):
    with pytest.raises(DataError, match=f"{protocol}://x: {protocol}:// is no place of files; give the address of"):
        read(Address(f"{protocol}://x"))


def test_a_file_is_written_in_one_piece(web, folder):
    file = io.BytesIO()
    download(Address(f"{web.address}/pics.zip"), file)
    assert file.getvalue() == (folder / "pics.zip").read_bytes()


def test_only_this_package_needs_fsspec():
    assert importlib.import_module("onnxq.remote.fetch")
    assert "fsspec" not in vars(fetch)
