import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Net, assert_same_numbers, feed, initializers, rewrite, run, silu_chain, v8
from onnx import external_data_helper, helper, inliner, numpy_helper, version_converter
from texts import WEIGHT, weighted

from onnxq import Config, quantize
from onnxq.errors import ConfigError, ModelError
from onnxq.facts import Plan, Verification
from onnxq.ir import storage
from onnxq.ir.repair import repair
from onnxq.ir.storage import load_proto
from onnxq.passes.normalize import Normalize
from onnxq.runtime import RUNTIMES
from onnxq.runtime.session import open_session


@pytest.fixture
def small_messages(monkeypatch):
    """Models of over 10 kB are too large for one message."""
    monkeypatch.setattr(storage, "LARGEST", 10_000)


def wide(**options):
    """Return a model with two weights of over a thousand elements, which fill no page."""
    net = Net(**options)
    x = net.block(net.block("images", 33), 33, kernel=3, stride=2)
    return net.model(net.conv(net.block(x, 47, kernel=1), 4, name="last"))


def test_the_size_is_that_of_the_message():
    for model in (wide(), v8()):
        assert storage.size(model) == pytest.approx(model.ByteSize(), abs=64)


def test_one_message_is_one_file(tmp_path):
    path = tmp_path / "net.onnx"
    storage.save(wide(), path)
    assert path.read_bytes() == wide().SerializeToString()
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert storage.size_on_disk(path) == path.stat().st_size


def test_a_larger_one_has_its_weights_beside_it(tmp_path, small_messages):
    path = tmp_path / "net.onnx"
    before = wide()
    storage.save(before, path)
    assert before == wide()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert path.stat().st_size < 10_000 < storage.size_on_disk(path)
    assert storage.size_on_disk(path) == sum(file.stat().st_size for file in tmp_path.iterdir())
    onnx.checker.check_model(str(path), full_check=True)
    after = load_proto(path)
    assert_same_numbers(before, after)
    outside = onnx.load(path, load_external_data=False).graph.initializer
    offsets = [int(e.value) for t in outside for e in t.external_data if e.key == "offset"]
    assert len(offsets) >= 2
    assert all(offset % 4096 == 0 for offset in offsets)


def test_a_model_is_never_there_without_its_weights(tmp_path, small_messages, monkeypatch):
    replace, replaced = os.replace, []

    def spy(source, target):
        replaced.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    storage.save(wide(), tmp_path / "net.onnx")
    assert replaced == ["net.onnx.data", "net.onnx"]


@pytest.mark.parametrize("values", ["raw_data", "float_data"])
def test_weights_are_written_however_they_are_held(tmp_path, small_messages, values):
    model = wide()
    weight = max(model.graph.initializer, key=lambda w: np.prod(w.dims))
    array = numpy_helper.to_array(weight)
    if values == "float_data":
        weight.CopyFrom(helper.make_tensor(weight.name, 1, weight.dims, array.ravel().tolist()))
    storage.save(model, tmp_path / "net.onnx")
    assert np.array_equal(initializers(load_proto(tmp_path / "net.onnx"))[weight.name], array)


