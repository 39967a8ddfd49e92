import re

import numpy as np
import onnx
import pytest
from graphs import (
    copy,
    csp,
    feed,
    nodes,
    quantizing,
    with_initializers_as_inputs,
    with_metadata,
    with_node_names,
)
from onnx import TensorProto, numpy_helper
from verification import edited, verified, verify

from onnxq.errors import ModelError
from onnxq.facts import Verification
from onnxq.ir import Model
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.pointwise_to_matmul import PointwiseToMatmul
from onnxq.passes.remove_unused import RemoveUnused
from onnxq.passes.verify import Verify
from onnxq.pipeline import Pipeline
from onnxq.targets import ORT

try:
    import openvino
except ImportError:
    openvino = None


# --- inputs, outputs, metadata ----------------------------------------------------------------------------------------


def maker(model, tensor):
    """The node that makes a tensor."""
    return next(node for node in model.graph.node if tensor in node.output)


def refused(model, edit, message):
    after, facts = edited(model, edit)
    with pytest.raises(ModelError, match=re.escape(message)):
        verify(model, after, facts)


def test_an_output_of_another_type_is_refused():
    def edit(after):
        after.graph.node.append(onnx.helper.make_node("Cast", ["almost"], ["output"], "cast", to=TensorProto.DOUBLE))
        maker(after, "output").output[0] = "almost"
        after.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    refused(csp(), edit, "the outputs of the quantized model differ from the original's")


def test_an_output_of_another_name_is_refused():
    def edit(after):
        maker(after, "output").output[0] = after.graph.output[0].name = "renamed"

    refused(csp(), edit, "the outputs of the quantized model differ from the original's")


def test_an_output_more_is_refused():
    def edit(after):
        after.graph.output.append(onnx.helper.make_tensor_value_info("mul4_out", TensorProto.FLOAT, [1, 8, 16, 16]))

    refused(csp(), edit, "the outputs of the quantized model differ from the original's")


def test_an_output_of_another_shape_is_refused():
    def edit(after):
        after.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    refused(csp(), edit, "the outputs of the quantized model differ from the original's")


def test_an_input_more_is_refused():
    def edit(after):
        after.graph.input.append(onnx.helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))

    refused(csp(), edit, "the inputs of the quantized model differ from the original's")


def test_an_input_of_another_shape_is_refused():
    def edit(after):
        after.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    refused(csp(), edit, "the inputs of the quantized model differ from the original's")


@pytest.mark.parametrize("change", ["lost", "altered"])
def test_metadata_that_is_lost_or_altered_is_refused(change):
    def edit(after):
        if change == "lost":
            del after.metadata_props[0]
        else:
            after.metadata_props[0].value = "another"

    refused(with_metadata(csp()), edit, "the metadata of the quantized model differs from the original's")


def test_metadata_may_be_added():
    model = with_metadata(csp())
    after, facts = edited(model, lambda after: after.metadata_props.add(key="onnxq.version", value="0"))
    assert verify(model, after, facts).unfused == ()


def test_initializers_that_the_original_lists_as_inputs_are_no_inputs():
    model = with_initializers_as_inputs(csp())
    assert len(model.graph.input) > 1
    _, _, checked = verified(model)
    assert checked.fused == 5


def test_an_original_that_onnxruntime_refuses_is_not_compared(caplog):
    model = with_node_names(csp(), ["same"] * 3 + [f"node{k}" for k in range(20)])
    _, plan, checked = verified(model, feeds=[feed(csp())])
    assert checked.sqnr == {}
    assert checked.fused == len(plan.layers) == 5
    assert "the float model cannot be compared with: onnxruntime cannot load the model" in caplog.text


# --- validity ---------------------------------------------------------------------------------------------------------


def test_a_graph_that_is_no_valid_onnx_is_refused():
    def edit(after):
        nodes(after)["conv1"].attribute.append(onnx.helper.make_attribute("no_such_attribute", 1))

    refused(csp(), edit, "the quantized model is not valid ONNX: Unrecognized attribute: no_such_attribute")


def test_a_fault_that_the_float_model_has_already_is_told_as_its_own():
    def edit(model):
        nodes(model)["conv1"].attribute.append(onnx.helper.make_attribute("no_such_attribute", 1))

    model = csp()
    after, facts = edited(model, edit)
    edit(model)
    with pytest.raises(ModelError, match=r"^the model is not valid ONNX: Unrecognized .*; mend it, or export it"):
        verify(model, after, facts)


def test_shapes_that_contradict_each_other_are_refused():
    def edit(after):
        weight = next(w for w in after.graph.initializer if w.name == "conv2_weight_quantized")
        weight.CopyFrom(numpy_helper.from_array(np.zeros((4, 5, 3, 3), np.int8), weight.name))

    after, facts = edited(csp(), edit)
    with pytest.raises(ModelError, match=r"the quantized model is not valid ONNX|onnxruntime cannot"):
        verify(csp(), after, facts)


def test_the_graph_is_not_touched():
    model = csp()
    working = Model(copy(model))
    facts = Pipeline(quantizing(model)).run(working)
    before = working.to_proto().SerializeToString(deterministic=True)
    assert isinstance(Verify(model, ORT).run(working, facts), Verification)
    assert working.to_proto().SerializeToString(deterministic=True) == before


def test_rewrites_in_front_keep_what_verify_needs():
    steps = [*quantizing(csp()), Verify(csp(), ORT)]
    assert [type(step) for step in steps[-4:]] == [InsertQdq, PointwiseToMatmul, RemoveUnused, Verify]
    assert Pipeline(steps).passes == tuple(steps)
