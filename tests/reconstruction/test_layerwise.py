import errno
from functools import partial

import numpy as np
import onnx
import pytest
from graphs import BACKBONES, DETECTORS, Net, conditional, csp, feed, prepared, quantized, run, saturating, v8
from onnx import numpy_helper

from onnxq.errors import ConfigError
from onnxq.reconstruction import sample_arrays as module
from onnxq.reconstruction.layerwise import LayerwiseRunner
from onnxq.targets import OPENVINO, ORT

ALL = {**BACKBONES, **DETECTORS}


def layers(model):
    """The outputs of the Convs, in order."""
    return [node.output[0] for node in model.graph.node if node.op_type == "Conv"]


def exposed(model, names):
    """The model with these tensors as its outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return shown


def started(model, wanted, count=3, **options):
    feeds = [feed(model, seed) for seed in range(count)]
    runner = LayerwiseRunner(model, wanted, **options)
    runner.start([partial(dict, values) for values in feeds])
    return runner, feeds


def rounded():
    """A quantized model, a runner of it, the feeds, and the inputs of its layers."""
    model, _ = quantized(csp(), OPENVINO)
    wanted = [n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and "weight" not in n.name]
    return model, *started(model, wanted), wanted


def assert_close(found, expected):
    scale = np.abs(expected).max() + 1e-9
    np.testing.assert_allclose(found / scale, expected / scale, atol=4e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_each_tensor_is_what_the_whole_graph_gives(name):
    model = prepared(ALL[name]()).to_proto()
    wanted = layers(model)
    runner, feeds = started(model, wanted)
    expected = [run(exposed(model, wanted), values) for values in feeds]
    for tensor in wanted:
        seen = {}
        runner.compute(tensor, seen.__setitem__)
        assert sorted(seen) == [0, 1, 2]
        for sample, values in seen.items():
            assert_close(values, expected[sample][tensor])


def test_a_computed_tensor_can_be_read_until_the_next_is():
    model = prepared(csp()).to_proto()
    first, second, *_ = layers(model)
    runner, feeds = started(model, [first, second])
    runner.compute(first)
    assert runner.read(first, 1).dtype == np.float32
    assert_close(runner.read(first, 1), run(exposed(model, [first]), feeds[1])[first])
    runner.compute(second)
    with pytest.raises(KeyError):
        runner.read(first, 1)


@pytest.mark.parametrize("target", [OPENVINO, ORT], ids=lambda t: t.name)
def test_no_sum_saturates_on_any_cpu(target):
    model, _ = quantized(saturating(), target, limited=False)
    given = {n.input[0] for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Transpose")}
    wanted = [n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output[0] in given]
    runner, feeds = started(model, [*wanted, "output"])
    for tensor in wanted:
        runner.compute(tensor)
        np.testing.assert_allclose(runner.read(tensor, 2), run(exposed(model, [tensor]), feeds[2])[tensor], rtol=1e-3)
    seen = {}
    runner.compute("output", seen.__setitem__)
    expected = run(model, feeds[0])["output"]
    assert len(wanted) > 1
    assert expected.max() > 24
    for values in seen.values():
        np.testing.assert_allclose(values, expected, rtol=1e-3)


def test_integers_are_cached_instead_of_what_is_recomputed_from_them():
    model, runner, feeds, wanted = rounded()
    for tensor in wanted:
        runner.compute(tensor)
        expected = run(exposed(model, [tensor]), feeds[0])[tensor]
        np.testing.assert_allclose(runner.read(tensor, 0), expected, atol=0.1, rtol=0.02)
    # Only the last one is cached, in a byte per value.
    assert runner.cached_bytes() == (3 * expected.size, 0)


def test_nothing_is_cached_after_its_last_use():
    model = prepared(csp()).to_proto()
    wanted = layers(model)
    runner, _ = started(model, wanted)
    assert runner.cached_bytes() == (0, 0)
    for tensor in wanted:
        runner.compute(tensor, lambda sample, values: None)
        assert (runner.cached_bytes() > (0, 0)) == (tensor != wanted[-1])
    assert runner.cached_bytes() == (0, 0)


def test_an_input_of_the_model_is_loaded_when_it_is_read():
    model = prepared(csp()).to_proto()
    runner, feeds = started(model, ["images"])
    runner.compute("images")
    assert np.array_equal(runner.read("images", 1), feeds[1]["images"])
    assert runner.cached_bytes() == (0, 0)


def test_values_can_be_taken_before_they_are_decoded():
    _, runner, _, wanted = rounded()
    for tensor in wanted:
        runner.compute(tensor)
        stored = runner.stored(tensor, 2)
        assert stored.dtype.kind in "iu"
        assert np.array_equal(runner.decoded(tensor, stored[:, :1]), runner.read(tensor, 2)[:, :1])
        assert runner.decoded(tensor, np.array([runner.zero(tensor)])) == [0]


def test_other_constants_count_for_what_has_not_run_yet():
    model = prepared(csp()).to_proto()
    wanted = layers(model)
    runner, feeds = started(model, wanted)
    runner.compute(wanted[1], lambda sample, values: None)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    node = next(n for n in changed.graph.node if n.output[0] == wanted[2])
    weight = next(w for w in changed.graph.initializer if w.name == node.input[1])
    values = 2 * numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    runner.set_constant(node.name, 1, values)
    expected = run(exposed(changed, wanted), feeds[0])
    for tensor in wanted[2:]:
        seen = {}
        runner.compute(tensor, seen.__setitem__)
        assert_close(seen[0], expected[tensor])


def test_a_node_can_get_an_input_that_it_lacks():
    net = Net()
    y = net.conv("images", 4, bias=False, name="plain")
    model = net.model(net.conv(y, 2, name="last"))
    runner, feeds = started(model, [y, "last_out"], 1)
    runner.set_constant("plain", 2, np.full(4, 5, np.float32))
    runner.compute(y)
    assert_close(runner.read(y, 0), run(exposed(model, [y]), feeds[0])[y] + 5)


def test_constants_of_a_node_that_has_run_cannot_be_replaced():
    model = prepared(csp()).to_proto()
    wanted = layers(model)
    runner, _ = started(model, wanted)
    name = {node.output[0]: node.name for node in model.graph.node}[wanted[1]]
    assert not runner.has_run(name)
    runner.compute(wanted[1])
    assert runner.has_run(name)
    with pytest.raises(ValueError, match=f"{name} has run"):
        runner.set_constant(name, 1, np.zeros(1, np.float32))


def test_what_a_subgraph_reads_is_there():
    model = prepared(conditional()).to_proto()
    wanted = layers(model)
    runner, feeds = started(model, wanted)
    for tensor in wanted:
        seen = {}
        runner.compute(tensor, seen.__setitem__)
        assert_close(seen[2], run(exposed(model, [tensor]), feeds[2])[tensor])


def test_what_is_made_on_the_way_to_another_tensor_is_kept_until_it_is_demanded():
    net = Net()
    early = net.block("images", 4)
    late = net.conv(net.block(early, 4), 2, name="last")
    model = net.model(net.conv(early, 2), late)
    late = "output1"
    runner, feeds = started(model, [late, early, early])
    runner.compute(late)
    for _ in range(2):
        runner.compute(early)
        assert_close(runner.read(early, 1), run(exposed(model, [early]), feeds[1])[early])
    seen = {}
    runner, _ = started(model, [late, early])
    runner.compute(late)
    runner.compute(early, seen.__setitem__)
    assert_close(seen[0], run(exposed(model, [early]), feeds[0])[early])


def test_what_is_too_much_for_memory_goes_to_a_file():
    model = prepared(csp()).to_proto()
    wanted = layers(model)
    found = []
    for options in ({}, {"memory_limit": 1000}):
        runner, _ = started(model, wanted, **options)
        runner.compute(wanted[3])
        found.append(runner.read(wanted[3], 2))
        in_memory, in_files = runner.cached_bytes()
        assert (in_files > 0) == bool(options)
        assert in_memory <= options.get("memory_limit", in_memory)
    assert np.array_equal(*found)


def test_the_limit_holds_for_all_tensors_together():
    limit = 20_000
    model = prepared(v8()).to_proto()
    runner, _ = started(model, layers(model), memory_limit=limit)
    runner.compute(layers(model)[-1])
    in_memory, in_files = runner.cached_bytes()
    assert in_memory + in_files > limit
    assert 0 < in_memory <= limit


def test_a_disk_without_room_is_told_before_it_is_written_to(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full, raising=False)
    model = prepared(csp()).to_proto()
    with pytest.raises(ConfigError, match=r"cannot take 0 MB that .* \(No space left on device\); point TMPDIR to"):
        started(model, layers(model), memory_limit=1000)[0].compute(layers(model)[3])
