"""The script that proves exports in compilers, on small graphs."""

import math

import onnx
import pytest
from graphs import attention, v8, with_metadata

from docs.tools import compilers
from docs.tools.compilers import HEADING, Result, Section, measure, result_of
from onnxq.compilers.proof import LayerProof, Proof
from onnxq.errors import ModelError

CELLS = {"ort": Result(3, 3, sqnr=41.04), "tensorrt": Result(2, 3, fallen={"too wide": ["left"]})}


def proof(layers, on_cpu=(), outputs=()):
    return Proof("QNN", "2.7", tuple(layers), tuple(on_cpu), (), len(outputs), dict(outputs), None, None)


def layer(name, wanted=True, on_integers=True, reason=""):
    return LayerProof(name, "Conv", wanted, "int8 x int8", on_integers, reason)


def test_what_fell_off_is_counted_with_its_reasons():
    layers = [
        layer("a"), layer("b", on_integers=False, reason="too wide"), layer("c", on_integers=False, reason="too wide"),
        layer("d", on_integers=False), layer("e", wanted=False, on_integers=False, reason="not quantized in the file"),
    ]  # fmt: skip
    found = result_of(proof(layers, ["/Concat (Concat)", "x (QuantizeLinear)"], {"boxes": 40.0, "scores": 20.06}))
    assert (found.kept, found.wanted, found.cell()) == (1, 4, "1 of 4, 20.1 dB")
    assert list(found.notes()) == [
        "not on integers: b, c (too wide)",
        "not on integers: d (int8 x int8, no reason known)",
        "on the CPU: 1 Concat",
    ]


def test_outputs_that_are_not_finite():
    assert result_of(proof([layer("a")], outputs={"boxes": -math.inf})).cell() == "1 of 1, not finite"


def test_a_section_is_read_as_it_is_written():
    section = Section({}, {})
    section.add("two", {**CELLS, "generic": Result(failed="it failed: badly")})
    section.add("one", {"ort": Result(1, 1, sqnr=10.0)})
    text = section.text()
    assert text.startswith(f"{HEADING}\n")
    assert text.index("| one | 1 of 1, 10.0 dB |  |") < text.index("| two | 3 of 3, 41.0 dB |  | 2 of 3 |  | fails |")
    assert "- two, `generic` in rknn-toolkit2: it failed: badly\n" in text
    assert Section.read(f"# Title\n\n| a | b |\n\n{text}").text() == text


def test_a_new_result_replaces_the_old_one():
    section = Section({}, {})
    section.add("one", CELLS)
    section.add("one", {"tensorrt": Result(3, 3)})
    text = section.text()
    assert "| one | 3 of 3, 41.0 dB |  | 3 of 3 |  |  |" in text
    assert "- one" not in text


@pytest.mark.slow
def test_the_command_adds_to_the_document(tmp_path, capsys):
    for name, build in (("plain", v8), ("attending", attention)):
        onnx.save(with_metadata(build()), tmp_path / f"{name}.onnx")
    document = tmp_path / "matrix.md"
    document.write_text("# Exports\n\n| export | ort |\n| --- | --- |\n| plain | 1 |\n")
    for name in ("plain", "attending"):
        options = ["--targets", "ort", "--document", str(document)]
        assert compilers.main([str(tmp_path / f"{name}.onnx"), *options]) == 0
    text = document.read_text()
    assert text.startswith("# Exports\n\n| export | ort |\n| --- | --- |\n| plain | 1 |\n\n## In the compilers\n")
    assert text.index("| attending | ") < text.index("| plain | ", text.index(HEADING))
    assert "1/1 plain: ort: 11 of 11, " in capsys.readouterr().err


def test_a_model_that_is_refused_has_its_reason(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    result = measure(tmp_path / "broken.onnx", ["ort"], {})["ort"]
    assert result.cell() == "fails"
    assert "broken.onnx" in result.failed
    assert str(tmp_path) in result.failed


def test_a_failure_is_told_with_its_last_words(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ModelError("it failed; its last words:", "  in a file", "  ValueError: too new")

    monkeypatch.setattr(compilers, "prove", fail)
    onnx.save(with_metadata(v8()), tmp_path / "net.onnx")
    result = measure(tmp_path / "net.onnx", ["ort"], {})["ort"]
    assert list(result.notes()) == ["it failed; its last words: ValueError: too new"]
