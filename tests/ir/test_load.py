import onnx
import pytest
from graphs import copy, silu_chain

from onnxq.errors import ModelError
from onnxq.ir.load import load


def with_two_nodes_of_one_name():
    model = silu_chain()
    model.graph.node[1].name = model.graph.node[0].name
    return model


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["text", "path"])
def test_a_file_is_read_and_repaired(tmp_path, kind):
    path = tmp_path / "a.onnx"
    onnx.save(with_two_nodes_of_one_name(), path)
    names = [node.name for node in load(kind(path)).graph.node if node.name]
    assert len(names) == len(set(names)) == len(silu_chain().graph.node) - 1


def test_a_model_in_memory_is_repaired_and_stays_as_it_is():
    model = with_two_nodes_of_one_name()
    before = copy(model)
    assert [node.name for node in load(model).graph.node][1] == ""
    assert model == before


def test_a_model_without_faults_is_given_back():
    model = silu_chain()
    assert load(model) is model


def test_a_missing_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "none.onnx")
