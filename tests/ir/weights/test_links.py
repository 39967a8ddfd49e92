import mmap
import os

import numpy as np
import onnx
import pytest
from graphs import v8
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.ir.proto import large_initializers
from onnxq.ir.weights.links import (
    anchored,
    can_link,
    embed,
    embedded,
    has_links,
    is_linked,
    link,
    require_files,
    stamp_of,
    values_of,
)

KINDS = {np.float32, np.float16, np.float64, np.int8, np.uint8, np.int16, np.int32, np.int64}


def linked(folder, values, before=0, name="w"):
    """Write an array behind some bytes, and return a tensor that links to it."""
    path = folder / f"{name}.bin"
    path.write_bytes(bytes(before) + values.tobytes())
    tensor = numpy_helper.from_array(values, name)
    link(tensor, str(path), before, values.nbytes, stamp_of(os.stat(path)))
    return tensor


@given(
    st.sampled_from(sorted(KINDS, key=str)),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from([0, 1, 4, 64, mmap.ALLOCATIONGRANULARITY - 1, mmap.ALLOCATIONGRANULARITY + 3]),
)
def test_values_are_those_of_the_file(tmp_path_factory, kind, shape, before):
    values = np.arange(np.prod(shape, dtype=int), dtype=kind).reshape(shape)
    held = numpy_helper.from_array(values, "w")
    tensor = linked(tmp_path_factory.mktemp("links"), values, before)
    assert can_link(held)
    assert is_linked(tensor)
    assert not tensor.raw_data
    found = values_of(tensor)
    assert found.dtype == kind
    assert found.flags.aligned
    assert np.array_equal(found, values)
    assert embed(tensor) == held
    assert embed(held) is held
    assert np.array_equal(values_of(held), values)


@pytest.mark.parametrize(
    "kind", ["STRING", "BOOL", "INT4", "UINT4", "BFLOAT16", "FLOAT8E4M3FN", "COMPLEX64", "UNDEFINED"]
)
def test_what_numpy_does_not_read_as_it_is_stored_stays(kind):
    assert can_link(TensorProto(data_type=TensorProto.DataType.Value(kind))) == (kind == "COMPLEX64")


def test_mapped_values_cannot_be_written(tmp_path):
    found = values_of(linked(tmp_path, np.ones(2000, np.float32)))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 2


@pytest.mark.parametrize(
    "change", [os.unlink, lambda path: os.utime(path, ns=(1, 1)), lambda path: os.truncate(path, 8)]
)
def test_a_file_that_was_changed_is_told(tmp_path, change):
    tensor = linked(tmp_path, np.ones(2000, np.float32))
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    require_files(model)
    change(tmp_path / "w.bin")
    for read in (lambda: values_of(tensor), lambda: require_files(model), lambda: embedded(model)):
        with pytest.raises(ModelError, match=r"w\.bin: the weights cannot be read from it any more"):
            read()


def test_paths_that_a_model_brings_along_are_no_links(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8000))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2000], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": str(tmp_path / "secret"), "offset": "0", "length": "8000", "onnxq": "1"}.items():
        tensor.external_data.add(key=key, value=value)
    assert not is_linked(tensor)
    assert embed(tensor) is tensor


def test_a_model_is_the_same_again_once_it_is_embedded(tmp_path):
    model, whole = v8(), v8()
    assert embedded(model) is model
    for tensor in large_initializers(model):
        tensor.CopyFrom(linked(tmp_path, numpy_helper.to_array(tensor), 3, tensor.name))
    assert has_links(model)
    assert model.ByteSize() < whole.ByteSize() / 2
    assert embedded(model) == whole
    assert has_links(model)


def test_runtimes_get_paths_from_one_folder(tmp_path):
    tensor = linked(tmp_path, np.ones(2000, np.float32), 4)
    moved, folder = anchored(helper.make_model(helper.make_graph([], "g", [], [], [tensor])))
    entries = {entry.key: entry.value for entry in moved.graph.initializer[0].external_data}
    assert entries == {"location": os.path.relpath(tmp_path / "w.bin", folder), "offset": "4", "length": "8000"}
    assert anchored(onnx.ModelProto()) is None
