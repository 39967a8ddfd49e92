from pathlib import Path

import pytest

from onnxq.config import Config
from onnxq.console.arguments import (
    annotations,
    check_options,
    choose_input,
    make_parser,
    output_path,
    read_config,
    without_effect,
)
from onnxq.errors import ConfigError


def config(*options):
    return read_config(make_parser().parse_args(["model.onnx", *options]))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            ["--target", "tensorrt", "--rest", "fp16"],
            ["--target", "tensorrt", "--float-type", "fp16"],
            Config(target="tensorrt", float_type="fp16"),
        ),
        (["--no-equalise"], ["--no-equalize"], Config(equalize=False)),
        (["--no-equalize", "--equalise"], ["--no-equalize", "--equalize"], Config()),
    ],
)
def test_old_option_words_give_the_same_config(old, new, expected):
    assert config(*old) == config(*new) == expected


def test_the_old_word_of_cut_decode_names_the_same_file():
    old, new = (make_parser().parse_args(["model.onnx", word, "cut.onnx"]) for word in ("--cut-head", "--cut-decode"))
    assert old == new
    assert old.cut_decode == Path("cut.onnx")


def test_old_words_have_the_choices_of_the_new_ones(capsys):
    with pytest.raises(SystemExit):
        config("--rest", "fp8")
    assert "--float-type: invalid choice: 'fp8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("short", "whole"),
    [(["--no-eq"], ["--no-equalize"]), (["--cut", "cut.onnx"], ["--cut-decode", "cut.onnx"])],
)
def test_old_words_make_no_abbreviation_ambiguous(short, whole):
    parser = make_parser()
    assert parser.parse_args(["model.onnx", *short]) == parser.parse_args(["model.onnx", *whole])


def test_old_words_take_values_behind_an_equals_sign():
    assert make_parser().parse_args(["model.onnx", "--cut-head=a=b.onnx"]).cut_decode == Path("a=b.onnx")


def test_old_words_are_not_shown():
    text = make_parser().format_help()
    assert not [word for word in ("--rest", "--cut-head", "equalise") if word in text]


def test_without_old_words_the_defaults_hold():
    args = make_parser().parse_args(["model.onnx"])
    assert (args.float_type, args.cut_decode, args.equalize) == ("fp32", None, True)


def test_the_output_is_named_after_the_widths():
    def name(*options):
        args = make_parser().parse_args(["folder/model.onnx", *options])
        choose_input(args, read_config(args))
        return str(output_path(args, read_config(args)))

    assert name() == "folder/model.int8.onnx"
    assert name("--weight-bits", "4") == "folder/model.w4a8.onnx"
    assert name("-o", "other.onnx", "--weight-bits", "4") == "other.onnx"


def test_a_width_that_the_target_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"^act_bits: 4 bits: TensorRT has no Clip of int8"):
        config("--target", "tensorrt", "--act-bits", "4")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--calib", "d/data.yaml"], "d/data.yaml"),
        (["--calib", "d/data.yaml", "--annotations", "a.json"], "a.json"),
        (["--calib", "d/data.yaml", "--images", "x"], None),
        (["--calib", "d", "e.yaml"], None),
        (["--calib", "d"], None),
        ([], None),
    ],
)
def test_the_data_set_that_calibrates_has_the_annotations(words, expected):
    found = annotations(make_parser().parse_args(["model.onnx", *words]))
    assert (None if found is None else found.as_posix()) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--calibration a.npz --count 5", "--count: --calibration has its statistics already; leave --count out"),
        ("--demo --max-drop 1 --sensitivity", "--sensitivity: --max-drop and --min-sqnr measure it by themselves"),
        ("--demo --min-sqnr 30 --sensitivity", "--sensitivity: --max-drop and --min-sqnr measure it by themselves"),
        ("--demo --min-sqnr 30 --annotations a.json", "--annotations: --min-sqnr compares outputs and reads no labels"),
        ("--max-detections 50", "--max-detections: for AP on labels, which --evaluate and --max-drop measure"),
        ("--demo --min-sqnr 30 --max-detections 50", "--max-detections: for AP on labels"),
        ("--demo --evaluate --judge agreement --max-detections 50", "--max-detections: for AP on labels"),
    ],
)
def test_options_without_effect_are_refused(words, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_options(make_parser().parse_args(["model.onnx", *words.split()]))


@pytest.mark.parametrize(
    "words",
    [
        "--demo --evaluate --max-detections 50",
        "--demo --max-drop 1 --max-detections 50",
        "--demo --max-detections 100",
        "--min-sqnr 30 --evaluate --annotations a.json --images d",
    ],
)
def test_options_with_an_effect_are_taken(words):
    check_options(make_parser().parse_args(["model.onnx", *words.split()]))


@pytest.mark.parametrize(
    ("words", "ignored"),
    [
        ("--dry-run", []),
        ("--prove --report a.html", []),
        ("--dry-run --target qnn -o a.onnx -v --image-size 64 --exclude a", []),
        ("--dry-run --prove --report a.html --calib x --count 5 --evaluate --max-drop 0",
         ["--calib", "--count", "--max-drop", "--evaluate", "--prove", "--report"]),
        ("--dry-run --calibration a --save-calibration b --save-each c --cut-decode d.onnx --sensitivity --min-sqnr 0",
         ["--calibration", "--sensitivity", "--min-sqnr", "--save-calibration", "--save-each", "--cut-decode"]),
    ],
)  # fmt: skip
def test_what_a_dry_run_leaves_out(words, ignored):
    assert without_effect(make_parser().parse_args(["model.onnx", *words.split()])) == ignored


@pytest.mark.parametrize("option", [["--evaluate"], ["--max-drop", "1"]])
def test_a_data_set_is_ground_truth_alone(option):
    check_options(make_parser().parse_args(["model.onnx", "--calib", "data.yaml", *option]))
    check_options(make_parser().parse_args(["model.onnx", "--calib", "d", *option, "--annotations", "data.yml"]))
    with pytest.raises(ConfigError, match=r"measures AP: it needs --annotations JSON and --images DIR, --annotations"):
        check_options(make_parser().parse_args(["model.onnx", "--calib", "d", *option]))
