from argparse import Namespace
from pathlib import Path

import onnx
import pytest
from graphs import silu_chain
from onnx.external_data_helper import convert_model_to_external_data

from onnxq.config import Config
from onnxq.console import many
from onnxq.console.many import Row, run_each, separate
from onnxq.errors import ConfigError, DataError
from onnxq.runtime.pool import IN_PROCESS, InProcess

CONFIG = Config()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def arguments(*inputs, **others):
    names = dict.fromkeys(many._OF_ONE_MODEL)
    values = {"output": None, "quiet": False, "debug": False, **names, **others}
    return Namespace(inputs=list(map(Path, inputs)), **values)


def test_outputs_are_beside_the_models():
    made = separate(arguments("a.onnx", "b/a.onnx"), CONFIG)
    assert [one.input for one in made] == [Path("a.onnx"), Path("b/a.onnx")]
    assert [one.output for one in made] == [Path("a.int8.onnx"), Path("b/a.int8.onnx")]


def test_outputs_in_a_folder():
    Path("out").mkdir()
    made = separate(arguments("a.onnx", "b/c.onnx", output=Path("out")), CONFIG)
    assert [one.output for one in made] == [Path("out/a.int8.onnx"), Path("out/c.int8.onnx")]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (arguments("a.onnx", "b.onnx", report=Path("r.html")), "--report names a file of one model; leave it out"),
        (arguments("a.onnx", "b.onnx", save_calibration=Path("c")), "--save-calibration names a file of one model"),
        (arguments("a.onnx", "b.onnx", output=Path("c.onnx")), "-o c.onnx: is no folder, which it must be for several"),
        (arguments("a.onnx", "./a.onnx"), "a.onnx: is given twice; leave one out"),
        (arguments("a.onnx", "a.int8.onnx"), "a.int8.onnx: is a model to quantize, and would be written for a.onnx"),
        (
            arguments("b/a.onnx", "c/a.onnx", output=Path()),
            "a.int8.onnx: would be written for b/a.onnx and for c/a.onnx; rename one, or leave -o out",
        ),
    ],
)
def test_what_cannot_be_is_refused(args, message):
    with pytest.raises(ConfigError) as caught:
        separate(args, CONFIG)
    assert str(caught.value).startswith(message)


def test_weights_of_a_model_are_not_replaced_for_another():
    convert_model_to_external_data(model := silu_chain(), location="a.int8.onnx", size_threshold=0)
    onnx.save(model, "b.onnx")
    with pytest.raises(ConfigError, match=r"^a.int8.onnx: has weights of a model, and would be written for a.onnx"):
        separate(arguments("a.onnx", "b.onnx"), CONFIG)


ROW = Row(("3 of 4", "40.1", "2.00 -> 1.00", "1.50x", "2.0"))


def run(errors, pool=IN_PROCESS, row=ROW, **options):
    """Run three models, of which some raise; return the names of those that were run."""
    ran = []

    def one(args, _):
        ran.append(args.input.name)
        if args.input.name in errors:
            raise errors[args.input.name]
        return row

    try:
        run_each(separate(arguments("a.onnx", "b.onnx", "c.onnx", **options), CONFIG), one, pool)
    except ConfigError as error:
        return ran, str(error)
    return ran, ""


def test_a_table_of_all(capsys):
    assert run({}) == (["a.onnx", "b.onnx", "c.onnx"], "")
    out, err = capsys.readouterr()
    assert "b.onnx  3 of 4" in out
    assert "3 of 3 models quantized" in out
    assert err.splitlines() == ["a.onnx (1 of 3)", "b.onnx (2 of 3)", "c.onnx (3 of 3)"]


def test_what_fails_does_not_stop_the_others(capsys):
    ran, error = run({"a.onnx": DataError("act_bits: 3", "and more"), "b.onnx": ZeroDivisionError("oops")})
    assert ran == ["a.onnx", "b.onnx", "c.onnx"]
    assert error == "2 of 3 models failed: a.onnx, b.onnx"
    out, err = capsys.readouterr()
    assert "error: a.onnx: --act-bits: 3\nand more\n" in err
    assert "ZeroDivisionError: oops" in err
    assert "error: b.onnx: this is a bug of onnxq; please report it with the traceback above" in err
    assert [line.split()[:2] for line in out.splitlines() if line.startswith((" a.", " b."))] == [
        ["a.onnx", "failed"],
        ["b.onnx", "failed"],
    ]
    assert "1 of 3 models quantized" in out


def test_a_name_is_not_said_twice(capsys):
    run({"a.onnx": DataError("a.onnx: is empty")})
    assert "error: a.onnx: is empty\n" in capsys.readouterr().err


def test_with_debug_the_first_error_ends_all():
    with pytest.raises(ZeroDivisionError):
        run({"b.onnx": ZeroDivisionError()}, debug=True)


def test_quiet(capsys):
    run({"a.onnx": DataError("no")}, quiet=True)
    assert capsys.readouterr() == ("", "error: a.onnx: no\n")


class Lost(InProcess):
    is_lost = True


def test_a_pool_that_is_lost_is_not_tried_again():
    assert run({}, Lost()) == ([], "3 of 3 models failed: a.onnx, b.onnx, c.onnx")


@pytest.mark.parametrize(("precision", "titles"), [(("31.00", "-0.20"), "AP change"), (("+0.10",), "loss")])
def test_accuracy_has_columns(precision, titles, capsys):
    run({"b.onnx": DataError("no")}, row=ROW._replace(precision=precision))
    head, *rows = [
        " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if "onnx" in line or "MB" in line
    ]
    assert head == f"model Convs SQNR dB MB speed s {titles}"
    assert rows[0].endswith(" ".join(precision))
    assert rows[1] == "b.onnx failed" + " -" * (4 + len(precision))
