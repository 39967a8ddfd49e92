import numpy as np
import onnx
import pytest
from graphs import Net, assert_same_numbers, csp, planned, rewrite, shared_weights, silu_chain

from onnxq.facts import Migration
from onnxq.ir import Model
from onnxq.passes.migrate_scales import MigrateScales
from onnxq.pipeline import Facts
from onnxq.qdq.migration import divide_otherwise, divided_inputs, divided_name, migratable
from onnxq.targets import GENERIC, OPENVINO, ORT


def found(model, target=OPENVINO, **options):
    working, plan = planned(model, target, **options)
    return {name: [layer.name for layer in each.layers] for name, each in migratable(working, plan).items()}


def two_readers(op="Conv", **attributes):
    net = Net()
    x = net.silu(net.conv("images", 8, 3))
    first = net.conv(x, 8, 3)
    if op == "Conv":
        second = net.conv(x, 8, 3, **attributes)
    else:
        second = net.add(op, x, net.const(net.normal(8, 8, 1, 1)))
        net.channels[second] = 8
    return net.model(net.add("Add", first, second))


def test_each_tensor_has_all_layers_that_read_it():
    assert sorted(map(len, found(two_readers()).values())) == [2]


def test_the_inputs_of_the_model_stay():
    assert "images" not in found(silu_chain())
    assert found(silu_chain())


@pytest.mark.parametrize(
    "model", [two_readers("ConvTranspose"), shared_weights()], ids=["transposed", "shared weights"]
)
def test_tensors_with_another_kind_of_reader_stay(model):
    working, plan = planned(model, OPENVINO)
    for each in migratable(working, plan).values():
        for layer in each.layers:
            assert layer.op == "Conv"
            assert len(layer.inputs[1].outputs) == 1
            assert {node.name for node in layer.inputs[0].outputs} & plan.integer <= {node.name for node in each.layers}


def test_readers_on_integers_that_have_no_weights_leave_the_tensor_as_it_is():
    model = csp()
    assert set(found(model, OPENVINO)) - set(found(model, GENERIC))


@pytest.mark.parametrize(("group", "channels", "separate"), [(1, 8, False), (2, 8, False), (8, 8, True)])
def test_convs_of_any_number_of_groups(group, channels, separate):
    net = Net()
    x = net.silu(net.conv("images", channels, 3))
    model = net.model(net.conv(x, 16, 3, group=group))
    working, plan = planned(model, OPENVINO, include=("conv1",))
    [each] = migratable(working, plan).values()
    assert each.channels == channels
    assert each.is_separate == separate


def source(*between, target=OPENVINO, other_reader=False, is_output=False):
    """The operators whose constants scale the tensor between two Convs, the last one first."""
    net = Net()
    x = net.conv("images", 8, 3)
    for op in between:
        operand = [net.const(net.rng.uniform(1, 2, (8, 1, 1)))] if op in ("Mul", "Add") else []
        x = {"silu": net.silu, "MaxPool": net.pool}.get(op, lambda x, op=op, more=operand: net.add(op, x, *more))(x)
        net.channels[x] = 8
    ends = [
        net.conv(net.conv(x, 8, 3), 4, 3),
        *([net.add("Sigmoid", x)] if other_reader else []),
        *([x] if is_output else []),
    ]
    working, plan = planned(net.model(*ends), target, include=("conv0", "conv1"))
    [each] = [e for e in migratable(working, plan).values() if e.layers[0].name == "conv1"] or [None]
    return [node.op for node in each.sources] if each else None


@pytest.mark.parametrize(
    ("between", "sources"),
    [
        ((), ["Conv"]),
        (("Relu",), ["Conv"]),
        (("LeakyRelu", "MaxPool"), ["Conv"]),
        (("silu", "Mul"), ["Mul"]),
        (("silu", "Mul", "Add"), ["Add", "Mul"]),
        (("Relu", "Add", "MaxPool"), ["Add", "Conv"]),
        (("silu", "Add"), []),
        (("silu",), []),
        (("Sigmoid",), []),
    ],
    ids=str,
)
def test_the_nodes_that_scale_a_tensor(between, sources):
    assert source(*between) == sources


@pytest.mark.parametrize("options", [{"other_reader": True}, {"is_output": True}], ids=str)
def test_a_tensor_that_something_else_reads_is_not_divided_at_its_source(options):
    assert source("Relu", **options) == []


