import numpy as np
import onnx
import pytest
from graphs import (
    NARROW_TENSORRT,
    csp,
    feed,
    initializers,
    nodes,
    ops,
    pan,
    quantized,
    relu_net,
    run,
    shared_head,
    sqnr,
    v8,
)

from onnxq.facts import Plan
from onnxq.ir import ProtoIndex
from onnxq.ir.quantized_layers import made_float, window, with_narrow_weights, with_unshared_weights
from onnxq.targets import GENERIC, OPENVINO, ORT

TARGETS = {"ort": ORT, "openvino": OPENVINO, "tensorrt": NARROW_TENSORRT, "generic": GENERIC}


def part_of(model, layer, layers, depth=0):
    return window(ProtoIndex(model.graph), nodes(model)[layer], layers, depth)


class TestWindow:
    @pytest.mark.slow
    @pytest.mark.parametrize("depth", [0, 1])
    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("build", [csp, pan, v8, relu_net], ids=lambda build: build.__name__)
    def test_it_computes_what_the_whole_model_does(self, build, target, depth):
        model, facts = quantized(build(), TARGETS[target])
        layers = facts[Plan].layers
        assert layers
        for layer in layers:
            part = part_of(model, layer, layers, depth)
            inner = [name for name in (*part.inputs, *part.outputs) if name not in feed(model)]
            values = {**feed(model), **run(model, feed(model), inner)}
            alone = part.model(model, [values])
            onnx.checker.check_model(alone, full_check=True)
            [output] = part.outputs
            found = run(alone, {name: values[name] for name in part.inputs})[output]
            assert np.array_equal(found, values[output])

    def test_it_begins_and_ends_with_the_rounding_around_the_layer(self):
        model, facts = quantized(csp(), GENERIC)
        part = part_of(model, "conv3", facts[Plan].layers)
        assert [n.op_type for n in part.nodes if n.op_type not in ("QuantizeLinear", "DequantizeLinear")] == ["Conv"]
        read = nodes(model)["conv3"].input[0]
        assert part.inputs == (nodes(model)[f"{part.inputs[0]}_QuantizeLinear"].input[0],)
        assert part.outputs[0] not in (read, nodes(model)["conv3"].output[0])

    def test_it_ends_with_the_layer_if_its_output_stays_float(self):
        model, facts = quantized(csp(), OPENVINO)
        assert part_of(model, "conv3", facts[Plan].layers).outputs == tuple(nodes(model)["conv3"].output)

    def test_an_activation_that_is_fused_belongs_to_it(self):
        model, facts = quantized(relu_net(), GENERIC)
        part = part_of(model, facts[Plan].layers[0], facts[Plan].layers)
        assert "Relu" in [node.op_type for node in part.nodes]

    def test_earlier_layers_come_with_it(self):
        model, facts = quantized(csp(), OPENVINO)
        layers = facts[Plan].layers
        alone, more = (
            [node.name for node in part_of(model, layers[2], layers, depth).nodes if node.name in layers]
            for depth in (0, 1)
        )
        assert alone == [layers[2]]
        assert more == [layers[1], layers[2]]


