import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.ir.storage import load_proto
from onnxq.ir.weights import links

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def save(folder, kind=TensorProto.FLOAT, inside=False, **entries):
    """Save a model in the folder `models` that has a weight, or a constant in a subgraph, elsewhere."""
    tensor = TensorProto(name="w", dims=[2, 3], data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    branch = helper.make_graph([constant], "b", [], [onnx.ValueInfoProto(name="w")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    nodes = nodes if inside else [helper.make_node("Identity", ["w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [onnx.ValueInfoProto(name="y")], [] if inside else [tensor])
    (folder / "models").mkdir(exist_ok=True)
    path = folder / "models" / "a.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


@pytest.fixture
def place(tmp_path):
    """A folder with the values behind 8 other bytes, outside and inside the folder `models`."""
    (tmp_path / "models" / "deep").mkdir(parents=True)
    for name in ("secret.bin", "models/a.bin", "models/deep/a.bin"):
        (tmp_path / name).write_bytes(bytes(8) + WEIGHT.tobytes())
    return tmp_path


@pytest.mark.parametrize("location", ["a.bin", "./a.bin", "deep/a.bin", "deep/../a.bin", "../models/a.bin"])
@pytest.mark.parametrize("length", [{}, {"length": 24}])
def test_files_in_the_folder_are_read(place, location, length):
    [read] = load_proto(save(place, location=location, offset=8, **length)).graph.initializer
    assert np.array_equal(numpy_helper.to_array(read), WEIGHT)
    assert read.data_location == TensorProto.DEFAULT


def test_constants_in_subgraphs_are_read(place):
    model = load_proto(save(place, inside=True, location="a.bin", offset=8))
    inner = model.graph.node[1].attribute[0].g.node[0].attribute[0].t
    assert np.array_equal(numpy_helper.to_array(inner), WEIGHT)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("location", "cause"),
    [
        ("../secret.bin", "leads out of the model's folder"),
        ("deep/../../secret.bin", "leads out of the model's folder"),
        ("link.bin", "leads out of the model's folder"),
        ("away/secret.bin", "leads out of the model's folder"),
        ("/etc/hostname", "not a path from the model's folder"),
        ("", "not a path from the model's folder"),
        ("deep", "not a file"),
        ("pipe", "not a file"),
        ("none.bin", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_nothing_else_is_read(place, location, cause, inside):
    (place / "models" / "link.bin").symlink_to("../secret.bin")
    (place / "models" / "away").symlink_to("..")
    (place / "models" / "loop").symlink_to("loop")
    os.mkfifo(place / "models" / "pipe")
    with pytest.raises(
        ModelError, match=f"external data cannot be read .*'w'.*{cause}.*; copy the data files beside it"
    ):
        load_proto(save(place, inside=inside, location=location, offset=8))


@pytest.mark.parametrize(
    "entries",
    [{"offset": 16}, {"offset": -8}, {"length": 2**40}, {"length": 8}, {"offset": "x"}, {"offset": 2**70}],
)
def test_sizes_are_checked_before_anything_is_read(place, entries):
    with pytest.raises(ModelError, match="external data cannot be read"):
        load_proto(save(place, **{"location": "a.bin", **entries}))


def test_strings_are_refused(place):
    with pytest.raises(ModelError, match="strings cannot be in another file"):
        load_proto(save(place, TensorProto.STRING, location="a.bin"))


def test_a_cache_of_links_is_read(place):
    """As that of Hugging Face: the names in one folder are links to the files in another."""
    path = save(place, location="a.bin", offset=8)
    (place / "snapshot").mkdir()
    for name in ("a.onnx", "a.bin"):
        (place / "snapshot" / name).symlink_to(path.with_name(name))
    [read] = load_proto(place / "snapshot" / "a.onnx").graph.initializer
    assert np.array_equal(numpy_helper.to_array(read), WEIGHT)


class TestLargeData:
    """Initializers link to values that are large, instead of holding them."""

    @pytest.fixture(autouse=True)
    def everything_is_large(self, monkeypatch):
        monkeypatch.setattr(links, "LARGE", 10)
        monkeypatch.setattr("onnxq.ir.proto._LARGE", 4)

    def test_the_values_stay_in_the_file(self, place):
        [read] = load_proto(save(place, location="deep/../a.bin", offset=8)).graph.initializer
        assert links.is_linked(read)
        assert np.array_equal(links.values_of(read), WEIGHT)

    def test_constants_in_subgraphs_are_read(self, place):
        model = load_proto(save(place, inside=True, location="a.bin", offset=8))
        inner = model.graph.node[1].attribute[0].g.node[0].attribute[0].t
        assert np.array_equal(numpy_helper.to_array(inner), WEIGHT)

    @pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "deep", "none.bin"])
    def test_other_places_are_refused_as_ever(self, place, location):
        with pytest.raises(ModelError, match="its external data cannot be read"):
            load_proto(save(place, location=location, offset=8))

    @pytest.mark.parametrize("entries", [{"offset": 9}, {"offset": -1}, {"offset": 8, "length": 23}])
    def test_places_that_the_file_lacks_are_refused(self, place, entries):
        with pytest.raises(ModelError, match="24 bytes are expected"):
            load_proto(save(place, location="a.bin", **entries))
