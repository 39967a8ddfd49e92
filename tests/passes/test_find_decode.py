import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    Net,
    attention,
    conditional,
    copy,
    exported,
    nodes,
    ops,
    pan,
    pp_yoloe,
    prepared,
    v5,
    v5_raw,
    v6,
    v7_end2end,
    v8,
    v10,
    with_constant_nodes,
    with_node_names,
    with_random_names,
    yolo_nas,
    yolox,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import ModelError
from onnxq.facts import DecodeBoundary
from onnxq.ir import Model
from onnxq.passes.find_decode import LAYERS, FindDecode
from onnxq.pipeline import Facts

V8_LAST = {f"{kind}{k}" for kind in ("box", "cls") for k in range(3)}
HEADS = {
    "v5": (v5, {}, {"detect0", "detect1", "detect2"}),
    "v5 of 64 pixels": (v5, {"size": 64}, {"detect0", "detect1", "detect2"}),
    "v5 without decode": (v5_raw, {}, {"detect0", "detect1", "detect2"}),
    "v7-tiny": (v5, {"act": "LeakyRelu"}, {"detect0", "detect1", "detect2"}),
    "v7 end to end": (v7_end2end, {}, {"detect0", "detect1", "detect2"}),
    "v6": (v6, {}, V8_LAST),
    "v8": (v8, {}, V8_LAST),
    "v8 at opset 11": (v8, {"opset": 11}, V8_LAST),
    "v8-seg": (v8, {"masks": True}, V8_LAST | {"mask0", "mask1", "mask2", "proto"}),
    "v10": (v10, {}, {f"one2one_{name}" for name in V8_LAST}),
    "v26": (v8, {"reg_max": 1}, V8_LAST),
    "pp-yoloe": (pp_yoloe, {}, V8_LAST),
    "yolo-nas": (yolo_nas, {}, V8_LAST),
    "yolox": (yolox, {}, {f"{kind}{k}" for kind in ("reg", "obj", "cls") for k in range(3)}),
}
REAL = {
    "yolo11n": 6,
    "yolo11n-opset12": 6,
    "yolo26n": 6,
    "yolov10n": 6,
    "yolov5m": 3,
    "yolov5n": 3,
    "yolov5nu": 6,
    "yolov5s": 3,
    "yolov6n": 6,
    "yolov7": 3,
    "yolov7-tiny": 3,
    "yolov7x": 3,
    "yolov8n": 6,
    "yolov8n-cls": 1,
    "yolov8n-dynamic": 6,
    "yolov8n-nms": 6,
    "yolov8n-pose": 9,
    "yolov8n-seg": 10,
}
WITHOUT_DFL = {"yolo26n", "yolov5m", "yolov5n", "yolov5s", "yolov7", "yolov7-tiny", "yolov7x", "yolov8n-cls"}


def head_of(model):
    """The head of a model as it is, or of a Model that was prepared."""
    return FindDecode().run(model if isinstance(model, Model) else Model(copy(model)), Facts())


def assert_parts(model, head):
    """Assert what holds of every head: body and tail are all nodes, and a layer is in the tail only as a projection."""
    working = model if isinstance(model, Model) else Model(model)
    assert set(head.body) | head.tail == working.nodes.keys()
    assert not set(head.body) & head.tail
    assert set(head.last) <= head.body


# --- the heads of all families ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_the_last_layers_are_exactly_the_head_convs(kind):
    build, options, last = HEADS[kind]
    head = head_of(build(**options))
    assert set(head.last) == last
    assert len(head.last) == len(last)


@pytest.mark.parametrize("kind", HEADS)
def test_the_tail_is_exactly_the_decode(kind):
    build, options, _ = HEADS[kind]
    model = build(**options)
    head = head_of(model)
    assert set(head.tail) == {name for name in nodes(model) if name.startswith("decode_")}
    assert_parts(model, head)


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_of_a_prepared_model_is_that_of_the_raw_one(kind):
    build, options, last = HEADS[kind]
    assert set(head_of(prepared(build(**options))).last) == last


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(sorted(HEADS)), seed=st.integers(0, 1000))
def test_names_of_nodes_and_tensors_do_not_matter(kind, seed):
    build, options, _ = HEADS[kind]
    model = build(**options)
    renamed = with_random_names(model, seed)
    one, other = head_of(model), head_of(renamed)
    place = {node.name: index for index, node in enumerate(model.graph.node)}
    place_renamed = {node.name: index for index, node in enumerate(renamed.graph.node)}
    assert [place[name] for name in one.last] == [place_renamed[name] for name in other.last]
    assert {place[name] for name in one.body} == {place_renamed[name] for name in other.body}


