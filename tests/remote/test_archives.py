import zipfile

import pytest
from web_server import serving

from onnxq.errors import ConfigError, DataError
from onnxq.remote import archives, fetch
from onnxq.remote.address import Address
from onnxq.remote.archives import members, read_member
from onnxq.remote.fetch import NothingThere, TooLarge


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """No archive is open."""
    monkeypatch.setattr(fetch, "_PAUSE", 0)
    monkeypatch.setattr(archives, "_archives", {})


def write(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def at(where, member="", version=""):
    return Address(str(where), member, is_zip=True, version=version)


@pytest.fixture
def pictures(tmp_path):
    """The address of an archive of two files of 8 MB together, and the file."""
    pytest.importorskip("fsspec", reason="the extra remote is not installed")
    write(tmp_path / "x.zip", **{"a.jpg": b"a" * (8 << 20), "b.jpg": b"bb", "sub/c.jpg": b"c"})
    return tmp_path / "x.zip"


def test_files_of_a_path(pictures):
    found = members(at(pictures))
    assert [each.member for each in found] == ["a.jpg", "b.jpg", "sub/c.jpg"]
    assert read_member(found[1]) == b"bb"
    assert [each.member for each in members(at(f"file://{pictures}", "sub"))] == ["sub/c.jpg"]


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_only_parts_are_read_of_servers_that_send_parts(pictures, takes_ranges):
    pytest.importorskip("aiohttp", reason="the extra remote is not installed")
    with serving(pictures.parent, takes_ranges) as server:
        found = members(at(f"{server.address}/x.zip"))
        assert [read_member(each) for each in found[1:]] == [b"bb", b"c"]
        assert bool(server.whole["/x.zip"]) is not takes_ranges


def test_an_archive_is_opened_once(pictures):
    pytest.importorskip("aiohttp", reason="the extra remote is not installed")
    with serving(pictures.parent) as server:
        found = members(at(f"{server.address}/x.zip"))
        before = server.requests["/x.zip"]
        for each in found * 3:
            read_member(each)
        assert server.requests["/x.zip"] == before


def test_few_archives_stay_open(tmp_path, pictures):
    for number in range(9):
        write(tmp_path / f"{number}.zip", a=str(number))
    found = [members(at(tmp_path / f"{number}.zip"))[0] for number in range(9)]
    assert len(archives._archives) == 4
    assert [read_member(each) for each in found] == [b"%d" % number for number in range(9)]


def test_an_archive_that_has_changed(pictures):
    [first, *_] = members(at(pictures))
    write(pictures, **{"a.jpg": b"new"})
    archives._archives.clear()
    with pytest.raises(DataError, match=r"x.zip: changed while it was in use; run this again"):
        read_member(first)
    assert [read_member(each) for each in members(at(pictures))] == [b"new"]


def test_what_is_wrong_with_a_file(pictures):
    with pytest.raises(NothingThere, match=r"zip://d.jpg::.*x.zip: there is no such file in the archive"):
        read_member(at(pictures, "d.jpg"))
    with pytest.raises(TooLarge, match="has more than 1 bytes, which is the limit"):
        read_member(at(pictures, "b.jpg"), 1)
    data = bytearray(pictures.read_bytes())
    place = data.index(b"bb", data.index(b"b.jpg"))
    data[place] ^= 1
    pictures.write_bytes(data)
    with pytest.raises(DataError, match=r"zip://b.jpg::.*x.zip: cannot be read \(Bad CRC-32"):
        read_member(at(pictures, "b.jpg"))


@pytest.mark.parametrize("content", [b"", b"no archive", b"x" * 100])
def test_what_is_no_archive(tmp_path, content):
    pytest.importorskip("fsspec", reason="the extra remote is not installed")
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"x.zip: is no ZIP archive \(.*\); give a folder or a list"):
        members(at(tmp_path / "x.zip"))


def test_an_archive_that_cannot_be_reached(pictures):
    pytest.importorskip("aiohttp", reason="the extra remote is not installed")
    with serving(pictures.parent) as server:
        server.faults["/x.zip"] = 403, 9
        with pytest.raises(ConfigError, match=r"x.zip: access is refused \(403\)"):
            members(at(f"{server.address}/x.zip"))
        with pytest.raises(NothingThere, match=r"y.zip: there is no such file \(404\)"):
            members(at(f"{server.address}/y.zip"))


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_server_that_drips_is_not_waited_for(pictures, monkeypatch, takes_ranges):
    pytest.importorskip("aiohttp", reason="the extra remote is not installed")
    monkeypatch.setattr(fetch, "_SILENCE", 0.2)
    with serving(pictures.parent, takes_ranges) as server:
        server.faults["/x.zip"] = "drip", 9
        with pytest.raises(ConfigError, match=r"x.zip: gives no answer in time; check the address and the network"):
            members(at(f"{server.address}/x.zip"))


def test_a_server_that_drips_a_picture_of_an_archive_is_not_waited_for(pictures, monkeypatch):
    pytest.importorskip("aiohttp", reason="the extra remote is not installed")
    monkeypatch.setattr(fetch, "_SILENCE", 0.2)
    with serving(pictures.parent, takes_ranges=True) as server:
        first, *_ = members(at(f"{server.address}/x.zip"))
        server.faults["/x.zip"] = "drip", 9
        with pytest.raises(ConfigError, match=r"x.zip: gives no answer in time; check the address and the network"):
            read_member(first)
        server.faults.clear()
        assert read_member(first) == b"a" * (8 << 20)
