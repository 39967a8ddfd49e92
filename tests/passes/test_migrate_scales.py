import numpy as np
import onnx
import pytest
from graphs import (
    Net,
    assert_same_numbers,
    csp,
    feed,
    initializers,
    leaky_net,
    nodes,
    ops,
    pan,
    planned,
    prepared,
    relu_net,
    rewrite,
    run,
    silu_chain,
    sppf,
    sqnr,
    v8,
    with_outputs,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from unbalanced import uneven

from onnxq import quantize
from onnxq.config import Config
from onnxq.errors import DataError
from onnxq.facts import Migration
from onnxq.passes.migrate_scales import MigrateScales
from onnxq.pipeline import Facts
from onnxq.qdq.migration import migratable
from onnxq.targets import OPENVINO


def migrated(model, seed=0, only=None, **options):
    """The prepared model, the model with random scales in all tensors that can be migrated, and the scales."""
    working, plan = planned(model, OPENVINO, **options)
    rng = np.random.default_rng(seed)
    scales = {}
    for name, each in migratable(working, plan).items():
        if only is None or name == only:
            scales[name] = np.exp(rng.normal(size=each.channels)).astype(np.float32)
    before = working.to_proto()
    after, edits = rewrite(MigrateScales(), before, Facts([plan, Migration(scales)]))
    assert edits == len(scales)
    return before, after, scales, plan


@pytest.mark.parametrize(
    "build", [silu_chain, csp, sppf, pan, v8, uneven, relu_net, leaky_net], ids=lambda b: b.__name__
)
def test_the_function_stays_the_same(build):
    before, after, scales, _ = migrated(build())
    assert scales
    onnx.checker.check_model(after, full_check=True)
    assert_same_numbers(before, after)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_function_stays_the_same_whatever_the_scales(seed):
    before, after, *_ = migrated(csp(), seed)
    assert_same_numbers(before, after)


@pytest.mark.parametrize("group", [2, 8])
def test_the_scales_of_grouped_convs(group):
    net = Net()
    model = net.model(net.conv(net.silu(net.conv("images", 8, 3)), 16, 3, group=group, name="grouped"))
    before, after, scales, _ = migrated(model, include=("grouped",))
    assert [len(each) for each in scales.values()] == [8]
    assert_same_numbers(before, after)


def test_a_tensor_is_divided_at_its_source_where_that_needs_no_mul():
    net = Net()
    x = net.add("Relu", net.conv("images", 8, 3, name="conv_source"))
    x = net.silu(net.conv(x, 8, 3))
    x = net.add("Add", net.add("Mul", x, net.const(net.rng.uniform(1, 2, (8, 1, 1)))), net.const(net.normal(8, 1, 1)))
    net.channels[x] = 8
    before, after, scales, _ = migrated(net.model(net.conv(x, 8, 3)), include=("conv_source",))
    assert len(scales) == 2
    assert ops(before) == ops(after)
    assert_same_numbers(before, after)
    old, new = initializers(before), initializers(after)
    assert not any(np.array_equal(old[name], new[name]) for name in old if name in new and name.endswith("_weight"))


def test_two_tensors_of_one_node_are_divided_each():
    net = Net()
    parts = net.split(net.silu(net.conv("images", 8, 3)), 4, 4)
    before, after, scales, _ = migrated(net.model(net.add("Add", *(net.conv(x, 8, 3) for x in parts))))
    assert len(scales) == 2
    onnx.checker.check_model(after, full_check=True)
    assert_same_numbers(before, after)


def joined(shape, channels=8, first=False, op="Add"):
    """A Conv, a Relu and a constant of this shape in front of a Conv."""
    net = Net()
    x = net.add("Relu", net.conv("images", channels, 3, name="source"))
    constant = net.const(net.rng.uniform(1, 2, shape))
    x = net.add(op, constant, x) if first else net.add(op, x, constant)
    net.channels[x] = 8
    return net.model(net.conv(x, 8, 3))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(), (1,), (8, 1, 1), (1, 8, 1, 1), (32,), (32, 32), (8, 1, 32), (3, 8, 1, 1), (8, 32, 32)]),
    st.sampled_from([1, 8]),
    st.sampled_from([(op, first) for op in ("Add", "Mul", "Sub", "Div") for first in (False, op != "Div")]),
)
def test_constants_of_any_shape(shape, channels, operator):
    assume(channels == 8 or 8 in shape)
    op, first = operator
    before, after, scales, _ = migrated(joined(shape, channels, first, op), include=("source",))
    assert len(scales) == 1
    onnx.checker.check_model(after, full_check=True)
    assert_same_numbers(before, after)
    grown = sum(map(np.size, initializers(after).values())) - sum(map(np.size, initializers(before).values()))
    assert grown <= 24


