import os

import numpy as np
import onnx
import pytest
from graphs import assert_same_numbers, v8

from onnxq.ir import Constant, Model
from onnxq.ir.proto import is_large, large_initializers
from onnxq.ir.storage import load_proto
from onnxq.ir.weights import links
from onnxq.ir.weights.links import embedded, has_links, is_linked


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The path of a model whose weights count as large."""
    monkeypatch.setattr(links, "LARGE", 1000)
    onnx.save(v8(), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def weights(model):
    return [t for t in model.graph.tensors().values() if isinstance(t, Constant) and np.prod(t.shape) > 1024]


def test_weights_are_read_and_not_kept(path):
    model = Model(load_proto(path))
    for tensor in weights(model):
        first, second = tensor.values, tensor.values
        assert first is not second
        assert np.array_equal(first, second)
        assert tensor.shape == first.shape
        assert tensor.dtype == first.dtype


def test_the_message_has_the_links_of_the_file_until_values_are_changed(path):
    model = Model(load_proto(path))
    before = list(large_initializers(model.to_linked_proto()))
    assert before
    assert all(str(path) in {entry.value for entry in tensor.external_data} for tensor in before)
    changed = weights(model)[0]
    changed.values = np.asarray(changed.values) * 2
    assert np.array_equal(changed.values, changed.values)
    after = {tensor.name: tensor for tensor in large_initializers(model.to_linked_proto())}
    assert is_linked(after[changed.name])
    others = [entry.value for tensor in after.values() for entry in tensor.external_data if entry.key == "location"]
    assert others.count(str(path)) == len(before) - 1
    assert np.array_equal(model.graph.tensors()[changed.name].values, 2 * links.values_of(before[0]))


def test_both_messages_are_the_same_model(path):
    model = Model(load_proto(path))
    assert has_links(model.to_linked_proto())
    assert not has_links(model.to_proto())
    assert embedded(model.to_linked_proto()) == model.to_proto() == Model(v8()).to_proto()
    assert_same_numbers(v8(), model.to_proto())


def test_weights_given_in_memory_move_to_a_file_too(path):
    model = Model(v8())
    found = model.to_linked_proto()
    assert all(map(is_linked, large_initializers(found)))
    assert embedded(found) == Model(v8()).to_proto()


def test_few_weights_stay_in_the_message(path, monkeypatch):
    monkeypatch.setattr(links, "LARGE", 10**9)
    assert not has_links(Model(v8()).to_linked_proto())


@pytest.mark.parametrize("given", [lambda path: load_proto(path), lambda path: v8()])
def test_a_message_without_weights_has_their_types_and_shapes(path, given):
    model, whole = Model(given(path)), Model(v8()).to_proto()
    values = weights(model)[0].values
    found = model.to_proto_without_weights()
    assert found.ByteSize() < whole.ByteSize() / 2
    for left, tensor in zip(found.graph.initializer, whole.graph.initializer, strict=True):
        assert (left.name, left.data_type, left.dims) == (tensor.name, tensor.data_type, tensor.dims)
        assert is_large(tensor) or left == tensor
    assert np.array_equal(weights(model)[0].values, values)
    assert model.to_proto() == whole


def test_the_temporary_file_goes_with_the_model(path, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    model = Model(v8())
    model.to_linked_proto()
    assert len(os.listdir(tmp_path / "temporary")) == 1
    del model
    assert os.listdir(tmp_path / "temporary") == []
