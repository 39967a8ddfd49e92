import numpy as np
import onnx
import pytest
from golden import assert_golden, assert_scales, text
from graphs import NARROW_TENSORRT, csp, feed, initializers, nodes, quantized, rewrite, v8
from onnx import numpy_helper

from onnxq import Config, quantize
from onnxq.passes.pack_int4 import MIN_OPSET, PackInt4
from onnxq.targets import OPENVINO, ORT, TARGETS


@pytest.mark.parametrize("target", [ORT, OPENVINO, NARROW_TENSORRT], ids=lambda t: t.name)
@pytest.mark.parametrize("build", [csp, v8], ids=lambda b: b.__name__)
def test_quantized_graphs_look_as_they_did(build, target):
    assert_golden(quantized(build(), target)[0], f"{build.__name__}-{target.name}")


def test_packed_graphs_look_as_they_did():
    whole, _ = quantized(csp(opset=MIN_OPSET), weight_bits=4)
    assert_golden(rewrite(PackInt4(), whole)[0], "csp-ort-int4")


@pytest.mark.usefixtures("narrow_convs")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("build", [csp, v8], ids=lambda b: b.__name__)
def test_scales_are_what_they_were(build, target):
    model = build()
    found = quantize(model, [feed(model, seed) for seed in range(4)], Config(target=target))
    assert_scales(found.model, f"scales-{build.__name__}-{target}")


# --- the comparison ---------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Return a folder with the golden text of a quantized CSP block."""
    monkeypatch.setenv("ONNXQ_GOLDEN", "write")
    assert_golden(quantized(csp())[0], "csp", tmp_path)
    monkeypatch.delenv("ONNXQ_GOLDEN")
    return tmp_path


def refused(saved, edit, *words):
    """Assert that an edited graph differs from the saved one, and that the message shows the words."""
    model, _ = quantized(csp())
    edit(model)
    with pytest.raises(AssertionError, match="the graph has changed") as caught:
        assert_golden(model, "csp", saved)
    assert all(word in str(caught.value) for word in words)


def replace_initializer(model, name, values):
    next(w for w in model.graph.initializer if w.name == name).CopyFrom(numpy_helper.from_array(values, name))


def test_an_equal_graph_passes(saved):
    assert_golden(quantized(csp())[0], "csp", saved)


def test_another_calibration_and_other_weights_pass(saved):
    assert_golden(quantized(csp(seed=5), method="mse")[0], "csp", saved)


def test_a_swapped_edge_fails(saved):
    def edit(model):
        inputs = nodes(model)["concat0"].input
        inputs[0], inputs[1] = inputs[1], inputs[0]

    refused(saved, edit, "-   [concat0]", "+   [concat0]")


def test_an_edge_to_another_node_fails(saved):
    refused(saved, lambda model: nodes(model)["conv3"].input.__setitem__(0, "mul2_out"), "+   [conv3]", "mul2_out,")


def test_an_added_node_fails(saved):
    def edit(model):
        model.graph.node.insert(3, onnx.helper.make_node("Sigmoid", ["images"], ["more"], "more"))

    refused(saved, edit, "+   [more] more = Sigmoid (images)")


def test_a_removed_node_fails(saved):
    refused(saved, lambda model: model.graph.node.remove(nodes(model)["last"]), "-   [last] last_products = Gemm")


def test_nodes_in_another_order_fail(saved):
    def edit(model):
        first, second = model.graph.node[0], onnx.NodeProto()
        second.CopyFrom(model.graph.node[1])
        model.graph.node[1].CopyFrom(first)
        model.graph.node[0].CopyFrom(second)

    refused(saved, edit)


def test_a_changed_attribute_fails(saved):
    def edit(model):
        next(a for a in nodes(model)["conv2"].attribute if a.name == "pads").ints[0] = 7

    refused(saved, edit, "+   [conv2]", "pads: ints = [7, 1, 1, 1]")


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("mul1_out_zero_point", np.int8(0), "+int8[] mul1_out_zero_point"),
        ("mul1_out_scale", np.ones(8, np.float32), "+float[8] mul1_out_scale"),
        ("const0", np.array([2, 6]), "+int64[2] const0 = [2, 6]"),
    ],
)
def test_an_initializer_of_another_type_or_shape_fails(saved, name, values, shown):
    refused(saved, lambda model: replace_initializer(model, name, np.asarray(values)), shown)


def test_another_initializer_fails(saved):
    refused(saved, lambda model: model.graph.initializer.add(name="more", data_type=1, dims=[2]), "+float[2] more")


def test_another_output_fails(saved):
    refused(saved, lambda model: model.graph.output[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 2))


def test_without_a_golden_file_nothing_passes(tmp_path, monkeypatch):
    monkeypatch.delenv("ONNXQ_GOLDEN", raising=False)
    with pytest.raises(AssertionError, match=r"csp\.txt is absent; ONNXQ_GOLDEN=write makes it"):
        assert_golden(csp(), "csp", tmp_path)


def test_the_text_holds_no_weights():
    model, _ = quantized(csp())
    written = text(model)
    assert len(written.splitlines()) == len(model.graph.node) + len(model.graph.initializer) + 7
    assert all(f" {name}" in written for name in initializers(model))
    assert "{" not in written.split("{", 1)[1]