@pytest.mark.parametrize("reader", ["source", "behind"])
def test_a_weight_that_is_an_output_keeps_its_values(reader):
    net = Net()
    model = net.model(net.conv(net.add("Relu", net.conv("images", 8, name="source")), 8, name="behind"))
    before, after, *_ = migrated(with_outputs(model, f"{reader}_weight"))
    assert_same_numbers(before, after)


@pytest.mark.parametrize("ops", [[], ["Mul", "Relu"]], ids=str)
def test_an_add_that_broadcasts_to_more_dimensions(ops):
    net = Net()
    net.shape = [8, 3, 32]
    x = net.add("Conv", "images", net.const(net.normal(8, 3, 1)))
    for op in ops:
        x = net.add(op, x, *([net.const(net.rng.uniform(1, 2, (8, 1)))] if op == "Mul" else []))
    x = net.add("Add", x, net.const(net.normal(2, 1, 1, 1)))
    before, after, scales, _ = migrated(net.model(net.add("Conv", x, net.const(net.normal(8, 8, 1, 1)))))
    assert len(scales) == 1
    assert_same_numbers(before, after)


def test_a_tensor_of_unknown_rank():
    net = Net(dynamic=True)
    end = net.add("Mul", net.add("Gather", net.add("Shape", "images"), net.ints(0)), net.ints(4))
    sizes = net.add("Slice", net.ints(0, 0, 0, 0), net.ints(0), end)
    x = net.add("Reshape", net.conv("images", 8, 3), sizes)
    net.channels[x] = 8
    model = net.model(net.conv(x, 8, 3), shape=["batch", 8, "height", "width"])
    assert prepared(model).graph.tensors()[x].shape is None
    before, after, scales, _ = migrated(model)
    assert x in scales
    assert_same_numbers(before, after)


def test_a_prelu_of_a_constant_by_computed_slopes():
    net = Net()
    x = net.add("PRelu", net.const(net.normal(1, 8, 32, 32)), net.conv("images", 8, 3))
    net.channels[x] = 8
    before, after, scales, _ = migrated(net.model(net.conv(x, 8, 3)))
    assert len(scales) == 1
    assert_same_numbers(before, after)


def test_a_second_run_makes_no_edit():
    _, after, scales, plan = migrated(csp())
    _, edits = rewrite(MigrateScales(), after, Facts([plan, Migration(scales)]))
    assert edits == 0


def test_one_node_divides_for_all_integer_readers_and_the_others_read_the_tensor():
    before, after, scales, plan = migrated(csp())
    made = nodes(after)
    added = [node for node in after.graph.node if node.name not in nodes(before)]
    assert [node.op_type for node in added] == ["Mul"] * len(scales)
    for node in added:
        [tensor] = [name for name in node.input if name in scales]
        for name, original in nodes(before).items():
            if tensor in original.input:
                reads = made[name].input[list(original.input).index(tensor)]
                assert reads == (node.output[0] if name in plan.layers else tensor)


def test_a_tensor_without_scales_stays():
    before, after, *_ = migrated(silu_chain(), only="none")
    assert ops(before) == ops(after)


@pytest.mark.parametrize("bits", [8, 6])
def test_unequal_channels_lose_less(bits):
    model = uneven()
    data = [feed(model, seed) for seed in range(10)]
    found = {}
    for migrate in (False, True):
        options = {"target": "openvino", "act_bits": bits, "reconstruct": False}
        result = quantize(model, data, Config(migrate=migrate, **options))
        fresh = feed(model, 77)
        [expected], [actual] = run(model, fresh).values(), run(result.model, fresh).values()
        found[migrate] = sqnr(expected, actual)
    assert found[True] > found[False] + 1


def test_scales_of_another_number_of_channels_are_refused():
    working, plan = planned(silu_chain(), OPENVINO)
    name = next(iter(migratable(working, plan)))
    with pytest.raises(DataError, match=rf"has 1 scales of the tensor '{name}', which has \d+ channels"):
        rewrite(MigrateScales(), working.to_proto(), Facts([plan, Migration({name: np.ones(1, np.float32)})]))
