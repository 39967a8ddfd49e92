"""The script that makes docs/matrix.md, on small graphs."""

import onnx
import pytest
from graphs import depthwise_net, quantized, v8, with_metadata

from docs.tools import matrix
from docs.tools.matrix import Settings
from onnxq.targets import TARGETS

NO_SPEED = Settings(None, 2, 0, tuple(TARGETS))


@pytest.fixture
def saved(tmp_path):
    def save(model: onnx.ModelProto, name: str = "net") -> str:
        model = with_metadata(model)
        model.producer_name, model.producer_version = "pytorch", "2.5"
        onnx.save(model, tmp_path / f"{name}.onnx")
        return tmp_path / f"{name}.onnx"

    return save


@pytest.mark.slow
def test_a_detector(saved):
    row = matrix.measure(saved(v8()), NO_SPEED)
    assert (row.name, row.made_by, row.family) == ("net", "pytorch 2.5, opset 13", "v8")
    assert row.convs == 17  # five of the pyramid, two in front of each of six last ones
    assert row.decode == sum(node.name.startswith("decode_") for node in v8().graph.node)
    assert row.cells.keys() == TARGETS.keys()
    assert row.cells["generic"].convs == 17
    for target, cell in row.cells.items():
        assert cell.convs + cell.floats.total() == row.convs
        assert bool(cell.decode) == TARGETS[target].quantizes_decode
        assert (cell.unfused, cell.refused) == ((), "")
        assert cell.sqnr > 10
        assert cell.speed is None


@pytest.mark.slow
def test_reasons_are_counted(saved):
    cell = matrix.measure(saved(depthwise_net()), NO_SPEED).cells["openvino"]
    assert cell.floats == {"depthwise Conv": 2}


def test_speed_is_measured_where_the_target_runs(saved):
    cells = matrix.measure(saved(depthwise_net()), Settings(None, 2, 2, ("generic", "tensorrt"))).cells
    assert cells["generic"].speed > 0
    assert cells["tensorrt"].speed is None


def test_a_refusal_has_its_reason(saved):
    rows = [matrix.measure(saved(quantized(v8())[0]), NO_SPEED)]
    assert all("already quantized" in cell.refused for cell in rows[0].cells.values())
    text = matrix.markdown(rows, NO_SPEED)
    refused = " | ".join(["refused"] * len(TARGETS))
    assert f"| net | pytorch 2.5, opset 13 |  | 0 | 0 | {refused} |" in text
    assert "- net, every target: the model is already quantized: node" in text


def test_what_is_not_as_it_should_be_is_told():
    cells = {
        "ort": matrix.Cell(convs=3, unfused=("left", "right")),
        "generic": matrix.Cell(decode=2),
        "qnn": matrix.Cell(decode=2),
    }
    row = matrix.Row("net", "pytorch, opset 13", "v8", 3, 5, cells)
    text = matrix.markdown([row], Settings(None, 2, 0, tuple(cells)))
    assert "- net, ort: these layers run in float: left, right" in text
    assert "- net, generic: 2 nodes of the decode are on integers" in text
    assert "net, qnn" not in text


@pytest.mark.slow
def test_the_command_writes_the_document(saved, tmp_path, capsys):
    document = tmp_path / "matrix.md"
    paths = [str(saved(depthwise_net(), name)) for name in ("one", "two")]
    options = ["--rounds", "0", "--targets", "generic", "openvino"]
    assert matrix.main([*paths, *options, "--document", str(document)]) == 0
    text = document.read_text()
    assert text.index("| one | pytorch") < text.index("| two | pytorch")
    assert "| openvino | depthwise Conv | 4 |" in text
    assert "2/2" in capsys.readouterr().err
    assert matrix.main([*paths, *options]) == 0
    assert capsys.readouterr().out == text
    other = "## In the compilers\n\n| export | `ort` in onnxruntime |\n"
    document.write_text(f"an older page\n\n{other}")
    assert matrix.main([*paths, *options, "--document", str(document)]) == 0
    assert document.read_text() == f"{text}{other}"
