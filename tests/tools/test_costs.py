"""Costs of small detectors."""

import numpy as np
import pytest
from graphs import feed
from onnx import TensorProto, helper
from unbalanced import uneven

from docs.tools import costs
from models import make
from onnxq import quantize
from onnxq.config import Config
from onnxq.errors import ModelError
from onnxq.facts import DecodeBoundary, Migration, Plan
from onnxq.ir import Model
from onnxq.passes import prepare_and_plan
from onnxq.pipeline import Pipeline


def small(size=32):
    """A Conv of 8 x 27 weights at 16 x 16 places, a depthwise one of 8 x 9 and a last one of 4 x 8."""
    b = make.Builder()
    x = b.conv("images", 3, 8, 3, 2)
    weight = b.constant(np.ones((8, 1, 3, 3)))
    x = b.node("Conv", x, weight, group=8, pads=[1] * 4, kernel_shape=[3, 3])
    y = b.conv(x, 8, 4, silu=False)
    image, made = [1, 3, size, size], [1, 4, *(["h", "w"] if size == "s" else [16, 16])]
    graph = helper.make_graph(
        b.nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, made)],
        b.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def planned(model, config):
    working = Model(model)
    facts = Pipeline(prepare_and_plan(config)).run(working)
    return working, facts[DecodeBoundary], facts[Plan]


class TestCosts:
    def test_of_a_float_model(self):
        working, head, _ = planned(small(), Config(target="openvino"))
        found = costs.layers(working, head)
        assert [(layer.products, layer.parameters) for layer in found] == [(55296, 216), (18432, 72), (8192, 32)]
        assert costs.operations(found) == 2 * (55296 + 18432 + 8192)
        assert costs.bit_operations(found) == 81920 * 32 * 32
        assert costs.packed_size(1000, found) == 1000

    def test_of_a_quantized_model(self):
        config = Config(target="openvino", weight_bits=6, act_bits=4, bits=("op:Conv=6/4",))
        found = costs.layers(*planned(small(), config))
        assert [(layer.weight_bits, layer.act_bits) for layer in found] == [(6, 4), (32, 32), (6, 4)]
        assert costs.operations(found) == 20736 + 36864 + 3072
        assert costs.bit_operations(found) == 55296 * 24 + 18432 * 1024 + 8192 * 24
        assert costs.packed_size(1000, found) == 1000 - (216 + 32) / 4

    def test_of_a_quantized_model_whose_scales_migrate(self):
        model = uneven()
        config = Config(target="openvino", migrate=True)
        working, head, before = planned(model, config)
        after = quantize(model, [feed(model)], config).facts
        assert after[Migration].scales
        assert costs.layers(working, head, after[Plan]) == costs.layers(working, head, before)

    def test_a_transposed_conv_uses_its_weights_at_each_place_of_its_input(self):
        b = make.Builder()
        x = b.conv("images", 3, 8, 3, 2)
        y = b.node("ConvTranspose", x, b.constant(np.ones((8, 5, 2, 2))), strides=[2, 2], kernel_shape=[2, 2])
        graph = helper.make_graph(
            b.nodes,
            "up",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 5, 32, 32])],
            b.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        found = costs.layers(*planned(model, Config(target="openvino")))
        assert [layer.products for layer in found] == [55296, 16 * 16 * 8 * 5 * 4]
        assert found[1].weight_bits == 32

    def test_of_an_unknown_size(self):
        working, head, plan = planned(small("s"), Config(target="openvino"))
        with pytest.raises(ModelError, match="export the model with a fixed size"):
            costs.layers(working, head, plan)
