import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from graphs import v8
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from onnxq.ir.proto import large_initializers
from onnxq.ir.weights.in_file import linked_message
from onnxq.ir.weights.links import embedded, has_links, is_linked


def written(folder, model):
    path = folder / "a.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_large_constants_stay_in_the_file(tmp_path):
    model = v8()
    found = linked_message(written(tmp_path, model))
    assert [t.name for t in found.graph.initializer if is_linked(t)] == [t.name for t in large_initializers(model)]
    assert embedded(found) == model


def test_it_reads_little_of_a_large_file(tmp_path):
    model = v8()
    weight = np.zeros((1 << 20, 4), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "unused"))
    assert linked_message(written(tmp_path, model)).ByteSize() < 200_000


def test_values_in_other_fields_and_of_other_types_stay_in_the_message(tmp_path):
    model = v8()
    floats = TensorProto(name="floats", data_type=TensorProto.FLOAT, dims=[5000], float_data=[1.0] * 5000)
    packed = TensorProto(name="packed", data_type=TensorProto.INT4, dims=[5000], raw_data=bytes(2500))
    model.graph.initializer.extend([floats, packed])
    found = linked_message(written(tmp_path, model))
    assert not any(map(is_linked, found.graph.initializer[-2:]))
    assert embedded(found) == model


@pytest.mark.parametrize("dims", [[5001], [-5000], [2, 5000]])
def test_a_tensor_that_lacks_values_is_left_to_the_checks(tmp_path, dims):
    model = v8()
    wrong = TensorProto(name="wrong", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(20_000))
    model.graph.initializer.append(wrong)
    assert linked_message(written(tmp_path, model)).graph.initializer[-1] == wrong


@given(st.data())
def test_a_file_that_is_cut_short_or_spoiled_never_gives_another_model(tmp_path_factory, data):
    content = bytearray(v8().SerializeToString())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(1, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, min(len(content), 4000) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("spoiled") / "a.onnx"
    path.write_bytes(content)
    try:
        expected = onnx.load(path, load_external_data=False)
    except DecodeError:
        expected = None
    try:
        found = linked_message(path)
    except DecodeError:
        found = None
    if found is not None and expected is not None and has_links(found):
        assert embedded(found).SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert (found is None) or (expected is not None)
