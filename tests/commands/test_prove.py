import json

import onnx
import pytest
from command_line import draw
from graphs import quantized, v8, with_metadata
from installed import needs_openvino

from onnxq.prove import main
from onnxq.targets import TARGETS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detector quantized for several targets, the float one, and a folder of two pictures."""
    folder = tmp_path_factory.mktemp("files")
    model = with_metadata(v8())
    for target in ("ort", "openvino", "tensorrt"):
        after, _ = quantized(model, TARGETS[target])
        onnx.helper.set_model_props(after, {"onnxq.target": target})
        onnx.save(after, folder / f"{target}.onnx")
    onnx.save(model, folder / "float.onnx")
    for number in range(2):
        draw(folder / "images" / f"{number}.png", number, (64, 48))
    return folder


@pytest.fixture
def prove(folder, capsys):
    """Run the command line, and give its exit code, stdout and stderr."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(each) for each in argv])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def test_a_file_in_the_runtime_of_its_target(files, prove, tmp_path):
    target = tmp_path / "proof.json"
    code, out, err = prove(files / "ort.onnx", "--images", files / "images", "--json", target, "--conf", "0.001")
    assert code == 0
    written = json.loads(target.read_text())
    wanted = [layer for layer in written["layers"] if layer["wanted"]]
    assert written["wanted"] == written["on_integers"] == len(wanted) > 0
    assert out.splitlines()[-1].startswith(f"onnxruntime {written['version']}: ")
    assert out.splitlines()[-1].endswith(" on integers")
    assert all(layer["name"] in out for layer in written["layers"])
    [(name, sqnr)] = written["outputs"].items()
    assert [name, f"{sqnr:.1f}"] in [line.split() for line in out.splitlines()]
    assert written["images"] == 2
    assert written["device"] is None
    assert "agreement with the exact computation, 2 images, scores above 0.001" in out
    assert written["agreement"]["objects"] > 0
    assert "error" not in err


def test_layers_that_fall_to_float_are_an_error(files, prove):
    code, out, err = prove(files / "tensorrt.onnx", "--with", "ort", "-q")
    assert code == 1
    assert "0 of " in out.splitlines()[-1]
    assert "error: onnxruntime does not run these layers on integers: " in err
    assert "; the file is for the target tensorrt: --with tensorrt-rtx" in " ".join(err.split())


@pytest.mark.slow
@needs_openvino
def test_in_openvino(files, prove):
    code, out, _ = prove(files / "openvino.onnx")
    assert code == 0
    assert "OpenVINO" in out


@pytest.mark.parametrize("given", ["tensorrt-rtx", "qnn", "rknn"])
def test_a_compiler_that_is_not_installed_is_a_line(files, prove, given, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    code, out, err = prove(files / "tensorrt.onnx", "--with", given, "--python", python)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "is not installed; " in err
    assert "pip install" in err


@pytest.mark.parametrize("options", [[], ["--with", "ort"]], ids=["target", "ort"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.onnx", "no such file"),
        ("text.onnx", "not an ONNX file, or cut short"),
        ("float.onnx", "so there is nothing to prove; quantize it"),
    ],
)
def test_what_is_no_quantized_file_is_told_as_such(files, prove, name, message, options):
    (files / "text.onnx").write_text("garbage")
    code, _, err = prove(files / name, *options)
    assert code == 1
    assert f"{name}: " in err
    assert message in err


@pytest.mark.parametrize(
    "option", [["--device", "57"], ["--python", "python3"], ["--timeout", "7"]], ids=lambda each: each[0]
)
def test_what_a_compiler_does_not_take_is_refused(files, prove, option):
    code, _, err = prove(files / "ort.onnx", *option)
    assert code == 1
    assert f"{' '.join(option)}: onnxruntime " in err
    assert "leave it out" in err


def test_a_file_that_names_no_target(files, prove):
    model = onnx.load(files / "ort.onnx")
    del model.metadata_props[:]
    onnx.save(model, files / "nameless.onnx")
    code, _, err = prove(files / "nameless.onnx")
    assert code == 1
    assert "names no target; say --with tensorrt-rtx, qnn, rknn, ort, openvino" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--with", "hailo"], "invalid choice: 'hailo'"),
        (["--timeout", "0"], "--timeout 0: expected more than 0"),
        (["--max-images", "0"], "--max-images: expected 1 or more"),
        (["--conf", "0.5"], "--conf: for objects on images; give --images DIR or --demo, or leave --conf out"),
        (["--iou", "0.5"], "--iou: for objects on images"),
        (["--runtime", "ort"], "unrecognized arguments"),
    ],
)
def test_wrong_usage(files, prove, argv, message):
    code, _, err = prove(files / "ort.onnx", *argv)
    assert code == 2
    assert message in err


def test_a_file_is_not_replaced_by_its_proof(files, prove):
    code, _, err = prove(files / "ort.onnx", "--json", files / "ort.onnx")
    assert code == 1
    assert "--json" in err
