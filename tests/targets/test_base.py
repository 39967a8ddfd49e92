import importlib
from dataclasses import replace

import pytest

from onnxq.errors import ConfigError
from onnxq.numerics.scheme import INT8, INT16, UINT8, UINT16, Scheme
from onnxq.passes import LOWERING
from onnxq.passes.pointwise_to_matmul import PointwiseToMatmul
from onnxq.pipeline import Rewrite
from onnxq.runtime import RUNTIMES
from onnxq.targets import GENERIC, ORT, TARGETS, TENSORRT, Target
from onnxq.targets.base import POINTWISE_TO_MATMUL

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)

WIDE = replace(GENERIC, title="WIDE", activations=(UINT16, UINT8), weights=(INT8, INT16))


@every_target
def test_a_target_has_a_file_of_its_name(target):
    module = importlib.import_module(f"onnxq.targets.{target.name}")
    assert [value for value in vars(module).values() if isinstance(value, Target)] == [target]
    assert TARGETS[target.name] is target


@every_target
def test_every_lowering_pass_exists(target):
    assert set(target.lowering) <= LOWERING.keys()


def test_lowering_passes_are_rewrites_by_their_names():
    assert all(issubclass(step, Rewrite) and step.name == name for name, step in LOWERING.items())
    assert PointwiseToMatmul.name == POINTWISE_TO_MATMUL


@every_target
def test_a_float_output_in_front_of_silu_needs_the_lowering_of_1x1_convs(target):
    assert target.lowers_pointwise == (target.float_silu_stride is not None)


@every_target
def test_the_runtime_is_known(target):
    assert target.runtime is None or target.runtime in RUNTIMES


@pytest.mark.parametrize(
    ("bits", "container"), [(2, UINT8), (8, UINT8), (9, UINT16), (16, UINT16)], ids=["2", "8", "9", "16"]
)
def test_activations_have_the_narrowest_type_that_holds_them(bits, container):
    target = replace(WIDE, clips=(UINT8, UINT16))
    assert target.activation_scheme(bits) == Scheme(bits, container)


def test_weights_have_the_narrowest_type_that_holds_them():
    assert WIDE.weight_scheme(4) == Scheme(4, INT8, symmetric=True)
    assert WIDE.weight_scheme(12, half=True) == Scheme(12, INT16, symmetric=True, half=True)
    assert replace(WIDE, symmetric_weights=False).weight_scheme(8) == Scheme(8, INT8)


def test_zero_points_are_in_the_middle_if_the_target_or_the_caller_says_so():
    assert TENSORRT.activation_scheme(8) == Scheme(8, INT8, symmetric=True)
    assert ORT.activation_scheme(8, symmetric=True, half=True) == Scheme(8, UINT8, symmetric=True, half=True)


@pytest.mark.parametrize("bits", [1, 17])
def test_widths_beyond_all_types_are_refused(bits):
    with pytest.raises(ConfigError, match=f"^{bits} bits: activations of WIDE have 2 to 16 bits$"):
        WIDE.activation_scheme(bits)
    with pytest.raises(ConfigError, match=f"^{bits} bits: weights of WIDE have 2 to 16 bits$"):
        WIDE.weight_scheme(bits)


def test_widths_that_need_a_clip_are_refused_without_one():
    message = "12 bits: WIDE has no Clip of uint16, which narrow activations need; use 16 or 8 bits for activations"
    with pytest.raises(ConfigError, match=message):
        WIDE.activation_scheme(12)


def test_the_opset_is_that_of_the_target_or_of_its_types():
    eight, sixteen = WIDE.activation_scheme(8), WIDE.activation_scheme(16)
    assert WIDE.opset([eight]) == 13
    assert WIDE.opset([eight, sixteen]) == 21
    assert replace(WIDE, min_opset=17).opset([eight]) == 17
