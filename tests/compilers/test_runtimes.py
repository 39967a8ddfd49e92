import sys

import numpy as np
import pytest
from graphs import quantized, v8
from installed import needs_openvino

from onnxq.compilers import COMPILERS, Job
from onnxq.compilers.layers import file_layers
from onnxq.runtime import RUNTIMES
from onnxq.targets import TARGETS


def build(name, model, folder, feeds=()):
    return COMPILERS[name].build(Job(model, file_layers(model), feeds, folder, "", sys.executable, 60.0))


@pytest.mark.parametrize("name", ["ort", pytest.param("openvino", marks=needs_openvino)])
def test_every_wanted_layer_runs_on_integers_and_the_others_do_not(name, tmp_path):
    model, _ = quantized(v8(), TARGETS[name])
    built = build(name, model, tmp_path)
    wanted = {layer.name: layer.is_wanted for layer in file_layers(model)}
    assert {layer: ran.on_integers for layer, ran in built.layers.items()} == wanted
    assert {ran.types for ran in built.layers.values() if ran.on_integers} == {"uint8 x int8"}
    assert built.version == RUNTIMES[name].version()


def test_outputs_are_those_of_the_runtime(tmp_path):
    model, _ = quantized(v8(), TARGETS["ort"])
    [value] = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    feed = {value.name: np.random.default_rng(0).random(shape, np.float32)}
    [found] = build("ort", model, tmp_path, [feed]).outputs
    for name, array in RUNTIMES["ort"](model).run(feed).items():
        assert np.array_equal(found[name], array)
