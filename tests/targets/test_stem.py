import pytest
from graphs import Net, prepared

from onnxq.targets.sizes import declared_sizes
from onnxq.targets.stem import FloatStemRule

STEM = FloatStemRule(channels=32, products=64)


def stem_of(net, x, stem=STEM):
    """Return the names of the stem's Convs in a network that ends with one more Conv, `last`, after x."""
    model = prepared(net.model(net.conv(x, 4, name="last")))
    nodes = model.graph.nodes
    body = frozenset(node.name for node in nodes if node.op == "Conv" and node.name != "last")
    return stem.convs(nodes, declared_sizes(model), body)


def halves(dynamic=False, kernel=3):
    """Narrow Convs that halve the image twice, a 1x1 one, and two of 144 products, the last with a given kernel."""
    net = Net(size=64, dynamic=dynamic)
    x = net.conv("images", 16, kernel=3, stride=2, name="on the image")
    x = net.conv(x, 16, kernel=3, stride=2, name="on half of it")
    x = net.conv(x, 16, name="pointwise")
    x = net.conv(x, 16, kernel=3, group=16, name="depthwise")
    x = net.conv(x, 16, kernel=3, name="of many products")
    return net, net.conv(net.silu(x), 16, kernel=kernel, name="behind")


@pytest.mark.parametrize(("products", "more"), [(63, set()), (143, set()), (144, {"of many products", "behind"})])
def test_it_ends_before_a_conv_of_many_products_beyond_half_of_the_image(products, more):
    net, x = halves()
    found = stem_of(net, net.conv(x, 33, name="wide"), FloatStemRule(32, products))
    assert found == {"on the image", "on half of it", "pointwise", "depthwise"} | more


def test_one_conv_of_many_products_does_not_end_it():
    net, x = halves(kernel=1)
    found = stem_of(net, net.conv(x, 33, name="wide"))
    assert found == {"on the image", "on half of it", "pointwise", "depthwise", "of many products", "behind"}


def test_of_a_narrow_network_it_is_what_stands_on_the_image():
    assert stem_of(*halves()) == {"on the image"}


def test_of_an_image_of_unknown_size_only_channels_count():
    net, x = halves(dynamic=True)
    assert stem_of(net, net.conv(x, 33, name="wide")) == {
        "on the image", "on half of it", "pointwise", "depthwise", "of many products", "behind",
    }  # fmt: skip


def test_it_ends_on_every_way_from_the_image():
    net = Net()
    x = net.conv("images", 16, name="first")
    wide, narrow = net.conv(x, 33, name="wide"), net.conv(x, 16, name="narrow")
    both = net.concat(wide, narrow)
    assert stem_of(net, net.conv(both, 16, name="joined")) == {"first", "narrow"}


@pytest.mark.parametrize(("products", "more"), [(63, set()), (64, {"up", "behind"})])
def test_a_transposed_conv_counts_all_its_input_channels(products, more):
    net = Net(size=64)
    x = net.conv("images", 16, kernel=3, stride=2, name="first")
    x = net.conv(x, 16, stride=4, name="second")
    y = net.add("ConvTranspose", x, net.const(net.normal(16, 8, 2, 2)), name="up", kernel_shape=[2, 2], strides=[2, 2])
    net.channels[y] = 8
    wide = net.conv(net.conv(y, 8, kernel=3, name="behind"), 33, name="wide")
    assert stem_of(net, wide, FloatStemRule(32, products)) == {"first", "second"} | more
