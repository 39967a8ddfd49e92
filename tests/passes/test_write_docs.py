import numpy as np
import onnx
import pytest
from graphs import copy, csp, feed, nodes, quantized, rewrite, v8
from unbalanced import uneven

from onnxq import Config, quantize
from onnxq.facts import Migration, Plan, Reconstruction
from onnxq.ir import Model
from onnxq.passes.write_docs import WriteDocs
from onnxq.pipeline import Facts
from onnxq.reconstruction.scale_fit import FittedScales


def documented(model, facts):
    """The model with its doc strings, and how many were written."""
    return rewrite(WriteDocs(), model, facts)


def of(model):
    """Doc strings of the nodes that have one."""
    return {node.name: node.doc_string for node in model.graph.node if node.doc_string}


@pytest.fixture(scope="module")
def made():
    return quantized(v8(), method="uh")


def without_docs(model):
    bare = copy(model)
    for node in bare.graph.node:
        node.ClearField("doc_string")
    return bare


class TestUntouched:
    def test_a_model_with_nothing_to_say_of(self, made):
        plan = Plan((), (), frozenset(), (), {})
        facts = Facts([plan, *(fact for fact in made[1] if not isinstance(fact, Plan))])
        after, edits = documented(made[0], facts)
        assert (edits, of(after)) == (0, {})

    def test_a_second_run(self, made):
        once, edits = documented(*made)
        twice, more = documented(once, made[1])
        assert edits > 0
        assert (more, twice) == (0, once)


def test_each_quantized_tensor_and_each_float_node_is_told_of(made):
    model, facts = made
    after, edits = documented(model, facts)
    said, plan = of(after), facts[Plan]
    q = {node.name for node in after.graph.node if node.op_type == "QuantizeLinear"}
    floats = {name for name in plan.skipped if name in nodes(after)}
    assert said.keys() == q | floats
    assert edits == len(said)
    for name in floats:
        assert said[name] == f"onnxq: float ({plan.skipped[name]})"


def test_what_is_said_of_a_mul_in_front_of_divided_channels():
    model = uneven()
    result = quantize(model, [feed(model)], Config(target="openvino", migrate=True))
    scales = result.facts[Migration].scales
    said = {node.input[0]: node.doc_string for node in result.model.graph.node if node.output[0].endswith("_migrated")}
    assert said.keys() == scales.keys()
    for tensor, text in said.items():
        least, most = 1 / scales[tensor].max(), 1 / scales[tensor].min()
        bounds = f"{least:.3g} to {most:.3g}"
        assert text == f"onnxq: channels times {bounds}, divided out again in the weights that read them"


def test_a_tensor_is_told_of_if_its_channels_are_divided_by_1_after_all(monkeypatch):
    def undivided(divided, fitted, *args, **options):
        return FittedScales(np.ones_like(divided), fitted)

    monkeypatch.setattr("onnxq.reconstruction.graph_pair.fit_scales", undivided)
    model = uneven()
    config = Config(target="openvino", weight_bits=4, bits=("op:Conv=4/8",), migrate=True)
    found = quantize(model, [feed(model, seed) for seed in range(4)], config)
    assert found.facts[Reconstruction].scales
    assert not any(node.name.endswith("_Mul") and "_factors" in "".join(node.input) for node in found.model.graph.node)
    quantizing = [node for node in found.model.graph.node if node.op_type == "QuantizeLinear"]
    assert any("_migrated" in node.name for node in quantizing)
    assert all(node.doc_string.startswith("onnxq: ") for node in quantizing)


def test_what_is_said_of_a_tensor(made):
    said = of(documented(*made)[0])
    words = [text for name, text in said.items() if "_QuantizeLinear" in name]
    assert any(text.startswith("onnxq: -0.2785 to ") and ", uh, " in text and " dB, " in text for text in words)
    assert all(text.endswith("% clipped") for text in words if " dB" in text)


def test_only_doc_strings_change(made):
    after, _ = documented(*made)
    onnx.checker.check_model(after, full_check=True)
    assert without_docs(after) == Model(made[0]).to_proto()


def test_a_range_that_is_known_has_no_noise():
    quantized_model = quantize(csp(), None, Config(target="generic", count=2))
    said = of(quantized_model.model).values()
    assert any(text.endswith(", known") for text in said)


def test_what_exporters_wrote_stays(made):
    model = copy(made[0])
    [first, *_] = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    first.doc_string = "from the exporter"
    lines = nodes(documented(model, made[1])[0])[first.name].doc_string.split("\n")
    assert lines[0] == "from the exporter"
    assert lines[1].startswith("onnxq: ")


def test_a_reason_that_holds_no_more_is_struck_out(made):
    model = copy(made[0])
    layer = made[1][Plan].layers[0]
    nodes(model)[layer].doc_string = "onnxq: float (excluded by conv0)"
    assert layer not in of(documented(model, made[1])[0])


@pytest.mark.slow
def test_files_tell_and_same_input_gives_same_bytes():
    first, second = (quantize(v8(), None, Config(count=2)).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert any(text.startswith("onnxq: float (") for text in of(first).values())
