import importlib

import numpy as np
import onnx
import pytest
from browser import needs_browser
from graphs import csp, feed, relu_net, silu_chain, v8
from PIL import Image, ImageColor

from onnxq import Config, quantize
from onnxq.errors import ModelError
from onnxq.evaluation.drawing import FOUND, LOST, NEW
from onnxq.hooks import save_each


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("netron", reason="Netron is not installed")
    return importlib.import_module("docs.tools.screenshots")


@pytest.mark.slow
@needs_browser
def test_netron_shows_what_is_said_of_a_node(script, tmp_path):
    model = csp()
    next(node for node in model.graph.node if node.op_type == "Conv").doc_string = "onnxq: float, for a reason"
    onnx.save(model, tmp_path / "net.onnx")
    with script.in_netron(tmp_path / "net.onnx", "Conv") as page:
        page.wait_for("document.getElementById('sidebar').textContent.includes('onnxq: float, for a reason')")
        assert page.picture().size == tuple(script.SCALE * side for side in script.WINDOW)


@pytest.mark.slow
@needs_browser
def test_netron_opens_what_each_pass_leaves(script, tmp_path):
    config = Config(target="ort", pack="int4", weight_bits=4, reconstruct=False)
    model = v8(opset=11, batch_norm=True)
    quantize(model, [feed(model)], config, hooks=[save_each(tmp_path)])
    snapshots = sorted(tmp_path.iterdir())
    assert len(snapshots) > 5
    with script.browser() as page:
        for path in snapshots:
            with script.shown(page, path):
                drawn = page.value("document.querySelectorAll('.node-item').length")
            assert drawn >= len(onnx.load(path).graph.node), path.name


@pytest.mark.slow
@needs_browser
def test_netron_refuses_what_is_no_model(script, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no model")
    refused = pytest.raises(ModelError, match=r"Netron does not open .*net\.onnx: ")
    with script.browser() as page, refused, script.shown(page, tmp_path / "net.onnx"):
        pass


def test_what_is_drawn_is_cut_out_with_a_margin(script):
    page = Image.new("RGB", (200, 100), "white")
    page.paste("black", (50, 40, 90, 60))
    assert script.cropped(page).size == (40 + 2 * script.MARGIN, 20 + 2 * script.MARGIN)
    page.paste("black", (5, 5, 200, 60))
    assert script.cropped(page).size == (200, 60 + script.MARGIN)


def test_a_stretch_of_the_graph(script):
    model = onnx.load(script.MODEL)
    cut = script.stretch(model, *script.conv_with_silu(model))
    onnx.checker.check_model(cut, full_check=True)
    assert [node.op_type for node in cut.graph.node] == ["Conv", "Sigmoid", "Mul"]


def test_no_conv_between_two_silus(script):
    with pytest.raises(ModelError, match="no Conv stands between two SiLUs"):
        script.conv_with_silu(relu_net())


@pytest.mark.slow
def test_the_bounds_of_uh_are_drawn(script, tmp_path):
    model = silu_chain()
    script.draw_bounds(quantize(model, [feed(model)], Config(target="openvino")).facts, tmp_path)
    for name in ("uh.svg", "uh-error.svg"):
        assert "UH, 8 bits" in (tmp_path / name).read_text()


@pytest.mark.slow
def test_few_bits_lose_what_the_words_beside_the_picture_say(script):
    halves = np.split(np.asarray(script.detections()).astype(int), 2, axis=1)

    def drawn(colour):
        return [int((np.abs(half - ImageColor.getrgb(colour)).max(axis=2) < 8).sum()) for half in halves]

    assert min(drawn(FOUND)) > 500
    for colour, shown in ((LOST, 0), (NEW, 1)):  # objects of the scene that have the colour are in both halves
        counts = drawn(colour)
        assert counts[shown] - counts[1 - shown] > 500
