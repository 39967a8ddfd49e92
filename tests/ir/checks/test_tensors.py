import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.ir.checks.tensors import all_tensors, byte_size, check_sparse, check_tensors


def model(*tensors, nodes=()):
    graph = helper.make_graph(list(nodes), "g", [], [], list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def raw(dims, data, kind=TensorProto.FLOAT):
    return TensorProto(name="w", dims=dims, data_type=kind, raw_data=data)


@pytest.mark.parametrize(
    "tensor",
    [
        helper.make_tensor("w", TensorProto.FLOAT, [2, 3], np.zeros(6)),
        helper.make_tensor("w", TensorProto.FLOAT16, [3], np.zeros(3)),
        helper.make_tensor("w", TensorProto.BFLOAT16, [3], np.zeros(3)),
        helper.make_tensor("w", TensorProto.INT64, [], [3]),
        helper.make_tensor("w", TensorProto.INT8, [0, 4], []),
        helper.make_tensor("w", TensorProto.BOOL, [2], [True, False]),
        helper.make_tensor("w", TensorProto.COMPLEX64, [2], [1j, 2]),
        helper.make_tensor("w", TensorProto.DOUBLE, [2], [1, 2]),
        helper.make_tensor("w", TensorProto.UINT64, [2], [1, 2]),
        helper.make_tensor("w", TensorProto.STRING, [2], ["a", "b"]),
        helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3]),
        helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [3], [1, 2, 3]),
        helper.make_tensor("w", TensorProto.UINT4, [3], b"\x21\x03", raw=True),
        numpy_helper.from_array(np.zeros((2, 3), np.float32), "w"),
        numpy_helper.from_array(np.zeros((0, 3), np.float32), "w"),
    ],
    ids=lambda tensor: f"{TensorProto.DataType.Name(tensor.data_type)}-{list(tensor.dims)}",
)
def test_sound_tensors(tensor):
    check_tensors(model(tensor))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (raw([2, 3], bytes(20)), r"has the shape \(2, 3\), and 20 bytes instead of 24"),
        (raw([], bytes(8)), r"has the shape \(\), and 8 bytes instead of 4"),
        (raw([2**40, 2**40], bytes(4)), "and 4 bytes instead of 4835703278458516698824704"),
        (raw([-1], bytes(4)), r"has the shape \(-1,\), with a negative length"),
        (raw([1], bytes(4), 99), "has the element type 99, which the installed onnx does not know"),
        (raw([1], bytes(4), 0), "has the element type 0, which"),
        (TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT, float_data=[1, 2]), "2 values instead of 3"),
        (TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT, int64_data=[1, 2, 3]), "0 values instead of 3"),
        (TensorProto(name="w", dims=[3], data_type=TensorProto.STRING, string_data=[b"a"]), "1 strings instead of 3"),
        (TensorProto(name="w", dims=[1], data_type=TensorProto.STRING, string_data=[b"\xff"]), "that is not UTF-8"),
        (
            TensorProto(
                name="w", dims=[1], data_type=1, raw_data=bytes(4), segment=TensorProto.Segment(begin=0, end=1)
            ),
            "is a segment of a tensor",
        ),
    ],
)
def test_malformed_ones_are_named(tensor, message):
    with pytest.raises(ModelError, match=f"^initializer 'w' .*{message}.*; export the model again$"):
        check_tensors(model(tensor))


def test_tensors_everywhere_are_checked():
    wrong = raw([2], bytes(4))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.zeros(1, np.int64)), [4]
    )
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=wrong)], "g", [], [], [])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(np.zeros(1))),
        helper.make_node("If", ["a"], ["b"], "branch", then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["d"], sparse_value=sparse),
    ]
    made = model(raw([1], bytes(4)), nodes=nodes)
    made.functions.append(helper.make_function("x", "f", [], ["c"], [inner.node[0]], made.opset_import))
    assert [where for where, _ in all_tensors(made)] == [
        "initializer 'w'",
        "attribute 'value' of node 'a' (Constant)",
        "attribute 'value' of node 'c' (Constant)",
        "attribute 'value' of node 'c' (Constant)",
        "the values of attribute 'sparse_value' of node 'd' (Constant)",
        "the indices of attribute 'sparse_value' of node 'd' (Constant)",
        "attribute 'value' of node 'c' (Constant)",
    ]
    with pytest.raises(ModelError, match=r"attribute 'value' of node 'c' \(Constant\) has the shape"):
        check_tensors(made)


@pytest.mark.parametrize(
    ("kind", "size"),
    [(TensorProto.FLOAT, 60), (TensorProto.INT4, 8), (TensorProto.BFLOAT16, 30), (TensorProto.BOOL, 15)],
)
def test_byte_size(kind, size):
    assert byte_size(TensorProto(dims=[3, 5], data_type=kind)) == size


class TestSparse:
    @staticmethod
    def sparse(dims, indices, count=2):
        values = numpy_helper.from_array(np.ones(count, np.float32), "s")
        return onnx.SparseTensorProto(
            values=values, indices=numpy_helper.from_array(np.asarray(indices, np.int64)), dims=dims
        )

    @pytest.mark.parametrize(("dims", "indices"), [([2, 3], [0, 5]), ([2, 3], [[0, 0], [1, 2]]), ([4], [[0], [3]])])
    def test_sound(self, dims, indices):
        check_sparse("s", self.sparse(dims, indices))

    @pytest.mark.parametrize(
        ("dims", "indices", "message"),
        [
            ([2, 3], [0, 6], r"has indices outside of its shape \(2, 3\)"),
            ([2, 3], [0, -1], "has indices outside"),
            ([2, 3], [[0, 0], [0, 3]], "has indices outside"),
            ([2**40, 2], [0, 1], r"of the shape .*, would take 8796\.1 GB of memory, and the limit is 1\.1 GB"),
            ([-2, 3], [0, 1], "which no constant can have"),
            ([2, 3], [0, 1, 2], r"has 2 values and indices of the shape \(3,\)"),
            ([2, 3], [[0], [1]], r"has 2 values and indices of the shape \(2, 1\)"),
        ],
    )
    def test_malformed(self, dims, indices, message):
        with pytest.raises(ModelError, match=f"^s,? .*{message}"):
            check_sparse("s", self.sparse(dims, indices))
