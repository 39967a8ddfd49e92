import argparse
import dataclasses
import inspect
import re
from dataclasses import replace

import pytest

from onnxq import cli
from onnxq.config import Config
from onnxq.console import arguments
from onnxq.errors import ConfigError
from onnxq.numerics.range_methods import METHODS
from onnxq.numerics.scheme import UINT8
from onnxq.targets import TARGETS

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
NOT_CONFIG = {
    "inputs", "output", "calib", "demo", "calibration", "cut_decode", "save_calibration", "save_each", "report",
    "sensitivity", "speed", "evaluate", "max_drop", "min_sqnr", "annotations", "images", "judge", "max_detections",
    "prove", "on_calibration", "runtime", "dry_run", "verbose", "quiet", "max_memory", "debug", "version", "help",
    "workers",
}  # fmt: skip
"""Other arguments of the command line: files to read and write, accuracy, output on the console."""

MORE = {"fp16": {"target": "tensorrt"}, "output-error": {"weight_bits": 4}, "int4": {"weight_bits": 4}}
"""Options that a choice needs."""

CHOICES = [(name, choice) for name, field in FIELDS.items() for choice in field.metadata["choices"] or ()]


def actions():
    shown = [action for action in arguments.make_parser()._actions if action.help != argparse.SUPPRESS]
    return {action.dest: action for action in shown}


def parsed(*options):
    """The Config that a command line makes."""
    return arguments.read_config(arguments.make_parser().parse_args(["model.onnx", *options]))


class TestConfig:
    def test_defaults(self):
        config = Config()
        assert (config.target, config.method_used, config.weight_bits, config.act_bits) == ("ort", "uh", 8, 8)
        assert config.exclude == ()
        assert not config.symmetric

    @pytest.mark.parametrize(("name", "choice"), CHOICES)
    def test_every_choice_is_accepted(self, name, choice):
        more = MORE.get(choice, {})
        assert getattr(Config(**{**more, name: choice}), name) == choice

    def test_choices_are_what_there_is(self):
        def choices(name):
            return set(FIELDS[name].metadata["choices"])

        assert choices("target") == set(TARGETS)
        assert choices("cpu") == {"any", "vnni"}
        assert choices("method") == {"auto", *METHODS, "output-error"}

    def test_preprocess_is_checked(self):
        assert Config(preprocess="rgb,0-1,top-left").flags == ["--preprocess", "rgb,0-1,top-left"]
        with pytest.raises(ConfigError, match=r"^preprocess: 'caffe' is unknown; give one of auto, yolo, "):
            Config(preprocess="caffe")

    @pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.metadata["choices"]])
    def test_other_values_are_refused_with_all_choices(self, name):
        with pytest.raises(ConfigError, match=f"^{name}: 'x' is not one of ") as caught:
            Config(**{name: "x"})
        listed = str(caught.value).split(" is not one of ")[1].split(", ")
        assert listed == [str(choice) for choice in FIELDS[name].metadata["choices"]]

    @pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
    @pytest.mark.parametrize("name", ["weight_bits", "act_bits"])
    def test_other_widths_are_refused(self, name, bits):
        with pytest.raises(ConfigError, match=f"^{name}: {bits} bits: .* of onnxruntime on CPUs have 2 to 8 bits$"):
            Config(**{name: bits})

    def test_reconstruction_takes_twice_the_images(self):
        assert Config().images == 100
        assert Config(weight_bits=4).images == 200
        assert Config(weight_bits=4, reconstruct=False).images == 100
        assert Config(weight_bits=4, count=7).images == 7

    @pytest.mark.parametrize("count", [0, -5])
    def test_at_least_one_image(self, count):
        with pytest.raises(ConfigError, match=f"^count: {count} is less than 1$"):
            Config(count=count)

    def test_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Config().target = "openvino"

    def test_unknown_options_are_refused(self):
        with pytest.raises(TypeError, match="width"):
            Config(width=4)

    @pytest.mark.parametrize(
        ("weights", "activations", "suffix"), [(8, 8, "int8"), (4, 8, "w4a8"), (8, 4, "w8a4"), (2, 2, "w2a2")]
    )
    def test_suffix(self, weights, activations, suffix):
        assert Config(weight_bits=weights, act_bits=activations).suffix == suffix

    @pytest.mark.parametrize("name", FIELDS)
    def test_every_option_is_explained(self, name):
        text = FIELDS[name].metadata["help"]
        assert text
        assert not text.endswith(".")