def test_names_that_lie_do_not_matter():
    model = v8()
    names = [node.name for node in model.graph.node]
    lying = {"decode_dfl": "model.0.conv", "conv0": "model.22.dfl.conv", "box0": "decode_sigmoid"}
    head = head_of(with_node_names(model, [lying.get(name, name) for name in names]))
    assert set(head.last) == (V8_LAST - {"box0"}) | {"decode_sigmoid"}
    assert "model.0.conv" in head.tail
    assert "model.22.dfl.conv" in head.body


def test_constants_written_as_nodes_do_not_matter_once_normalized():
    assert set(head_of(prepared(with_constant_nodes(v8()))).last) == V8_LAST
    assert set(head_of(prepared(with_constant_nodes(v7_end2end()))).last) == {"detect0", "detect1", "detect2"}


def test_last_layers_come_in_the_order_of_the_graph():
    assert head_of(v8()).last == ("box0", "cls0", "box1", "cls1", "box2", "cls2")


# --- projections ------------------------------------------------------------------------------------------------------


def test_the_conv_behind_a_softmax_is_part_of_the_decode():
    head = head_of(v8())
    assert "decode_dfl" in head.tail
    assert {"decode_projection0", "decode_projection1", "decode_projection2"} <= head_of(v6()).tail


def test_the_product_with_a_small_constant_matrix_is_part_of_the_decode():
    model = v7_end2end()
    assert [name for name in head_of(model).tail if nodes(model)[name].op_type == "MatMul"] == ["decode_matmul0"]


def classifier(features, classes, op="MatMul"):
    net = Net()
    x = net.reshape(net.add("GlobalAveragePool", net.conv("images", features, name="conv")), 1, features)
    weight = net.const(net.normal(features, classes))
    net.add(op, x, weight, name="classify")
    return net.model(net.add("Softmax", "classify_out", axis=-1))


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_the_product_with_a_large_constant_matrix_is_a_layer(op):
    assert head_of(classifier(13, 5, op)).last == ("classify",)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_constant_matrix_of_64_elements_is_no_layer(op):
    assert head_of(classifier(16, 4, op)).last == ("conv",)


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: x,
        lambda net, x: net.add("Identity", x),
        lambda net, x: net.add("Transpose", x, perm=[0, 1, 3, 2]),
        lambda net, x: net.reshape(x, 1, 8, 16, 64),
        lambda net, x: net.slice(x, 2, 0, end=8),
        lambda net, x: net.split(x, 16, 16, axis=2)[0],
        lambda net, x: net.add("Squeeze", net.unsqueeze(x, 0), net.ints(0)),
        lambda net, x: net.add("Cast", x, to=1),
        lambda net, x: net.reshape(net.add("Flatten", x), 1, 8, 32, 32),
    ],
    ids=["nothing", "Identity", "Transpose", "Reshape", "Slice", "Split", "Squeeze", "Cast", "Flatten"],
)
def test_what_moves_values_between_softmax_and_projection_does_not_matter(between):
    net = Net()
    x = between(net, net.add("Softmax", net.conv("images", 8, name="last"), axis=1))
    net.channels[x] = 8
    head = head_of(net.model(net.conv(x, 1, name="projection")))
    assert head.last == ("last",)
    assert "projection" in head.tail


def test_a_conv_behind_a_softmax_and_arithmetic_is_a_layer():
    net = Net()
    x = net.add("Softmax", net.conv("images", 8), axis=1)
    x = net.add("Mul", x, net.const(2))
    net.channels[x] = 8
    assert head_of(net.model(net.conv(x, 1, name="layer"))).last == ("layer",)


