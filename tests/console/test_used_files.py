import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import silu_chain

from onnxq.console import used_files
from onnxq.console.used_files import UsedFiles
from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.ir.storage import load_proto, size_on_disk


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with a model, images, their labels, and arrays."""
    monkeypatch.chdir(tmp_path)
    onnx.save(silu_chain(), "model.onnx")
    for name in ("data/images/val/a.jpg", "data/labels/val/a.txt", "arrays/a.npy", "list.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    Path("data/data.yaml").write_text("path: .\ntrain: images/val\nval: images/val\n")
    return tmp_path


@pytest.fixture
def files():
    found = UsedFiles()
    found.reads_model("the input", Path("model.onnx"))
    found.reads_data("an image", Path("data/data.yaml"), "val")
    found.reads_labels("the labels of an image")
    found.reads_data("an array", "arrays", "train")
    found.reads("a list", [Path("list.txt"), None, Path("none.txt")])
    return found


INPUTS = {
    "model.onnx": "the input",
    "data/data.yaml": "an image",
    "data/images/val/a.jpg": "an image",
    "data/labels/val/a.txt": "the labels of an image",
    "arrays/a.npy": "an array",
    "list.txt": "a list",
}


def link(name):
    Path("link.out").symlink_to(name)
    return "link.out"


def hard_link(name):
    os.link(name, "hard.out")
    return "hard.out"


def constant(location, **entries):
    """Save a model with a Constant whose values are in another file."""
    model = silu_chain()
    values = onnx.TensorProto(name="c", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        values.external_data.add(key=key, value=value)
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=values))
    onnx.save(model, "outside.onnx")


def test_values_of_nodes_in_other_files_are_not_replaced():
    constant("values.onnx")
    Path("values.onnx").write_bytes(bytes(4))
    files = UsedFiles()
    files.reads_model("the input", Path("outside.onnx"))
    files.writes("-o", Path("values.onnx"))
    with pytest.raises(ConfigError, match=r"^values.onnx: is the input; give another name with -o"):
        files.check()


@pytest.mark.parametrize(("location", "offset"), [("a\0b", "0"), ("a" * 5000, "0"), ("a", "nan")])
def test_names_and_places_that_no_file_has_are_left_to_the_reader(location, offset):
    constant(location, offset=offset)
    files = UsedFiles()
    files.reads_model("the input", Path("outside.onnx"))
    files.check()
    assert size_on_disk(Path("outside.onnx")) == Path("outside.onnx").stat().st_size
    with pytest.raises(ModelError, match="external data cannot be read"):
        load_proto(Path("outside.onnx"))


def test_a_pipe_is_not_read_to_name_its_files():
    os.mkfifo("pipe.onnx")
    files = UsedFiles()
    files.reads_model("the input", Path("pipe.onnx"))
    with pytest.raises(ModelError, match="is a pipe, a socket or a device"):
        load_proto(Path("pipe.onnx"))


@pytest.mark.parametrize("by", [str, "./{}".format, "data/../{}".format, link, hard_link])
@pytest.mark.parametrize("name", INPUTS)
def test_no_input_is_replaced_under_any_name(files, name, by):
    path = by(name)
    files.writes("--json", Path(path))
    with pytest.raises(ConfigError) as caught:
        files.check()
    assert str(caught.value) == f"{Path(path)}: is {INPUTS[name]}; give another name with --json"


def test_the_weights_of_a_model_are_not_replaced():
    onnx.save(silu_chain(), "large.onnx", save_as_external_data=True, location="large.data", size_threshold=0)
    files = UsedFiles()
    files.reads_model("the input", Path("large.onnx"))
    files.writes("-o", Path("large.data"))
    with pytest.raises(ConfigError, match=r"large\.data: is the input; give another name with -o"):
        files.check()


def test_other_files_may_be_replaced(files):
    Path("out.onnx").write_text("old")
    for option, name in (("-o", "out.onnx"), ("--json", "data/images/val/new.json"), ("--report", "arrays/r.html")):
        files.writes(option, Path(name))
    files.writes("--save-calibration", None)
    files.writes_into("--draw", None, "[0-9]*-*.jpg")
    files.writes_into("--draw", Path("new/drawn"), "[0-9]*-*.jpg")
    files.writes_into("--save-each", Path("data/images/val"), "[0-9]*-*.onnx*")
    files.check()
    assert Path("out.onnx").read_text() == "old"
    assert not Path("new").exists()


@pytest.mark.parametrize("name", ["data/images/val/new.png", "data/images/val/deep/new.JPG", "arrays/new.npz"])
def test_no_output_joins_the_data(files, name):
    Path(name).parent.mkdir(exist_ok=True)
    files.writes("-o", Path(name))
    with pytest.raises(ConfigError, match=r"^-o .*: would be among the data in .*; give a place outside of it$"):
        files.check()


def test_a_folder_whose_name_is_too_long(files):
    files.writes_into("--draw", Path("d" * 300), "[0-9]*-*.jpg")
    with pytest.raises(ConfigError, match=r"--draw d*: cannot be used \(File name too long\); choose another place"):
        files.check()


@pytest.mark.parametrize("drawn", ["data/images/val", "data/images/val/drawn", "val"])
def test_no_drawing_joins_the_data(files, drawn):
    Path("val").symlink_to("data/images/val")
    files.writes_into("--draw", Path(drawn), "[0-9]*-*.jpg")
    with pytest.raises(
        ConfigError, match=f"^--draw {drawn}: would be among the data in .*; give a place outside of it$"
    ):
        files.check()
    assert os.listdir("data/images/val") == ["a.jpg"]


@pytest.mark.parametrize("source", ["data/images/val/*.jpg", "data/images/val/a.jpg"])
def test_no_drawing_joins_the_matches_of_a_pattern(source):
    files = UsedFiles()
    files.reads_data("an image", source, "val")
    files.writes_into("--draw", Path("data/images/val"), "[0-9]*-*.jpg")
    with pytest.raises(ConfigError, match=r"^--draw data.images.val: is a folder of the images; give another folder$"):
        files.check()


def test_a_folder_whose_files_are_inputs_is_refused():
    Path("steps").mkdir()
    shutil.move("model.onnx", "steps/04-fold-constants.onnx")
    files = UsedFiles()
    files.reads_model("the input", Path("steps/04-fold-constants.onnx"))
    files.writes_into("--save-each", Path("steps"), "[0-9]*-*.onnx*")
    with pytest.raises(
        ConfigError, match=r"--save-each steps: 04-fold-constants\.onnx in it is the input; give another"
    ):
        files.check()


def test_two_options_do_not_write_one_file(files):
    files.writes("-o", Path("out.json"))
    files.writes("--report", Path("./out.json"))
    with pytest.raises(ConfigError, match=r"^out\.json: is written by -o already; give another name with --report$"):
        files.check()


def test_two_options_do_not_write_one_file_in_a_folder(files):
    Path("steps").mkdir()
    files.writes("-o", Path("steps/04-a.onnx"))
    files.writes_into("--save-each", Path("steps"), "[0-9]*-*.onnx*")
    with pytest.raises(ConfigError, match=r"--save-each steps: -o writes 04-a\.onnx into it; give another folder"):
        files.check()


@pytest.mark.parametrize(("ignores", "accepted"), [(False, True), (True, False)])
def test_names_that_differ_in_case_are_one_file_where_case_is_ignored(files, monkeypatch, ignores, accepted):
    monkeypatch.setattr(used_files, "_ignores_case", lambda folder: ignores)
    files.writes("-o", Path("Straße.onnx"))
    files.writes("--report", Path("STRASSE.ONNX"))
    if accepted:
        files.check()
    else:
        with pytest.raises(ConfigError, match="is written by -o already"):
            files.check()


def test_whether_case_is_ignored_is_tried_out(tmp_path):
    (tmp_path / "a").write_text("")
    assert used_files._ignores_case(tmp_path) == (tmp_path / "A").exists()
    assert os.listdir(tmp_path).count("a") == 1


@pytest.mark.parametrize("name", ["loop", "loop/out"])
def test_folders_that_cannot_be_used_name_the_cause(files, name):
    Path("loop").symlink_to("loop")
    files.writes_into("--save-each", Path(name), "[0-9]*-*.onnx*")
    with pytest.raises(
        ConfigError, match=r"--save-each .*: cannot be used \(Too many levels of symbolic links\); choose"
    ):
        files.check()


class TestChanges:
    def test_none(self, files):
        files.require_unchanged()

    @pytest.mark.parametrize("name", INPUTS)
    def test_of_any_input_are_noticed(self, files, name):
        with open(name, "ab") as file:
            file.write(b"\n")
        with pytest.raises(DataError, match=f"{name}: changed while it was in use.*; run this again"):
            files.require_unchanged()

    def test_another_file_under_the_name_is_noticed(self, files):
        before = os.stat("list.txt")
        shutil.copy("list.txt", "copy.txt")
        os.utime("copy.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace("copy.txt", "list.txt")
        with pytest.raises(DataError, match=r"list\.txt: changed"):
            files.require_unchanged()

    def test_a_removed_file_is_noticed(self, files):
        Path("arrays/a.npy").unlink()
        with pytest.raises(DataError, match=r"a\.npy: changed"):
            files.require_unchanged()

    def test_reading_is_no_change(self, files):
        np.frombuffer(Path("model.onnx").read_bytes(), np.uint8)
        files.require_unchanged()
