import os
import stat

import pytest

from onnxq.errors import ConfigError, DataError
from onnxq.ir.files import atomic_write, check_writable, read_json, refuse_special, why_missing


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


class TestWhatIsReplaced:
    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o666])
    def test_keeps_its_mode(self, tmp_path, mode):
        path = tmp_path / "a.txt"
        path.write_text("old")
        path.chmod(mode)
        with atomic_write(path) as temporary:
            assert temporary.stat().st_mode & 0o7777 == mode  # nobody else reads it meanwhile
            temporary.write_text("new")
        assert path.read_text() == "new"
        assert path.stat().st_mode & 0o7777 == mode

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the superuser gives files away")
    def test_keeps_its_owner(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        os.chown(path, 12345, 54321)
        with atomic_write(path) as temporary:
            temporary.write_text("new")
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)

    def test_is_on_the_disk_before_it_has_the_name(self, tmp_path, monkeypatch):
        done = []
        flush, rename = os.fsync, os.replace

        def fsync(descriptor):
            done.append(("fsync", stat.S_ISDIR(os.fstat(descriptor).st_mode)))
            flush(descriptor)

        def replace(source, target):
            done.append("rename")
            rename(source, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        assert done == [("fsync", False), "rename", ("fsync", True)]


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

    @pytest.mark.parametrize("mode", [0o444, 0o400, 0o555])
    def test_a_file_that_is_read_only(self, tmp_path, attempt, mode):
        (tmp_path / "a.txt").write_text("old")
        (tmp_path / "a.txt").chmod(mode)
        with pytest.raises(ConfigError, match=r"a\.txt: is read-only; make it writable, or choose another place$"):
            attempt(tmp_path / "a.txt")
        assert (tmp_path / "a.txt").read_text() == "old"
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_a_file_whose_owner_would_change(self, tmp_path, attempt, monkeypatch):
        (tmp_path / "a.txt").write_text("old")
        real = os.stat

        def of_another_user(path, **options):
            found = real(path, **options)
            if os.path.basename(path) != "a.txt":
                return found
            return os.stat_result((*found[:4], found.st_uid + 1, *found[5:]))

        def chown(*args):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "stat", of_another_user)
        monkeypatch.setattr(os, "chown", chown)
        with pytest.raises(ConfigError, match=r"a\.txt: belongs to another user or group .*; remove it, or choose"):
            attempt(tmp_path / "a.txt")
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_a_link_that_leads_to_itself(self, tmp_path, attempt):
        (tmp_path / "a.txt").symlink_to("a.txt")
        with pytest.raises(
            ConfigError, match=r"a\.txt: cannot be written \(Too many levels of symbolic links\); choose"
        ):
            attempt(tmp_path / "a.txt")

    def test_a_name_too_long(self, tmp_path, attempt):
        with pytest.raises(ConfigError, match="cannot be written"):
            attempt(tmp_path / ("a" * 300))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none", "no such model; check the path"),
        ("file/none", "no such model; check the path"),
        ("loop", "cannot be read (Too many levels of symbolic links); check the path"),
        ("a" * 300, "cannot be read (File name too long); check the path"),
        ("pipe", "is a pipe, a socket or a device; give a file"),
    ],
)
def test_why_missing(tmp_path, name, why):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    assert why_missing(tmp_path / name, "model") == why


def test_only_what_may_never_end_is_refused(tmp_path):
    (tmp_path / "file").write_text("1")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for place in (tmp_path, tmp_path / "file", tmp_path / "none"):
        refuse_special(place)
    assert read_json(tmp_path / "file") == 1
    for name in ("pipe", "link"):
        for read in (refuse_special, read_json):
            with pytest.raises(DataError, match=f"{name}: is a pipe, a socket or a device; give a file"):
                read(tmp_path / name)


def test_the_longest_name_will_do(tmp_path):
    with atomic_write(tmp_path / ("a" * 255)) as temporary:
        temporary.write_text("new")


def test_check_writable_leaves_no_trace(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    check_writable(tmp_path / "new.txt")
    check_writable(tmp_path / "old.txt")
    assert os.listdir(tmp_path) == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"