@pytest.mark.parametrize(
    ("op", "shape", "sources"),
    [
        ("Mul", (), ["Mul"]),
        ("Mul", (1, 8, 1, 1), ["Mul"]),
        ("Mul", (8, 32, 32), ["Mul"]),
        ("Mul", (32, 32), []),
        ("Add", (8, 1, 1), ["Add", "Conv"]),
        ("Add", (32,), []),
    ],
    ids=str,
)
def test_a_constant_is_divided_unless_it_grows_beyond_a_value_for_each_channel(op, shape, sources):
    net = Net()
    x = net.add(op, net.add("Relu", net.conv("images", 8, 3)), net.const(np.ones(shape)))
    working, plan = planned(net.model(net.conv(x, 4, 3, name="last")), OPENVINO, include=("conv0",))
    assert [node.op for node in migratable(working, plan)[x].sources] == sources


def test_no_mul_stands_between_a_node_on_integers_and_its_q():
    assert source("Relu", target=ORT) == ["Conv"]
    assert source("Relu", target=ORT, other_reader=True) is None


def test_layers_that_stay_float_do_not_count():
    model = silu_chain()
    [first, *_] = found(model).values()
    assert first[0] not in {name for names in found(model, exclude=(first[0],)).values() for name in names}


def divided(model, target=OPENVINO, **options):
    """The model with scales in all tensors that can be migrated, the scales, and those that can still be replaced."""
    working, plan = planned(model, target, **options)
    rng = np.random.default_rng(0)
    scales = {
        name: np.exp(rng.normal(size=each.channels)).astype(np.float32)
        for name, each in migratable(working, plan).items()
    }
    after, _ = rewrite(MigrateScales(), working.to_proto(), Facts([plan, Migration(scales)]))
    migrated, plan = planned(after, target, **options)
    return migrated, scales, divided_inputs(migrated, plan, scales)


def grouped(group=2):
    net = Net()
    x = net.silu(net.conv("images", 8, 3))
    return net.model(net.conv(x, 16, 3, group=group, name="reader"))


@pytest.mark.parametrize(
    "build", [silu_chain, csp, two_readers, lambda: grouped(2)], ids=["chain", "csp", "two", "group"]
)
@pytest.mark.parametrize("power", [0, 0.5, 1, 1.5, 2])
def test_other_scales_leave_the_function_as_it_is(build, power):
    model, _, found = divided(build())
    assert found
    before = model.to_proto()
    others = {each.tensor: each.scales ** np.float32(power) for each in found}
    divide_otherwise(model, others)
    after = model.to_proto()
    assert_same_numbers(before, after)
    for each in found:
        factors = next(node.inputs[1].values for node in model.graph.nodes if node.name == each.node)
        assert np.array_equal(factors.reshape(-1), np.reciprocal(others[each.tensor]))
    assert (before == after) == (power == 1)


def test_all_layers_that_read_a_quotient_are_told_in_their_order():
    _, scales, [each] = divided(two_readers())
    assert each.quotient == divided_name(each.tensor)
    assert each.layers == ("conv1", "conv2")
    assert each.scales is scales[each.tensor]


def test_what_is_divided_at_its_source_keeps_its_scales():
    net = Net()
    _, scales, found = divided(net.model(net.conv(net.add("Relu", net.conv("images", 8)), 8, 3)))
    assert scales
    assert not found


def test_what_only_convs_read_that_add_up_no_channels_keeps_its_scales():
    assert not divided(grouped(8), include=("reader",))[2]


def test_a_quotient_that_is_an_output_or_that_a_float_node_reads_keeps_its_scales():
    model, scales, [each] = divided(two_readers())
    _, plan = planned(model.to_proto(), OPENVINO)
    proto = model.to_proto()
    proto.graph.output.append(onnx.helper.make_tensor_value_info(each.quotient, onnx.TensorProto.FLOAT, None))
    assert divided_inputs(model, plan, scales)
    assert not divided_inputs(Model(proto), plan, scales)
    _, floating = planned(model.to_proto(), OPENVINO, exclude=("conv2",))
    assert not divided_inputs(model, floating, scales)


def test_without_scales_nothing_can_be_replaced():
    working, plan = planned(csp(), OPENVINO)
    assert not divided_inputs(working, plan, {})
