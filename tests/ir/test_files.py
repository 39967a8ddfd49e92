import os

import pytest

from onnxq.errors import ConfigError
from onnxq.ir.files import atomic_write, check_writable


@pytest.fixture(params=[0o022, 0o077, 0o027])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


class TestReplaceFile:
    def test_makes_the_file(self, tmp_path):
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "new"
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_the_old_file_is_whole_until_the_end(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with atomic_write(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            assert temporary.parent == tmp_path
        assert path.read_text() == "new"

    def test_after_an_error_the_old_file_is_there_and_nothing_else(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(UnicodeEncodeError), atomic_write(path) as temporary:
            temporary.write_text("half\udc80")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_after_an_error_there_is_no_new_file(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a.txt"):
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == []

    def test_has_the_mode_of_any_new_file(self, tmp_path, umask):
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        (tmp_path / "b.txt").write_text("new")
        modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("a.txt", "b.txt")}
        assert modes == {0o666 & ~umask}

    def test_the_umask_is_left_alone_which_all_threads_share(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("set for all threads"))
        with atomic_write(tmp_path / "a.txt"):
            pass

    def test_a_path_as_text_will_do(self, tmp_path):
        with atomic_write(str(tmp_path / "a.txt")) as temporary:
            temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "new"

    def test_two_at_once_do_not_disturb_each_other(self, tmp_path):
        with atomic_write(tmp_path / "a.txt") as first, atomic_write(tmp_path / "a.txt") as second:
            first.write_text("first")
            second.write_text("second")
        assert (tmp_path / "a.txt").read_text() == "first"
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_a_link_stays_and_what_it_leads_to_is_replaced(self, tmp_path):
        (tmp_path / "far").mkdir()
        (tmp_path / "far" / "a.txt").write_text("old")
        (tmp_path / "link").symlink_to(tmp_path / "far" / "a.txt")
        with atomic_write(tmp_path / "link") as temporary:
            temporary.write_text("new")
            assert temporary.parent == tmp_path / "far"
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far" / "a.txt").read_text() == "new"

    def test_a_link_to_nothing_gets_its_file(self, tmp_path):
        (tmp_path / "link").symlink_to("a.txt")
        with atomic_write(tmp_path / "link") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "new"

    def test_full_disks_are_reported(self, tmp_path):
        with (
            pytest.raises(ConfigError, match=r"a\.txt: cannot be written \(No space left on device\); choose another"),
            atomic_write(tmp_path / "a.txt"),
        ):
            raise OSError(28, "No space left on device")
        assert os.listdir(tmp_path) == []


@pytest.fixture(params=["replace", "check"])
def attempt(request):
    """Both ways to find that a path cannot be written to."""

    def replace(path):
        with atomic_write(path):
            raise AssertionError("not to be reached")

    return {"replace": replace, "check": check_writable}[request.param]


class TestPlacesThatCannotBeWrittenTo:
    def test_a_folder_that_is_not_there(self, tmp_path, attempt):
        with pytest.raises(ConfigError, match=r"none.a\.txt: cannot be written \(No such file or directory\); choose"):
            attempt(tmp_path / "none" / "a.txt")

    def test_a_folder(self, tmp_path, attempt):
        with pytest.raises(ConfigError, match="is a folder; give the name of a file"):
            attempt(tmp_path)

    def test_a_pipe_stays_one(self, tmp_path, attempt):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to("pipe")
        for name in ("pipe", "link"):
            with pytest.raises(ConfigError, match=f"{name}: is a device or a pipe; give the name of a file"):
                attempt(tmp_path / name)
        assert (tmp_path / "pipe").is_fifo()
        assert (tmp_path / "link").is_symlink()

    def test_below_a_file(self, tmp_path, attempt):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match=r"file.a\.txt: cannot be written"):
            attempt(tmp_path / "file" / "a.txt")

    def test_a_name_too_long(self, tmp_path, attempt):
        with pytest.raises(ConfigError, match="cannot be written"):
            attempt(tmp_path / ("a" * 300))


def test_check_writable_leaves_no_trace(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    check_writable(tmp_path / "new.txt")
    check_writable(tmp_path / "old.txt")
    assert os.listdir(tmp_path) == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"
