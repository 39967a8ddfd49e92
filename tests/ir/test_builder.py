import numpy as np
from graphs import conditional, csp, nodes
from onnx import TensorProto

from onnxq.ir import Builder, Model


def test_a_name_that_is_free_is_taken_as_it_is_and_once():
    fresh = Builder(Model(csp()))
    assert [fresh.name("new") for _ in range(3)] == ["new", "new_2", "new_3"]


def test_names_of_tensors_nodes_and_constants_are_taken():
    model = csp()
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    fresh = Builder(Model(model))
    for taken in (conv.name, *conv.input, *conv.output):
        assert fresh.name(taken) == f"{taken}_2"


def test_names_within_subgraphs_are_taken():
    model = conditional()
    inner = nodes(model)["if0"].attribute[0].g.node[0]
    fresh = Builder(Model(model))
    assert [fresh.name(inner.name), fresh.name(inner.output[0])] == [f"{inner.name}_2", f"{inner.output[0]}_2"]


def test_everything_that_is_made_has_a_name_of_its_own():
    fresh = Builder(Model(csp()))
    x = fresh.variable("x", np.dtype(np.float32), (1, "rows"))
    one = fresh.constant("x", np.float32([1, 2]))
    y = fresh.variable("y")
    add = fresh.node("Add", "x", [x, one], [y], axis=1)
    cast = fresh.cast(y, fresh.variable("z"), TensorProto.FLOAT16)
    assert [each.name for each in (x, one, y, add, cast)] == ["x", "x_2", "y", "x_3", "z_Cast"]
    assert (x.dtype, x.shape, y.dtype, y.shape) == (np.float32, [1, "rows"], None, None)
    assert (add.op, add.attrs, add.inputs, add.outputs) == ("Add", {"axis": 1}, [x, one], [y])
    assert (cast.op, cast.attrs, y.outputs) == ("Cast", {"to": TensorProto.FLOAT16}, [cast])
