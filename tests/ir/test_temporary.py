import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from onnxq.errors import ConfigError
from onnxq.ir import temporary
from onnxq.ir.temporary import sweep, temporary_file, temporary_folder, temporary_place

ROOT = Path(__file__).parents[2]

KILLED = """
import os, sys, time
from pathlib import Path
from onnxq.ir.temporary import temporary_file, temporary_folder
with temporary_file(Path(sys.argv[1])) as file, temporary_folder() as folder:
    file.write_text("half")
    (folder / "model.onnx").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporaries(tmp_path, monkeypatch):
    """The folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def other(tmp_path, temporaries):
    """Another process that has a temporary file in the folder `out` and a temporary folder."""
    (tmp_path / "out").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def ours(folder):
    """Names of onnxq's files and folders; onnxruntime leaves one of its own for later runs."""
    return [name for name in os.listdir(folder) if "onnxq-" in name]


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


class TestLeftOvers:
    def test_of_a_killed_process_are_removed(self, other, tmp_path, temporaries):
        kill(other)
        assert [len(ours(folder)) for folder in (tmp_path / "out", temporaries)] == [1, 1]
        sweep(tmp_path / "out")
        with temporary_folder() as folder:
            assert ours(temporaries) == [folder.name]
        assert os.listdir(tmp_path / "out") == []

    def test_of_a_living_process_are_none(self, other, tmp_path, temporaries):
        sweep(tmp_path / "out")
        sweep(temporaries)
        assert [len(ours(folder)) for folder in (tmp_path / "out", temporaries)] == [1, 1]

    def test_of_this_process_are_none(self, tmp_path):
        with temporary_file(tmp_path) as path:
            sweep(tmp_path)
            assert path.exists()

    @pytest.mark.parametrize("name", ["a.onnx", ".a.onnx", ".a.onnx.1a2b3c4d", "onnxq-1a2b3c4d", ".onnxq-00-00"])
    def test_other_files_stay(self, tmp_path, name):
        (tmp_path / name).write_text("")
        sweep(tmp_path)
        assert os.listdir(tmp_path) == [name]

    def test_of_another_machine_stay(self, tmp_path, monkeypatch):
        name = f".onnxq-{'0' * 8}-{'0' * 16}"
        (tmp_path / name).write_text("")
        sweep(tmp_path)
        assert os.listdir(tmp_path) == [name]

    def test_what_a_link_leads_to_stays(self, tmp_path):
        with temporary_file(tmp_path) as path:
            name = path.name
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "a").write_text("")
        (tmp_path / name).symlink_to("kept")
        sweep(tmp_path)
        assert (tmp_path / "kept" / "a").exists()

    def test_no_folder_is_no_error(self, tmp_path):
        sweep(tmp_path / "none")


def test_one_that_was_swept_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    swept = []
    flock = fcntl.flock

    def late(descriptor, how):
        if not swept:
            [name] = os.listdir(tmp_path)
            (tmp_path / name).unlink()
            swept.append(name)
        flock(descriptor, how)

    monkeypatch.setattr(temporary.fcntl, "flock", late)
    with temporary_file(tmp_path) as path:
        assert path.exists()
        assert path.name not in swept


class TestFolders:
    def test_are_private_and_removed(self, temporaries):
        with temporary_folder() as folder:
            assert folder.parent == temporaries
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "a").write_text("")
        assert os.listdir(temporaries) == []

    def test_a_full_one_is_reported_by_name(self, temporaries, monkeypatch):
        told = r"tmp: cannot take temporary files \(No space left.*\); point TMPDIR to"

        def full(path, data):
            raise OSError(28, "No space left on device")

        def fail():
            monkeypatch.setattr(Path, "write_bytes", full)
            raise RuntimeError("protobuf serialization failed")

        with pytest.raises(ConfigError, match=told), temporary_folder():
            fail()
        assert os.listdir(temporaries) == []

    def test_other_errors_of_the_block_pass(self, temporaries):
        with pytest.raises(FileNotFoundError), temporary_folder() as folder:
            (folder / "none").read_text()

    def test_none_at_all_is_reported(self, monkeypatch, tmp_path):
        monkeypatch.setattr(temporary, "_places", lambda: [tmp_path / "a", tmp_path / "b"])
        told = (
            r"no folder takes temporary files \(TMPDIR, .* read-only: .*No such file.*/a/.*; point TMPDIR to one with"
        )
        with pytest.raises(ConfigError, match=told), temporary_folder():
            pass

    def test_the_next_place_is_taken_if_one_is_missing_or_full(self, monkeypatch, tmp_path):
        for name in "bc":
            (tmp_path / name).mkdir()
        places = [tmp_path / name for name in "abc"]
        written, write = [], Path.write_bytes

        def full(path, data):
            written.append(path)
            if tmp_path / "b" in path.parents:
                raise OSError(28, "No space left on device")
            return write(path, data)

        monkeypatch.setattr(temporary, "_places", lambda: places)
        monkeypatch.setattr(Path, "write_bytes", full)
        with temporary_folder() as folder:
            assert folder.parent == tmp_path / "c"
            assert os.listdir(folder) == []
        assert len(written) == 2
        assert [os.listdir(tmp_path / name) for name in "bc"] == [[], []]
        assert temporary_place() == tmp_path / "c"

    def test_a_working_directory_that_was_removed_is_no_place(self, monkeypatch, tmp_path):
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        with temporary_folder() as folder:
            assert folder.is_dir()

    def test_places_are_those_of_tempfile(self, temporaries, monkeypatch):
        assert temporary._places()[0] == temporaries
        for name in ("TMPDIR", "TEMP", "TMP"):
            monkeypatch.delenv(name, raising=False)
        assert temporary._places() == [Path(each) for each in tempfile._candidate_tempdir_list()]

    def test_a_kill_while_a_place_is_tried_leaves_what_a_later_process_removes(self, temporaries):
        code = (
            "import os, signal\n"
            "from pathlib import Path\n"
            "from onnxq.ir import temporary\n"
            "Path.write_bytes = lambda path, data: (path.touch(), os.kill(os.getpid(), signal.SIGKILL))\n"
            "temporary._new_folder()\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
        assert len(ours(temporaries)) == 1
        with temporary_folder() as folder:
            assert ours(temporaries) == [folder.name]
