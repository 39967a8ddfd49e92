import pytest
from graphs import Net, depthwise_net, planned, shared_weights, silu_chain

from onnxq.qdq.migration import migratable
from onnxq.targets import GENERIC, OPENVINO


def found(model, target=OPENVINO, **options):
    working, plan = planned(model, target, **options)
    return {name: [layer.name for layer in layers] for name, layers in migratable(working, plan).items()}


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
    "model",
    [two_readers(group=2), two_readers("ConvTranspose"), depthwise_net(), shared_weights()],
    ids=["groups", "transposed", "depthwise", "shared weights"],
)
def test_tensors_with_another_kind_of_reader_stay(model):
    plain = {name for names in found(model, GENERIC).values() for name in names}
    working, plan = planned(model, GENERIC)
    for name, layers in migratable(working, plan).items():
        for node in working.graph.nodes:
            if node.name in plan.layers and node.inputs[0].name == name:
                assert node in layers
    for name in plain:
        node = working.nodes[name]
        assert node.op == "Conv"
        assert node.attrs.get("group", 1) == 1
        assert len(node.inputs[1].outputs) == 1


def test_layers_that_stay_float_do_not_count():
    model = silu_chain()
    [first, *_] = found(model).values()
    assert first[0] not in {name for names in found(model, exclude=(first[0],)).values() for name in names}
