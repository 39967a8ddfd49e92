"""Files with awkward names in a folder, and the same folder at addresses of several kinds."""

import importlib
import zipfile

import pytest
from web_server import HIDDEN, NAMES, serving


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder `pics` whose files hold their own names, and an archive of it, `pics.zip`."""
    place = tmp_path_factory.mktemp("remote")
    for name in (*NAMES, *HIDDEN):
        file = place / "pics" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name, "utf-8")
    with zipfile.ZipFile(place / "pics.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("pics")
        for name in reversed((*NAMES, *HIDDEN)):
            archive.write(place / "pics" / name, f"pics/{name}")
    return place


@pytest.fixture
def web(folder):
    """A web server of the folder that sends whole files only."""
    pytest.importorskip("aiohttp", reason="the extra remote is not installed")
    with serving(folder) as server:
        yield server


@pytest.fixture
def memory(folder):
    """The same files in the memory of this process."""
    pytest.importorskip("fsspec", reason="the extra remote is not installed")
    system = importlib.import_module("fsspec").filesystem("memory")
    for name in reversed((*NAMES, *HIDDEN)):
        system.pipe_file(f"/pics/{name}", name.encode())
    yield system
    system.rm("/pics", recursive=True)