class TestFlags:
    """Config's fields and the flags of the command line are the same."""

    def test_every_field_is_a_flag_and_every_other_flag_is_known(self):
        assert set(actions()) == set(FIELDS) | NOT_CONFIG

    @pytest.mark.parametrize("name", FIELDS)
    def test_a_flag_has_the_name_choices_and_help_of_its_field(self, name):
        action, field = actions()[name], FIELDS[name]
        flag = name.replace("_", "-")
        negated = [f"--no-{flag}"] if name in ("equalize", "migrate", "reconstruct") else []
        assert action.option_strings == [f"--{flag}", *negated]
        choices = field.metadata["choices"]
        assert (action.choices and tuple(action.choices)) == (choices and tuple(choices))
        assert action.help.startswith(field.metadata["help"])
        if field.metadata["metavar"]:
            assert action.metavar == field.metadata["metavar"]

    def test_without_flags_the_defaults_hold(self):
        assert parsed() == Config()

    @pytest.mark.parametrize(("name", "choice"), CHOICES)
    def test_every_choice_can_be_given(self, name, choice):
        more = MORE.get(choice, {})
        flags = [text for key, value in more.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        expected = Config(**{**more, name: choice})
        assert parsed(*flags, "--" + name.replace("_", "-"), str(choice)) == expected

    def test_other_options_can_be_given(self):
        assert parsed("--symmetric") == Config(symmetric=True)
        assert parsed("--no-equalize") == Config(equalize=False)
        assert parsed("--reconstruct") == Config(reconstruct=True)
        assert parsed("--no-reconstruct") == Config(reconstruct=False)
        assert parsed("--count", "7") == Config(count=7)

    @pytest.mark.parametrize(
        "config",
        [
            Config(),
            Config(symmetric=True, equalize=False, reconstruct=False, count=7, method="mse"),
            Config(weight_bits=4, pack="int4", reconstruct=True, bits=("a=8/8", "re:b=4/8"), target="openvino"),
            Config(exclude=("a", "op:Add"), image_size=(384, 640), preprocess="yolox", requantize=True),
        ],
    )
    def test_a_config_tells_the_flags_that_make_it(self, config):
        assert parsed(*config.flags) == config
        default = Config()
        changed = [name for name in FIELDS if getattr(config, name) != getattr(default, name)]
        assert sum(word.startswith("--") for word in config.flags) == len(changed)

    def test_exclude_takes_several_and_may_be_repeated(self):
        expected = Config(exclude=("a", "op:Add", "re:b"))
        assert parsed("--exclude", "a", "op:Add", "--exclude", "re:b") == expected

    def test_include_takes_the_same_patterns(self):
        expected = Config(include=("a", "op:Conv", "re:b"), exclude=("c",))
        assert parsed("--include", "a", "op:Conv", "--exclude", "c", "--include", "re:b") == expected
        assert parsed(*expected.flags) == expected

    @pytest.mark.parametrize(("text", "size"), [("640", (640, 640)), ("384x640", (384, 640))])
    def test_image_size(self, text, size):
        assert parsed("--image-size", text) == Config(image_size=size)

    @pytest.mark.parametrize("text", ["0", "x640", "640x", "-3", "a", "3x4x5", ""])
    def test_no_image_size(self, text, capsys):
        with pytest.raises(SystemExit):
            parsed(f"--image-size={text}")
        assert "expected 640, or height x width as 384x640, got " in capsys.readouterr().err

    def test_a_value_that_config_refuses_is_wrong_usage(self, capsys):
        with pytest.raises(SystemExit) as caught:
            cli.main(["model.onnx", "--count", "0"])
        assert caught.value.code == 2
        assert "count: 0 is less than 1" in capsys.readouterr().err

    def test_the_help_names_every_flag(self):
        text = arguments.make_parser().format_help()
        for action in actions().values():
            for option in action.option_strings:
                assert option in text

    def test_config_has_no_field_that_python_alone_can_set(self):
        assert list(inspect.signature(Config).parameters) == list(FIELDS)


def test_half_floats_are_for_targets_that_take_them():
    assert Config(target="tensorrt", float_type="fp16").is_half
    for target in set(TARGETS) - {"tensorrt"}:
        with pytest.raises(ConfigError, match=r"float_type: .+ by itself; fp16 is for --target tensorrt"):
            Config(target=target, float_type="fp16")


def test_weights_are_packed_for_targets_that_unpack_them():
    takers = [name for name, target in TARGETS.items() if target.takes_int4]
    assert takers == ["ort", "openvino", "qnn", "generic"]
    for target in takers:
        assert Config(target=target, weight_bits=4, pack="int4").packs
    with pytest.raises(
        ConfigError, match=r"^pack: TensorRT takes int4 only .+; leave .+ --target ort, openvino, qnn, gen"
    ):
        Config(target="tensorrt", weight_bits=4, pack="int4")
    assert not Config(weight_bits=4).packs


def test_there_are_narrow_weights_to_pack():
    for options in ({"weight_bits": 2}, {"bits": ("conv=4/8",)}):
        assert Config(pack="int4", **options).packs
    for options, narrowest in (({}, 8), ({"weight_bits": 5}, 5), ({"weight_bits": 8, "bits": ("conv=6/4",)}, 6)):
        with pytest.raises(ConfigError, match=f"^pack: .* weights have {narrowest}; add --weight-bits 4, or leave"):
            Config(pack="int4", **options)


def test_widths_of_nodes_are_read():
    config = Config(bits=("re:a=b/=4/8", "op:Conv=8/6"))
    assert config.widths == (("re:a=b/", (4, 8)), ("op:Conv", (8, 6)))
    assert config.reconstructs
    assert not Config(bits=("conv=8/8",)).reconstructs


@pytest.mark.parametrize("text", ["conv", "conv=4", "=4/4", "conv=4/4/4", "conv=a/b"])
def test_other_texts_are_no_widths(text):
    with pytest.raises(ConfigError, match=r"^bits: .*: give PATTERN=W/A, as in"):
        Config(bits=(text,))


@pytest.mark.parametrize("text", ["conv=1/8", "conv=8/16"])
def test_widths_beyond_2_to_8_are_refused(text):
    with pytest.raises(ConfigError, match=r"have 2 to 8 bits; --exclude keeps a node float$"):
        Config(bits=(text,))


def test_the_method_is_chosen_where_it_is_left_open():
    assert Config().method_used == "uh"
    assert Config(weight_bits=4).method_used == "output-error"
    assert Config(weight_bits=4, method="uh").method_used == "uh"
    assert Config(weight_bits=4, reconstruct=False).method_used == "uh"
    assert Config(method="output-error", reconstruct=True).method_used == "output-error"
    with pytest.raises(ConfigError, match="output-error is part of the reconstruction; add --reconstruct"):
        Config(method="output-error")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": "op:Add"}, r"exclude: expected a tuple of strings, got 'op:Add'; write \('op:Add',\)"),
        ({"include": "op:Add"}, "include: expected a tuple of strings, got 'op:Add'"),
        ({"bits": "op:Conv=4/8"}, "bits: expected a tuple of strings, got 'op:Conv=4/8'"),
        ({"bits": 3}, "bits: expected a tuple of strings, got 3"),
        ({"exclude": None}, "exclude: expected a tuple of strings, got None"),
        ({"include": (1, 2)}, r"include: expected a tuple of strings, got \(1, 2\)"),
        ({"layout": b"x"}, "layout: expected a tuple of strings, got b'x'"),
        ({"image_size": 640}, r"image_size: expected \(height, width\) in px, got 640"),
        ({"image_size": "640"}, r"image_size: expected \(height, width\) in px, got '640'"),
        ({"act_bits": "8"}, "act_bits: expected an integer, got '8'"),
        ({"count": "5"}, "count: expected an integer, got '5'"),
        ({"image_size": (640.0, 640)}, r"image_size: expected \(height, width\) in px, got \(640.0, 640\)"),
        ({"symmetric": "no"}, "symmetric: expected True or False, got 'no'"),
        ({"equalize": None}, "equalize: expected True or False, got None"),
        ({"reconstruct": "false"}, "reconstruct: expected True or False, or None for the default, got 'false'"),
        ({"migrate": 0}, "migrate: expected True or False, or None for the default, got 0"),
        ({"preprocess": None}, "preprocess: expected text, got None"),
    ],
)
def test_values_of_another_kind_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Config(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_bits": 4}, "rounding: reconstruction rounds with feedback by itself; leave --rounding out"),
        (
            {"rounding": "nearest", "reconstruct": True},
            "rounding: reconstruction rounds with feedback by itself; leave --rounding out",
        ),
        (
            {"keep_bias": True},
            "rounding: feedback shifts the mean of the outputs, which biases take up; leave --keep-bias",
        ),
    ],
)
def test_feedback_that_has_no_place(options, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Config(**{"target": "openvino", "rounding": "feedback", **options})


@pytest.mark.parametrize(
    ("options", "feedback", "used"),
    [
        ({}, True, "feedback"),
        ({"rounding": "feedback"}, True, "feedback"),
        ({"rounding": "nearest"}, False, "nearest"),
        ({"keep_bias": True}, False, "nearest"),
        ({"weight_bits": 4}, False, "feedback"),
    ],
    ids=str,
)
def test_weights_are_rounded_with_feedback_where_that_is_possible(options, feedback, used):
    config = Config(target="openvino", **options)
    assert (config.rounds_with_feedback, config.rounding_used) == (feedback, used)


def test_unsigned_weights_are_rounded_to_nearest(monkeypatch):
    unsigned = replace(TARGETS["openvino"], weights=(UINT8,), symmetric_weights=False)
    monkeypatch.setitem(TARGETS, "openvino", unsigned)
    assert not Config(target="openvino").rounds_with_feedback
    with pytest.raises(ConfigError, match="weights for OpenVINO are not symmetric signed integers"):
        Config(target="openvino", rounding="feedback")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"reconstruct": True, "keep_bias": True},
            "keep_bias: reconstruction fits weights and biases by itself",
        ),
        ({"weight_bits": 4, "keep_bias": True}, "keep_bias: reconstruction fits"),
        ({"weight_bits": 4, "weight_method": "mse"}, "weight_method: reconstruction fits"),
        ({"target": "tensorrt", "cpu": "vnni"}, "cpu: files for TensorRT run on no CPU; leave --cpu out"),
    ],
)
def test_options_without_effect_are_refused(options, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        Config(**options)


def test_options_with_an_effect_are_taken():
    Config(weight_bits=4, keep_bias=True, weight_method="mse", reconstruct=False)
    Config(target="generic", cpu="vnni")


def test_all_options_that_are_on_or_off_are_checked():
    switches = [field.name for field in dataclasses.fields(Config) if "bool" in str(field.type)]
    assert len(switches) == 6
    for name in switches:
        with pytest.raises(ConfigError, match=f"{name}: expected True or False"):
            Config(**{name: "off"})
