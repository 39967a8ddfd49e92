import pytest
from graphs import Net, prepared
from texts import imported

from onnxq.ir import feeds_only_silu, image_convs, is_scaling, is_silu, next_layers


class TestSilu:
    @pytest.mark.parametrize("product", ["Mul(x, s)", "Mul(s, x)"])
    def test_is_x_times_its_sigmoid_either_way_round(self, product):
        graph, nodes = imported(f"s = Sigmoid(x) y = {product}")
        assert is_silu(nodes["y"])
        assert not is_silu(nodes["s"])
        assert feeds_only_silu(graph.inputs[0])

    @pytest.mark.parametrize(
        "body",
        [
            "a = Relu(x) s = Sigmoid(a) y = Mul(x, s)",
            "s = Sigmoid(x) y = Mul(s, s)",
            "s = Tanh(x) y = Mul(x, s)",
            "s = Sigmoid(x) y = Add(x, s)",
            "y = Mul(x, x)",
            "s = HardSigmoid(x) y = Mul(x, s)",
        ],
    )
    def test_other_products_are_not(self, body):
        graph, nodes = imported(body)
        assert not is_silu(nodes["y"])
        assert not feeds_only_silu(graph.inputs[0])

    @pytest.mark.parametrize(
        "body",
        [
            "s = Sigmoid(x) y = Mul(x, s) z = Relu(x)",
            "s = Sigmoid(x) y = Mul(x, s) z = Relu(s)",
            "s = Sigmoid(x) y = Mul(x, s) z = Mul(x, s)",
            "s = Sigmoid(x) t = Sigmoid(x) y = Mul(x, s) z = Relu(t)",
        ],
    )
    def test_a_second_use_of_x_or_of_its_sigmoid(self, body):
        graph, nodes = imported(body)
        assert is_silu(nodes["y"])
        assert not feeds_only_silu(graph.inputs[0])

    def test_what_comes_out_of_a_silu_does_not_go_into_it(self):
        _, nodes = imported("s = Sigmoid(x) p = Mul(x, s) y = Relu(p)")
        assert not feeds_only_silu(nodes["p"].outputs[0])
        assert not feeds_only_silu(nodes["s"].outputs[0])


@pytest.mark.parametrize(("op", "constants", "scales"), [("Mul", 1, True), ("Mul", 0, False), ("Add", 1, False)])
def test_a_mul_by_a_constant_scales(op, constants, scales):
    net = Net()
    y = net.add(op, "images", net.const(2.0) if constants else "images", name="node")
    node = prepared(net.model(net.add("Relu", y))).nodes["node"]
    assert is_scaling(node) == scales


def test_next_layers_are_found_through_other_nodes():
    net = Net()
    x = net.silu(net.conv("images", 8, name="first"))
    y, z = net.conv(x, 8, name="left"), net.conv(net.add("Relu", x), 8, name="right")
    model = prepared(net.model(net.conv(net.concat(y, z), 4, name="last")))
    found = {node.name: {layer.name for layer in next_layers(node)} for node in model.graph.nodes}
    assert found["first"] == {"left", "right"}
    assert found["left"] == found["right"] == {"last"}
    assert found["last"] == set()


def test_convs_that_no_layer_precedes_read_images():
    net = Net()
    first = net.conv("images", 8, name="first")
    second = net.conv(net.add("Relu", "images"), 8, name="second")
    behind = net.conv(net.add("Relu", first), 8, name="behind")
    model = prepared(net.model(net.conv(net.concat(second, behind), 4, name="last")))
    assert image_convs(model.graph.nodes) == {"first", "second"}
