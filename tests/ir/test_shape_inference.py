import logging
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import BUILDERS, copy, pan, run, silu_chain
from onnx import TensorProto, helper, numpy_helper
from texts import parsed

import onnxq
from onnxq.errors import ModelError
from onnxq.ir import Model, infer_shapes, inferred_graph, inferred_types, proto
from onnxq.ir.shape_inference import declared_shape

RESHAPED = """
    s = Shape(x)
    n = Gather(s, one)
    flat = Reshape(x, n)
    y = Relu(flat)
"""


def sizes(value):
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def reshaped():
    model = parsed(RESHAPED, "float[1,4] x", "float[n] y")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    return model


@pytest.mark.parametrize(
    ("shape", "declared"),
    [([1, 0, "n", None], (1, 0, None, None)), ([], ()), (None, None)],
    ids=["some", "scalar", "none"],
)
def test_a_declared_shape_has_none_for_lengths_that_are_not_known(shape, declared):
    assert declared_shape(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)) == declared


@pytest.mark.parametrize("name", ["pan", "attention", "v8", "yolox"])
def test_inferred_types_are_those_of_the_values(name):
    model = BUILDERS[name]()
    types = inferred_types(model)
    inner = [t for node in model.graph.node for t in node.output if t in types]
    assert len(inner) > 10
    for tensor, values in run(model, outputs=inner).items():
        tensor_type = types[tensor].type.tensor_type
        assert helper.tensor_dtype_to_np_dtype(tensor_type.elem_type) == values.dtype
        if all(dim.HasField("dim_value") for dim in tensor_type.shape.dim):
            assert sizes(types[tensor]) == list(values.shape)


def test_descriptions_in_the_model_are_not_believed():
    model = pan()
    tensor = model.graph.node[0].output[0]
    model.graph.value_info.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT16, [7]))
    before = copy(model)
    assert inferred_types(model)[tensor] == inferred_types(pan())[tensor]
    assert model == before


def test_values_of_shapes_are_computed_if_wanted():
    model = reshaped()
    known = {value.name: value for value in inferred_graph(model).value_info}
    assert sizes(known["flat"]) == [4]
    unknown = {value.name: value for value in inferred_graph(model, data_prop=False).value_info}
    assert not unknown["flat"].type.tensor_type.shape.dim[0].HasField("dim_value")


def test_outputs_without_a_type_get_one():
    model = silu_chain()
    wanted = copy(model).graph.output[0]
    model.graph.output[0].ClearField("type")
    assert inferred_graph(model).output[0] == wanted


def test_weights_take_part_by_their_shape_alone(monkeypatch):
    model = silu_chain(layers=5)
    monkeypatch.setattr(proto, "_LARGE", 64)
    seen = []
    infer = onnx.shape_inference.infer_shapes

    def measured(given, **options):
        seen.append(given.ByteSize())
        return infer(given, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", measured)
    types = inferred_types(model)
    assert sum(w.ByteSize() for w in model.graph.initializer) > seen[0]
    monkeypatch.undo()
    assert types == inferred_types(model)


class TestFailure:
    @pytest.fixture
    def broken(self):
        """A model that onnx refuses: the domain of a node is not imported."""
        model = reshaped()
        model.graph.node[-1].domain = "not.imported"
        return model

    def test_is_a_model_error(self, broken):
        with pytest.raises(ModelError, match=r"^shapes could not be inferred: ") as error:
            inferred_graph(broken)
        assert "\n" not in str(error.value)

    def test_leaves_the_graph_as_it_is(self, broken, caplog):
        caplog.set_level(logging.WARNING)
        model = Model(broken)
        assert infer_shapes(model) == 0
        [message] = caplog.messages
        assert message.startswith("shapes could not be inferred: ")


def test_onnx_infers_shapes_nowhere_else():
    root = Path(onnxq.__file__).parents[1]
    found = {
        path.relative_to(root).as_posix()
        for folder in ("onnxq", "passes")
        for path in (root / folder).rglob("*.py")
        if re.search(r"onnx\.shape_inference|from onnx import [^\n]*\bshape_inference", path.read_text())
    }
    assert {re.sub(r"^onnxq/passes/", "passes/", name) for name in found} == {
        "onnxq/ir/shape_inference.py", "onnxq/ir/__init__.py"
    }  # fmt: skip
