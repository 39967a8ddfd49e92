"""Downloads, from files in the place of a server."""

import hashlib
from dataclasses import replace

import pytest

from models import fetch
from models.fetch import RELEASES, Release

CONTENT = b"a model" * 1000


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A release of this content, named `net`."""
    source = tmp_path / "served.onnx"
    source.write_bytes(CONTENT)
    made = Release(source.as_uri(), len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "MIT", "small")
    monkeypatch.setattr(fetch, "RELEASES", {"net": made})
    return made


def call(tmp_path, *names):
    (tmp_path / "out").mkdir(exist_ok=True)
    return fetch.main([*names, "--folder", str(tmp_path / "out")])


def test_a_file_is_downloaded(tmp_path, release, capsys):
    assert call(tmp_path, "net") == 0
    assert (tmp_path / "out" / "net.onnx").read_bytes() == CONTENT
    said = capsys.readouterr()
    assert said.out.strip().endswith("net.onnx")
    assert "licence: MIT" in said.err


def test_progress_is_told_in_megabytes(tmp_path, release, monkeypatch):
    (tmp_path / "served.onnx").write_bytes(bytes(2_500_000))
    large = replace(release, bytes=2_500_000, sha256=hashlib.sha256(bytes(2_500_000)).hexdigest())
    monkeypatch.setattr(fetch, "RELEASES", {"net": large})
    told = []
    fetch.fetch("net", tmp_path / "net.onnx", lambda *step: told.append(step))
    assert told == [("net, MB", 1, 2), ("net, MB", 2, 2), ("net, MB", 2, 2)]


def test_what_is_there_is_not_downloaded_again(tmp_path, release):
    assert call(tmp_path, "net") == 0
    (tmp_path / "served.onnx").unlink()
    assert call(tmp_path, "net") == 0


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"bytes": 3}])
def test_another_file_is_not_kept(tmp_path, release, monkeypatch, capsys, change):
    monkeypatch.setattr(fetch, "RELEASES", {"net": replace(release, **change)})
    assert call(tmp_path, "net") == 1
    assert not list((tmp_path / "out").iterdir())
    assert "the file is discarded" in " ".join(capsys.readouterr().err.split())


def test_no_connection_is_said(tmp_path, release, monkeypatch, capsys):
    nowhere = replace(release, url="http://127.0.0.1:9/net.onnx")
    monkeypatch.setattr(fetch, "RELEASES", {"net": nowhere})
    assert call(tmp_path, "net") == 1
    assert not list((tmp_path / "out").iterdir())
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be downloaded" in said
    assert "check the connection to the internet" in said


def test_a_folder_that_is_not_there(tmp_path, release, capsys):
    assert fetch.main(["net", "--folder", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


def test_unknown_names_are_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(tmp_path, "yolov99")
    assert stopped.value.code == 2
    assert "yolov5n" in capsys.readouterr().err


def test_the_help_lists_all(capsys):
    with pytest.raises(SystemExit):
        fetch.main(["--help"])
    said = capsys.readouterr().out
    for name, each in RELEASES.items():
        assert name in said
        assert each.licence in said
        assert each.url.startswith("https://github.com/")
        assert len(each.sha256) == 64
