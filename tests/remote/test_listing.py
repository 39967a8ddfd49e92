from dataclasses import replace

import pytest
from web_server import HIDDEN, NAMES

from onnxq.errors import DataError
from onnxq.remote import listing
from onnxq.remote.address import Address
from onnxq.remote.fetch import NothingThere
from onnxq.remote.fetched import read_bytes
from onnxq.remote.listing import files_below, is_pattern, matching


@pytest.fixture(params=["http", "http/", "memory", "memory/", "file", "zip of http", "zip of file", "zip of path"])
def pics(request, folder):
    """The address of the folder of pictures."""
    kind = request.param
    if kind in ("memory", "memory/"):
        request.getfixturevalue("memory")
        return Address("memory://pics" if kind == "memory" else "memory:///pics/")
    web = request.getfixturevalue("web")
    texts = {
        "http": f"{web.address}/pics",
        "http/": f"{web.address}/pics/",
        "file": f"file://{folder}/pics",
        "zip of http": f"zip://pics::{web.address}/pics.zip",
        "zip of file": f"zip://pics/::file://{folder}/pics.zip",
        "zip of path": f"zip://pics::{folder}/pics.zip",
    }
    return Address.parse(texts[kind])


def names(files, folder):
    return ["/".join(file.parts[len(folder.parts) :]) for file in files]


def test_files_are_in_the_order_of_paths_and_can_be_read(pics):
    found = files_below(pics)
    assert names(found, pics) == sorted(NAMES)
    assert not set(names(found, pics)) & set(HIDDEN)
    assert [read_bytes(file).decode() for file in found] == sorted(NAMES)


def below(folder, pattern):
    """The address of a pattern below a folder, as it is typed."""
    text, member = folder.text.rstrip("/"), f"{folder.member}/{pattern}"
    return replace(folder, member=member) if folder.is_zip else Address(f"{text}/{pattern}")


def test_patterns(pics):
    assert names(matching(below(pics, "*")), pics) == sorted(name for name in NAMES if "/" not in name)
    assert names(matching(below(pics, "**/*.jpg")), pics) == sorted(NAMES)
    assert names(matching(below(pics, "s*/c*")), pics) == ["sub/c*.jpg"]
    assert names(matching(below(pics, "b[1]*")), pics) == ["b[1].jpg"]
    assert matching(below(pics, "none*")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://b/*.jpg", True), ("s3://b/q?[1].jpg", False), ("zip://*.jpg::s3://b/x.zip", True), ("http://h/a", False)],
)
def test_only_stars_make_a_pattern(text, expected):
    assert is_pattern(Address.parse(text)) is expected


def test_what_a_folder_gains_is_seen_the_next_time(memory):
    before = files_below(Address("memory://pics"))
    memory.pipe_file("/pics/new.jpg", b"new")
    assert len(files_below(Address("memory://pics"))) == len(before) + 1


def test_folders_that_are_not_there(web, memory, folder):
    with pytest.raises(NothingThere, match=r"none/?: there is no such file \(404\); check the address"):
        files_below(Address(f"{web.address}/none"))
    for text in ("memory://none", f"file://{folder}/none"):
        with pytest.raises(NothingThere, match=r"none: there is no such folder, or it has no files; check the address"):
            files_below(Address(text))
    with pytest.raises(NothingThere, match=r"zip://none::.*pics.zip: there is no such folder, or it has no files"):
        files_below(Address.parse(f"zip://none::{folder}/pics.zip"))


PAGE = """<html><a href="?C=N;O=D">Name</a> <A HREF='../'>up</A> <a href="/">root</a> <a href="a.jpg">a</a>
<a href="b%20c.jpg#top">b</a> <a href="/pics/d.jpg">d</a> <a href="http://other/pics/e.jpg">e</a>
<a href="{here}/pics/f&amp;g.jpg">f</a> <a href="mailto:a@b.jpg">m</a> <a href="sub/h.jpg">h</a> <a>none</a>
<a href="./i.jpg">i</a> <a href="a.jpg">again</a> <a href="down/">down</a> <a href="https:///x.jpg">x</a>
http://text/pics/j.jpg <img src="k.jpg"></html>"""


def test_links_of_a_page(web):
    web.pages["/pics/"] = PAGE.replace("{here}", web.address)
    web.pages["/pics/down/"] = '<a href="/pics/">up</a><a href="l.jpg">l</a><a href="down/">again</a>'
    web.pages["/pics/down/down/"] = "<a href='/pics/down/'>circle</a>"
    folder = Address(f"{web.address}/pics")
    assert names(files_below(folder), folder) == ["a.jpg", "b c.jpg", "d.jpg", "down/l.jpg", "f&g.jpg", "i.jpg"]
    assert web.requests["/pics/"] == 1


def test_a_page_without_links(web):
    web.pages["/pics/"] = "<p>welcome</p>"
    with pytest.raises(NothingThere, match="the server's page of the folder must have links to its files"):
        files_below(Address(f"{web.address}/pics"))


def test_pages_without_end(web, monkeypatch):
    monkeypatch.setattr(listing, "_PAGES", 3)
    for depth in range(1, 9):
        web.pages["/pics/" + "a/" * (depth - 1)] = '<a href="a/">deeper</a>'
    with pytest.raises(DataError, match=r"has more than 3 folders; give a list of its pictures as .txt"):
        files_below(Address(f"{web.address}/pics"))
