import pickle
from pathlib import Path

import pytest

from onnxq.errors import DataError
from onnxq.remote.address import Address, is_address, location, was_address


@pytest.mark.parametrize("text", ["s3://b/x", "HTTP://h", "gs://b", "memory:///a", "zip://a::/x.zip", "github+a://x"])
def test_addresses(text):
    assert is_address(text)
    assert isinstance(location(text), Address)


@pytest.mark.parametrize("text", ["images", "C://images", "C:\\images", "a/b://c", "s3:/b", "*.jpg", "", "http:"])
def test_paths(text):
    assert not is_address(text)
    assert location(text) == Path(text)


def test_what_is_a_location_stays():
    for place in (Path("a"), Address("s3://b")):
        assert location(place) is place


def test_a_path_that_was_an_address_is_known():
    assert was_address(Path("s3://bucket/out.onnx"))
    assert not was_address(Path("out/a.onnx"))
    assert not was_address(Path("C:/out.onnx"))


@pytest.mark.parametrize(
    ("text", "parts", "suffix"),
    [
        ("http://h:80/a%20b/c.JPG?x=1#y", ("http", "h:80", "a b", "c.JPG"), ".JPG"),
        ("https://h/50%25.png", ("https", "h", "50%.png"), ".png"),
        ("s3://b/a%20b/q?.png", ("s3", "b", "a%20b", "q?.png"), ".png"),
        ("memory:///a//b/", ("memory", "a", "b"), ""),
        ("http://h/pics.zip/", ("http", "h", "pics.zip"), ""),
        ("zip://a/b.png::http://h/x%20y.zip", ("http", "h", "x y.zip", "a", "b.png"), ".png"),
        ("zip://::/data/x.zip", ("file", "data", "x.zip"), ".zip"),
    ],
)
def test_parts(text, parts, suffix):
    address = Address.parse(text)
    assert address.parts == parts
    assert (address.name, address.suffix) == (parts[-1], suffix)


@pytest.mark.parametrize(
    ("text", "parent"),
    [
        ("http://h/a/b%20c.jpg?x=1", "http://h/a"),
        ("s3://b/a/", "s3://b"),
        ("s3://b", "s3://b"),
        ("zip://a/b.jpg::s3://b/x.zip", "zip://a::s3://b/x.zip"),
        ("zip://b.jpg::s3://b/x.zip", "zip://::s3://b/x.zip"),
    ],
)
def test_the_parent(text, parent):
    assert str(Address.parse(text).parent) == parent


@pytest.mark.parametrize(
    ("folder", "name", "found"),
    [
        ("http://h/a", "b c/50%.jpg", "http://h/a/b%20c/50%25.jpg"),
        ("s3://b/a/", "./b c/50%.jpg", "s3://b/a/b c/50%.jpg"),
        ("s3://b/a/c", "../x/y.jpg", "s3://b/a/x/y.jpg"),
        ("zip://a::s3://b/x.zip", "b.jpg", "zip://a/b.jpg::s3://b/x.zip"),
        ("zip://::s3://b/x.zip", "b.jpg", "zip://b.jpg::s3://b/x.zip"),
    ],
)
def test_what_is_below(folder, name, found):
    assert str(Address.parse(folder) / name) == found


def test_labels_of_an_image():
    image = Address("http://h/images/data/images/val/a%20b.jpg")
    swapped = image.swapped("images", "labels")
    assert str(swapped) == "http://h/images/data/labels/val/a%20b.jpg"
    assert str(swapped.with_suffix(".txt")) == "http://h/images/data/labels/val/a%20b.txt"
    assert Address("s3://images/val/a.jpg").swapped("images", "labels") is None  # a bucket
    assert Address("s3://b/val/a.jpg").swapped("images", "labels") is None


def test_secrets_are_not_shown():
    address = Address("https://me:secret@h/a.jpg?X-Amz-Signature=0a&size=3&token=5")
    assert str(address) == "https://me:***@h/a.jpg?X-Amz-Signature=***&size=3&token=***"
    assert str(Address.parse("zip://a.jpg::https://me:secret@h/x.zip")) == "zip://a.jpg::https://me:***@h/x.zip"
    assert str(Address("s3://b/a@b.jpg")) == "s3://b/a@b.jpg"
    assert address.text.endswith("token=5")


@pytest.mark.parametrize("text", ["simplecache::s3://b/x", "zip://a::zip://b::s3://b/x.zip", "zip://a::"])
def test_other_chains_are_refused(text):
    with pytest.raises(DataError, match="only ZIP archives can be chained, as zip://FOLDER::ADDRESS; give another"):
        Address.parse(text)


def test_keys_are_in_the_order_of_paths():
    names = ["a b.jpg", "sub/a.jpg", "sub-1.jpg", "ä.jpg", "50%.jpg"]
    made = sorted((Address("http://h/pics") / name for name in names), key=lambda each: each.key)
    assert ["/".join(each.parts[3:]) for each in made] == sorted(names)


def test_a_copy_is_the_same():
    address = Address("s3://b/x.zip", "a.jpg", is_zip=True, version="5")
    assert pickle.loads(pickle.dumps(address)) == address
