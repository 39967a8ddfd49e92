import onnx
import pytest
from graphs import (
    DETECTORS,
    assert_same_numbers,
    nodes,
    ops,
    quantized,
    rewrite,
    shared_weights,
    v8,
)
from onnx import helper

from onnxq.facts import Plan
from onnxq.ir import QDQ_OPS, ProtoIndex
from onnxq.passes.own_dequantize import OwnDequantize
from onnxq.targets import GENERIC


def written(build):
    """Return a model for `generic` before and after the pass, its plan and the number of edits."""
    before, facts = quantized(build(), GENERIC)
    after, edits = rewrite(OwnDequantize(), before, facts)
    onnx.checker.check_model(after, full_check=True)
    assert_same_numbers(before, after)
    again, none = rewrite(OwnDequantize(), after, facts)
    assert (none, ops(again)) == (0, ops(after))
    return before, after, facts[Plan], edits


def mixed(model, plan):
    """Return the dequantized activations that integer and float nodes read."""
    index, found = ProtoIndex(model.graph), []
    for node in model.graph.node:
        readers = index.consumers.get(node.output[0], [])
        if node.op_type == "DequantizeLinear" and node.input[0] not in index.constants:
            kinds = {reader.name in plan.integer or reader.op_type in QDQ_OPS for reader in readers}
            found += [node.name] if len(kinds) == 2 else []
    return found


def test_last_layers_that_are_float_read_apart():
    before, after, plan, edits = written(DETECTORS["v5_raw"])
    assert len(mixed(before, plan)) == edits > 0
    assert not mixed(after, plan)
    assert ops(after).count("DequantizeLinear") == ops(before).count("DequantizeLinear") + edits


def test_the_copy_reads_what_the_original_reads():
    _, after, plan, _ = written(DETECTORS["v5_raw"])
    copies = [node for node in after.graph.node if node.name.endswith("_DequantizeLinear_float")]
    assert copies
    for copy in copies:
        original = nodes(after)[copy.name.removesuffix("_float")]
        assert list(copy.input) == list(original.input)
        readers = [n.name for n in after.graph.node if copy.output[0] in n.input]
        assert readers
        assert not plan.integer.intersection(readers)


@pytest.mark.parametrize("build", [v8, shared_weights])
def test_a_model_without_such_tensors_stays(build):
    before, after, plan, edits = written(build)
    assert not mixed(before, plan)
    assert edits == 0
    assert after.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)


def test_what_is_quantized_again_reads_with_the_others_and_so_do_readers_of_weights():
    model, facts = quantized(v8(), GENERIC)
    index = ProtoIndex(model.graph)
    dequantizing = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    weight = next(node for node in dequantizing if node.input[0] in index.constants)
    data = next(node for node in dequantizing if node.input[0] not in index.constants)
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", [data.output[0], *data.input[1:]], ["again"], "quantize_again"),
            helper.make_node("Abs", weight.output, ["magnitude"], "reads_a_weight"),
        ]
    )
    assert rewrite(OwnDequantize(), model, facts)[1] == 0


def test_generic_files_are_written_so():
    assert OwnDequantize.name in GENERIC.lowering
