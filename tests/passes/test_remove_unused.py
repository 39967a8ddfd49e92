import numpy as np
import onnx
import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    assert_same_numbers,
    assert_untouched,
    conditional,
    csp,
    initializers,
    nodes,
    ops,
    planned,
    quantized,
    quantizing,
    rewrite,
    rewrite_checked,
    silu_chain,
)
from onnx import helper, numpy_helper

from onnxq.facts import Migration, Reconstruction
from onnxq.ir import Model
from onnxq.passes.migrate_scales import MigrateScales
from onnxq.passes.remove_unused import RemoveUnused
from onnxq.pipeline import Facts, Pipeline
from onnxq.qdq.migration import migratable
from onnxq.targets import OPENVINO

STEP = RemoveUnused()


def with_unused(model):
    """A chain of two nodes that nothing reads, and constants that only it or nothing reads."""
    model.graph.initializer.extend([
        numpy_helper.from_array(np.ones((1, 8, 1, 1), np.float32), "read_by_unused"),
        numpy_helper.from_array(np.ones(3, np.float32), "unread"),
    ])  # fmt: skip
    model.graph.node.extend([
        helper.make_node("Add", ["conv0_out", "read_by_unused"], ["unused_out"], "unused"),
        helper.make_node("Sigmoid", ["unused_out"], ["unused_too_out"], "unused_too"),
    ])  # fmt: skip
    return model


def test_nodes_go_on_which_no_output_depends():
    after, edits = rewrite_checked(STEP, with_unused(csp()))
    assert edits == 2
    assert ops(after) == ops(csp())
    assert nodes(after).keys() == nodes(csp()).keys()


def test_constants_go_that_nothing_reads():
    after, _ = rewrite_checked(STEP, with_unused(csp()))
    assert initializers(after).keys() == initializers(csp()).keys()


def test_an_unread_constant_alone_goes_without_an_edit():
    model = csp()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unread"))
    after, edits = rewrite_checked(STEP, model)
    assert edits == 0
    assert "unread" not in initializers(after)


def test_a_node_with_one_output_in_use_stays_whole():
    model = csp()
    nodes(model)["concat0"].input.remove("split0_out0")
    nodes(model)["concat0"].input.insert(0, "split0_out1")
    assert_untouched(STEP, model)


def test_inputs_stay_used_or_not():
    model = silu_chain()
    model.graph.input.append(helper.make_tensor_value_info("unused", onnx.TensorProto.FLOAT, [1]))
    assert_untouched(STEP, model)


def test_what_only_a_subgraph_reads_stays():
    assert_untouched(STEP, conditional())


def test_float_weights_go_with_the_layers_that_read_them():
    model = csp()
    steps = quantizing(model, matmul=False)
    working = Model(model)
    facts = Pipeline(steps[:-1]).run(working)
    STEP.run(working, facts)
    after = working.to_proto()
    assert not any(name.endswith("_weight") and not name.startswith(("conv0", "last")) for name in initializers(after))
    assert {f"conv{k}_weight_quantized" for k in range(1, 5)} <= initializers(after).keys()


def test_a_quantized_model_is_clean_already():
    after, _ = quantized(csp())
    assert_untouched(STEP, after)


@pytest.mark.parametrize("name", sorted({**BACKBONES, **DETECTORS}))
def test_a_graph_that_is_needed_whole_is_not_touched(name):
    assert_untouched(STEP, {**BACKBONES, **DETECTORS}[name]())


def test_nothing_is_counted_twice():
    working = Model(with_unused(csp()))
    assert STEP.run(working, Facts()) == 2
    assert STEP.run(working, Facts()) == 0


@pytest.mark.parametrize("power", [0, 1])
def test_a_division_by_1_goes(power):
    working, plan = planned(silu_chain(), OPENVINO)
    [(name, each), *_] = migratable(working, plan).items()
    scales = np.linspace(0.5, 2, each.channels, dtype=np.float32) ** power
    model, _ = rewrite(MigrateScales(), working.to_proto(), Facts([plan, Migration({name: scales})]))
    facts = Facts([Reconstruction({}, {}, {}, {name: scales})])
    after, _ = rewrite(STEP, model, facts)
    assert_same_numbers(model, after)
    assert rewrite(STEP, after, facts)[1] == 0
    assert (f"{name}_Mul" in nodes(after)) == (power == 1)
    assert len(after.graph.node) == len(model.graph.node) - (power == 0)