def test_the_products_of_an_attention_block_are_layers_within_the_body():
    model = attention()
    head = head_of(model)
    assert head.last == ("last",)
    assert not head.tail
    assert {name for name, node in nodes(model).items() if node.op_type in LAYERS} <= head.body


# --- other shapes of graphs -------------------------------------------------------------------------------------------


def test_a_head_without_decode_has_no_tail():
    head = head_of(v5_raw())
    assert not head.tail
    assert len(head.body) == len(v5_raw().graph.node)


def test_every_branch_has_its_last_layer():
    assert head_of(pan()).last == ("last0", "last1")


def test_shape_arithmetic_between_backbone_and_decode_does_not_lead_into_the_backbone():
    net = Net(dynamic=True)
    x = net.block("images", 8)
    last = net.conv(x, 8, name="last")
    net.prefix = "decode_"
    batch = net.slice(net.add("Shape", x), 0, 0, end=1)
    flat = net.add("Reshape", last, net.concat(batch, net.ints(8, -1), axis=0))
    head = head_of(net.model(net.add("Sigmoid", flat), shape=["batch", 8, "cells"]))
    assert head.last == ("last",)
    assert all(name.startswith("decode_") for name in head.tail)
    assert {"conv0", "sigmoid0", "mul0"} <= head.body


def test_what_only_a_subgraph_of_the_body_reads_belongs_to_the_body():
    head = head_of(conditional())
    assert head.last == ("last",)
    assert {"read_inside", "if0"} <= head.body
    assert not head.tail


def test_what_only_a_subgraph_behind_the_head_needs_is_no_reason_to_look_for_layers_there():
    model = conditional()
    # The last Conv reads the If no more, so that the If is a way out of its own.
    nodes(model)["last"].input[0] = "mul0_out"
    model.graph.output.add(name="if0_out").type.CopyFrom(model.graph.output[0].type)
    head = head_of(model)
    assert set(head.last) == {"read_inside", "last"}
    assert "if0" in head.tail


@pytest.mark.parametrize("op", ["Sigmoid", "MatMul"])
def test_a_model_without_a_conv_is_refused(op):
    net = Net()
    x = net.add("Sigmoid", "images") if op == "Sigmoid" else net.add("MatMul", "images", net.const(net.normal(32, 32)))
    with pytest.raises(ModelError, match="the model has no Conv: there is nothing here that onnxq could quantize"):
        head_of(net.model(x))


@pytest.mark.parametrize("name", sorted({**BACKBONES, **DETECTORS}))
def test_the_graph_is_not_touched(name):
    working = Model({**BACKBONES, **DETECTORS}[name]())
    before = working.to_proto().SerializeToString(deterministic=True)
    assert isinstance(FindDecode().run(working, Facts()), DecodeBoundary)
    assert working.to_proto().SerializeToString(deterministic=True) == before


# --- real exports -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_head_of_a_real_export_is_found(name):
    model = Model(exported(name))
    head = head_of(model)
    assert len(head.last) == REAL[name]
    found = model.nodes
    assert {found[n].op for n in head.last} == ({"Gemm"} if name == "yolov8n-cls" else {"Conv"})
    projections = [n for n in head.tail if found[n].op in LAYERS]
    assert [found[n].op for n in projections] == ([] if name in WITHOUT_DFL else ["Conv"])
    assert all("dfl" in n for n in projections)
    assert_parts(model, head)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n", "yolov10n", "yolov5n", "yolov8n-dynamic", "yolov8n-nms", "yolov8n-seg"])
def test_the_head_of_a_prepared_real_export_is_that_of_the_raw_one(name):
    raw = exported(name)
    assert head_of(prepared(raw)).last == head_of(raw).last


def test_renaming_everything_in_a_real_export_changes_nothing():
    model = exported("yolov8n")
    renamed = with_random_names(model)
    one, other = head_of(model), head_of(renamed)
    names = dict(zip(nodes(renamed), nodes(model), strict=True))
    assert tuple(names[name] for name in other.last) == one.last
    assert {names[name] for name in other.tail} == one.tail
    assert ops(renamed) == ops(model)
