import errno

import numpy as np
import onnx
import pytest
from graphs import BACKBONES, DETECTORS, Net, conditional, csp, feed, prepared, quantized, run, saturating, v8
from onnx import numpy_helper

from onnxq.errors import ConfigError
from onnxq.reconstruction import layerwise as module
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


def started(model, wanted, count=3):
    feeds = [feed(model, seed) for seed in range(count)]
    walk = LayerwiseRunner(model, wanted)
    walk.start(feeds)
    return walk, feeds


def assert_close(found, expected):
    scale = np.abs(expected).max() + 1e-9
    np.testing.assert_allclose(found / scale, expected / scale, atol=4e-3)


@pytest.mark.parametrize("name", ALL)
def test_each_tensor_is_what_the_whole_graph_gives(name):
    model = prepared(ALL[name]()).to_proto()
    wanted = layers(model)
    walk, feeds = started(model, wanted)
    expected = [run(exposed(model, wanted), values) for values in feeds]
    for tensor in wanted:
        seen = {}
        walk.compute(tensor, seen.__setitem__)
        assert sorted(seen) == [0, 1, 2]
        for sample, values in seen.items():
            assert_close(values, expected[sample][tensor])


def test_a_computed_tensor_can_be_read_until_the_next_is():
    model = prepared(csp()).to_proto()
    first, second, *_ = layers(model)
    walk, feeds = started(model, [first, second])
    walk.compute(first)
    assert walk.read(first, 1).dtype == np.float32
    assert_close(walk.read(first, 1), run(exposed(model, [first]), feeds[1])[first])
    walk.compute(second)
    with pytest.raises(KeyError):
        walk.read(first, 1)


@pytest.mark.parametrize("target", [OPENVINO, ORT], ids=lambda t: t.name)
def test_no_sum_saturates_on_any_cpu(target):
    model, _ = quantized(saturating(), target)
    given = {n.input[0] for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Transpose")}
    wanted = [n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output[0] in given]
    walk, feeds = started(model, [*wanted, "output"])
    for tensor in wanted:
        walk.compute(tensor)
        np.testing.assert_allclose(walk.read(tensor, 2), run(exposed(model, [tensor]), feeds[2])[tensor], rtol=1e-3)
    seen = {}
    walk.compute("output", seen.__setitem__)
    expected = run(model, feeds[0])["output"]
    assert len(wanted) > 1
    assert expected.max() > 24
    for values in seen.values():
        np.testing.assert_allclose(values, expected, rtol=1e-3)


def test_integers_are_kept_instead_of_what_is_made_of_them():
    model, _ = quantized(csp(), OPENVINO)
    wanted = [n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and "weight" not in n.name]
    walk, feeds = started(model, wanted)
    for tensor in wanted:
        walk.compute(tensor)
        assert {arrays[0].dtype.name for arrays in walk._kept.values()} <= {"uint8", "float16"}
        np.testing.assert_allclose(
            walk.read(tensor, 0), run(exposed(model, [tensor]), feeds[0])[tensor], atol=0.1, rtol=0.02
        )


def test_nothing_is_kept_that_nobody_will_read():
    model = prepared(csp()).to_proto()
    wanted = layers(model)
    walk, _ = started(model, wanted)
    for tensor in wanted:
        walk.compute(tensor, lambda sample, values: None)
    assert walk._kept == {}


def test_other_constants_count_for_what_has_not_run_yet():
    model = prepared(csp()).to_proto()
    wanted = layers(model)
    walk, feeds = started(model, wanted)
    walk.compute(wanted[1], lambda sample, values: None)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    node = next(n for n in changed.graph.node if n.output[0] == wanted[2])
    weight = next(w for w in changed.graph.initializer if w.name == node.input[1])
    values = 2 * numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    walk.set_constant(node.name, 1, values)
    expected = run(exposed(changed, wanted), feeds[0])
    for tensor in wanted[2:]:
        seen = {}
        walk.compute(tensor, seen.__setitem__)
        assert_close(seen[0], expected[tensor])


def test_a_node_can_get_an_input_that_it_lacks():
    net = Net()
    y = net.conv("images", 4, bias=False, name="plain")
    model = net.model(net.conv(y, 2, name="last"))
    walk, feeds = started(model, [y, "last_out"], 1)
    walk.set_constant("plain", 2, np.full(4, 5, np.float32))
    walk.compute(y)
    assert_close(walk.read(y, 0), run(exposed(model, [y]), feeds[0])[y] + 5)


def test_what_a_subgraph_reads_is_there():
    model = prepared(conditional()).to_proto()
    wanted = layers(model)
    walk, feeds = started(model, wanted)
    for tensor in wanted:
        seen = {}
        walk.compute(tensor, seen.__setitem__)
        assert_close(seen[2], run(exposed(model, [tensor]), feeds[2])[tensor])


def test_what_is_made_on_the_way_to_another_tensor_is_kept_until_it_is_demanded():
    net = Net()
    early = net.block("images", 4)
    late = net.conv(net.block(early, 4), 2, name="last")
    model = net.model(net.conv(early, 2), late)
    late = "output1"
    walk, feeds = started(model, [late, early, early])
    walk.compute(late)
    for _ in range(2):
        walk.compute(early)
        assert_close(walk.read(early, 1), run(exposed(model, [early]), feeds[1])[early])
    seen = {}
    walk, _ = started(model, [late, early])
    walk.compute(late)
    walk.compute(early, seen.__setitem__)
    assert_close(seen[0], run(exposed(model, [early]), feeds[0])[early])


def test_what_is_too_much_for_memory_goes_to_a_file(monkeypatch):
    model = prepared(csp()).to_proto()
    wanted = layers(model)
    found = []
    for limit in (module._IN_MEMORY, 1000):
        monkeypatch.setattr(module, "_IN_MEMORY", limit)
        walk, _ = started(model, wanted)
        walk.compute(wanted[3])
        found.append(walk.read(wanted[3], 2))
        in_file = [isinstance(arrays[0], np.memmap) for arrays in walk._kept.values()]
        assert any(in_file) == (limit == 1000)
    assert np.array_equal(*found)


def test_what_one_piece_keeps_has_one_limit(monkeypatch):
    monkeypatch.setattr(module, "_IN_MEMORY", 31_000)
    model = prepared(v8()).to_proto()
    walk, _ = started(model, layers(model))
    before = sum(array.nbytes for arrays in walk._kept.values() for array in arrays)
    walk.compute(layers(model)[-1])
    kept = [array for arrays in walk._kept.values() for array in arrays]
    in_memory = [array for array in kept if not isinstance(array, np.memmap)]
    assert before + sum(array.nbytes for array in kept) > 31_000
    assert 0 < before + sum(array.nbytes for array in in_memory) <= 31_000


def test_a_disk_without_room_is_told_before_it_is_written_to(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(module, "_IN_MEMORY", 1000)
    model = prepared(csp()).to_proto()
    with pytest.raises(ConfigError, match=r"cannot take 0 MB that .* \(No space left on device\); point TMPDIR to"):
        started(model, layers(model))[0].compute(layers(model)[3])