class TestMadeFloat:
    @pytest.mark.slow
    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("build", [csp, pan, v8], ids=lambda build: build.__name__)
    def test_all_layers_in_float_leave_only_the_rounding_of_weights_and_other_operators(self, build, target):
        model = build()
        after, facts = quantized(model, TARGETS[target])
        layers = facts[Plan].layers
        changed = made_float(after, layers)
        onnx.checker.check_model(changed, full_check=True)
        expected = run(model)
        for name, found in run(changed).items():
            # The rounding of weights and of other operators is random, so that their sum can be a little less.
            assert sqnr(expected[name], found) > sqnr(expected[name], run(after)[name]) - 2
        made_by = {name: node.op_type for node in changed.graph.node for name in node.output}
        read = [made_by.get(name) for node in changed.graph.node if node.name in layers for name in node.input[:2]]
        assert "DequantizeLinear" not in read or target == "generic"

    def test_one_layer_is_changed_alone(self):
        after, _ = quantized(csp(), OPENVINO)
        before = after.SerializeToString()
        changed = made_float(after, ["conv3"])
        assert after.SerializeToString() == before
        weight = initializers(changed)[nodes(changed)["conv3"].input[1]]
        dequantized = run(after, feed(after), [nodes(after)["conv3"].input[1]])
        assert np.array_equal(weight, *dequantized.values())
        assert ops(changed).count("QuantizeLinear") == ops(after).count("QuantizeLinear") - 1
        assert nodes(changed)["conv4"].input == nodes(after)["conv4"].input

    def test_what_moves_values_between_rounding_and_layer_is_copied(self):
        after, facts = quantized(v8(), ORT)
        products = [node.name for node in after.graph.node if node.op_type == "Gemm"]
        assert set(products) <= set(facts[Plan].layers)
        changed = made_float(after, products)
        onnx.checker.check_model(changed, full_check=True)
        for node in changed.graph.node:
            if node.op_type == "Gemm":
                assert node.input[1] in initializers(changed)
        exact = run(after)
        for name, found in run(changed).items():
            assert 20 < sqnr(exact[name], found) < 100

    def test_names_of_no_layer_change_nothing(self):
        after, _ = quantized(csp(), OPENVINO)
        found, expected = run(made_float(after, ["none"])), run(after)
        assert np.array_equal(found["output"], expected["output"])


class TestNarrowWeights:
    def test_integers_are_halved_and_scales_doubled(self):
        after, facts = quantized(csp(), OPENVINO)
        narrow = with_narrow_weights(after)
        for layer in facts[Plan].layers:
            wide, halved = (
                [initializers(m)[name] for name in nodes(m)[f"{layer}_weight_DequantizeLinear"].input[:2]]
                for m in (after, narrow)
            )
            assert np.abs(wide[0].astype(int)).max() == 127
            assert np.array_equal(halved[0], np.rint(wide[0] / 2).astype(np.int8))
            assert halved[0].dtype == np.int8
            assert np.array_equal(halved[1], 2 * wide[1])
        assert sqnr(run(csp())["output"], run(narrow)["output"]) > 20

    def test_activations_and_biases_stay(self):
        after, _ = quantized(csp(), GENERIC)
        narrow = with_narrow_weights(after)
        before, changed = nodes(after), nodes(narrow)
        differing = [name for name in before if before[name].input != changed[name].input]
        assert differing
        assert all(name.endswith("_weight_DequantizeLinear") for name in differing)


class TestUnsharedWeights:
    @pytest.mark.parametrize("target", TARGETS)
    def test_each_weight_has_one_reader_and_the_numbers_stay(self, target):
        model = quantized(shared_head(), TARGETS[target])[0]
        before = model.SerializeToString()
        changed = with_unshared_weights(model)
        assert model.SerializeToString() == before
        readers = [
            reader.name
            for dequantize in nodes(changed).values()
            if dequantize.op_type == "DequantizeLinear" and dequantize.input[0] in initializers(changed)
            for reader in ProtoIndex(changed.graph).consumers[dequantize.output[0]]
        ]
        weights = [n.input[0] for n in nodes(changed).values() if n.op_type == "DequantizeLinear"]
        assert len(weights) == len(set(weights))
        assert len(readers) > len(dequantized_constants(model)) > 0
        onnx.checker.check_model(changed, full_check=True)
        expected, found = (run(each, feed(model)) for each in (model, changed))
        assert all(np.array_equal(expected[name], found[name]) for name in expected)

    def test_a_model_without_shared_weights_is_itself(self):
        model = quantized(csp(), ORT)[0]
        assert with_unshared_weights(model) is model


def dequantized_constants(model):
    """Names of the constants that are dequantized."""
    stored = initializers(model)
    return {n.input[0] for n in nodes(model).values() if n.op_type == "DequantizeLinear" and n.input[0] in stored}
