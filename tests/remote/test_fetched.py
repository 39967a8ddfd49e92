from pathlib import Path

from onnxq.remote.address import Address
from onnxq.remote.fetched import Fetched, fetched, read_bytes


def test_a_path_stays_a_path(folder):
    path = folder / "pics" / "a b.jpg"
    assert fetched(path) is path
    assert read_bytes(path) == b"a b.jpg"


def test_what_is_at_an_address_can_be_opened_again_and_again(web):
    address = Address(f"{web.address}/pics/a%20b.jpg")
    found = fetched(address)
    assert isinstance(found, Fetched)
    assert [found.open("rb").read() for _ in range(2)] == [b"a b.jpg"] * 2
    assert str(found) == str(address)
    assert repr(found.open()) == repr(str(address))
    assert web.requests["/pics/a%20b.jpg"] == 1


def test_a_file_in_an_archive(folder):
    found = fetched(Address.parse(f"zip://pics/a b.jpg::{Path(folder, 'pics.zip')}"))
    assert isinstance(found, Fetched)
    assert found.data == b"a b.jpg"