@pytest.mark.parametrize("failing", ["onnxq.ir.storage._raw", "onnxq.ir.storage.onnx.save"])
def test_nothing_is_half_written(tmp_path, small_messages, monkeypatch, failing):
    path = tmp_path / "net.onnx"
    storage.save(wide(), path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(ConfigError, match="No space left"):
        storage.save(wide(seed=1), path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_digest_is_of_all_that_a_model_is():
    digests = {storage.digest(model) for model in (wide(), wide(), wide(seed=1), silu_chain(), silu_chain(layers=2))}
    assert len(digests) == 4
    model = wide()
    model.graph.doc_string = "another"
    assert storage.digest(model) not in digests


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
def test_runtimes_load_larger_models(small_messages, runtime):
    if not runtime.is_installed():
        pytest.skip(f"{runtime.title} is not installed")
    model = wide()
    found = runtime(model).run(feed(model))["output"]
    assert np.allclose(found, run(model)["output"], atol=1e-4)


def test_the_optimized_graph_of_a_larger_model_can_be_written(small_messages, tmp_path):
    model = wide()
    open_session(model, optimized_path=tmp_path / "optimized.onnx")
    assert (tmp_path / "optimized.onnx.data").is_file()
    assert_same_numbers(model, load_proto(tmp_path / "optimized.onnx"))


def test_what_is_converted_or_inlined_is_handed_on_without_its_weights(monkeypatch):
    handed = []
    for module, name in ((version_converter, "convert_version"), (inliner, "inline_local_functions")):
        whole = getattr(module, name)

        def spy(proto, *args, whole=whole):
            handed.append(proto.ByteSize())
            return whole(proto, *args)

        monkeypatch.setattr(module, name, spy)
    model = wide(opset=11)
    body = [helper.make_node("Neg", ["x"], ["y"])]
    model.functions.append(helper.make_function("local", "Minus", ["x"], ["y"], body, [helper.make_opsetid("", 11)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    after, _ = rewrite(Normalize(), repair(model))
    assert len(handed) == 2
    assert max(handed) < 10_000 < model.ByteSize()
    assert_same_numbers(wide(opset=11), after)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_larger_models_are_quantized_as_others(monkeypatch, tmp_path, target, opset):
    model = wide(opset=opset)
    expected = quantize(model, [feed(model)], Config(target=target))
    monkeypatch.setattr(storage, "LARGEST", 4_000)
    storage.save(model, tmp_path / "float.onnx")
    found = quantize(tmp_path / "float.onnx", [feed(model)], Config(target=target))
    assert found.facts[Verification] == expected.facts[Verification]
    assert found.facts[Verification].fused == len(found.facts[Plan].layers) > 0
    found.save(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx.data").is_file()
    saved = load_proto(Path(tmp_path / "small.onnx"))
    assert_same_numbers(expected.model, saved)


def test_a_model_that_lost_its_weights_is_refused_with_their_name(tmp_path, small_messages):
    storage.save(wide(), tmp_path / "net.onnx")
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"net\.onnx: its external data cannot be read .*copy the data files"):
        load_proto(tmp_path / "net.onnx")


class TestLoad:
    def test_what_was_saved_is_loaded(self, tmp_path):
        onnx.save(weighted(), tmp_path / "a.onnx")
        assert load_proto(tmp_path / "a.onnx") == weighted()

    def test_external_data_is_read(self, tmp_path):
        model = weighted()
        onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
        loaded = load_proto(tmp_path / "a.onnx")
        weight = loaded.graph.initializer[0]
        assert not external_data_helper.uses_external_data(weight)
        np.testing.assert_array_equal(numpy_helper.to_array(weight), WEIGHT)

    def test_missing_external_data(self, tmp_path):
        onnx.save(weighted(), tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
        (tmp_path / "a.bin").unlink()
        with pytest.raises(ModelError, match=r"a\.onnx: its external data cannot be read .*copy the data files beside"):
            load_proto(tmp_path / "a.onnx")

    def test_missing(self, tmp_path):
        with pytest.raises(ModelError, match=r"none\.onnx: no such file; check the path$"):
            load_proto(tmp_path / "none.onnx")

    def test_a_folder(self, tmp_path):
        with pytest.raises(ModelError, match=r": is a folder, not an ONNX file; name the file$"):
            load_proto(tmp_path)

    def test_empty(self, tmp_path):
        (tmp_path / "a.onnx").write_bytes(b"")
        with pytest.raises(ModelError, match=r"a\.onnx: not an ONNX file, or one without nodes; export it again"):
            load_proto(tmp_path / "a.onnx")

    @pytest.mark.parametrize("content", [b"hello, world", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04", b"<html>"])
    @pytest.mark.parametrize("name", ["a.onnx", "a.pt", "a"])
    def test_not_an_onnx_file(self, tmp_path, content, name):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{name}: not an ONNX file"):
            load_proto(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.json", "a.textproto", "a.onnxtxt"])
    def test_the_extension_does_not_stand_for_another_format(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"hello, world")
        with pytest.raises(ModelError, match=f"{name}: not an ONNX file"):
            load_proto(tmp_path / name)
        onnx.save(weighted(), tmp_path / name, format="protobuf")
        assert load_proto(tmp_path / name) == weighted()

    def test_a_name_too_long(self, tmp_path):
        with pytest.raises(ModelError, match=r"a: cannot be read \(File name too long\); check the path$"):
            load_proto(tmp_path / ("a" * 300))

    def test_cut_short_anywhere_in_the_graph(self, tmp_path):
        content = weighted().SerializeToString()
        graph = weighted().graph.SerializeToString()
        end = content.index(graph) + len(graph)
        path = tmp_path / "a.onnx"
        for length in range(end):
            path.write_bytes(content[:length])
            with pytest.raises(ModelError, match=r"a\.onnx: not an ONNX file, or "):
                load_proto(path)

    def test_a_path_as_text_will_do(self, tmp_path):
        onnx.save(weighted(), tmp_path / "a.onnx")
        assert load_proto(str(tmp_path / "a.onnx")) == weighted()
