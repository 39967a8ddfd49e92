import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from graphs import csp, feed

from onnxq import Config, quantize
from onnxq.evaluation.average_precision import ModelPrecision, PrecisionSummary
from onnxq.evaluation.criteria import AgreementLoss
from onnxq.evaluation.mixed_precision import HigherPrecision, SearchResult
from onnxq.evaluation.predictor import Settings
from onnxq.report import schema
from onnxq.report.build import build, to_json
from onnxq.report.schema import FORMAT, Report, as_dict

GOLDEN = Path(__file__).parents[1] / "support" / "golden" / "report-schema.txt"
"""The keys of the JSON report and their types; ONNXQ_GOLDEN=write writes it anew."""


def keys(kind, path="") -> list[str]:
    """The keys of the JSON of a type, a line each, with what stands under them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        below = f"{path}." if path else ""
        fields = dataclasses.fields(kind)
        return [line for f in fields for line in keys(hints[f.name], below + f.name.removesuffix("_"))]
    if origin is types.UnionType:
        [some] = [each for each in arguments if each is not types.NoneType]
        if dataclasses.is_dataclass(some):
            return [f"{path}: object or null", *keys(some, path)]
        return [f"{line} or null" for line in keys(some, path)]
    if origin is tuple and arguments[-1] is Ellipsis:
        return keys(arguments[0], f"{path}[]")
    if origin is tuple:
        return [f"{path}: [{', '.join(each.__name__ for each in arguments)}]"]
    if origin is Mapping:
        return keys(arguments[1], f"{path}.*")
    return [f"{path}: {kind.__name__}"]


def test_the_keys_are_those_of_the_golden_file():
    lines = "\n".join([f"format {FORMAT}", *keys(Report), ""])
    if os.environ.get("ONNXQ_GOLDEN") == "write":
        GOLDEN.write_text(lines, encoding="utf-8")
    assert lines == GOLDEN.read_text(encoding="utf-8"), "ONNXQ_GOLDEN=write accepts it; does FORMAT change too?"


def assert_fits(value, kind, path=""):
    """Assert that JSON has just the keys and types that a type asks for."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        assert list(value) == [field.name.removesuffix("_") for field in dataclasses.fields(kind)], path
        for field in dataclasses.fields(kind):
            assert_fits(value[field.name.removesuffix("_")], hints[field.name], f"{path}.{field.name}")
    elif origin is types.UnionType:
        if value is not None:
            [some] = [each for each in arguments if each is not types.NoneType]
            assert_fits(value, some, path)
    elif origin is tuple:
        assert isinstance(value, list), path
        assert arguments[-1] is Ellipsis or len(value) == len(arguments), path
        for each in value:
            assert_fits(each, arguments[0], f"{path}[]")
    elif origin is Mapping:
        for name, each in value.items():
            assert_fits(each, arguments[1], f"{path}.{name}")
    else:
        assert type(value) is kind, path


@pytest.fixture(scope="module")
def report():
    model, config = csp(), Config(weight_bits=4, exclude=("conv1",), reconstruct=False)
    quantized = quantize(model, [feed(model)], config, sensitivity=True)
    search = SearchResult(quantized, config, (HigherPrecision(("conv9",), None),), 0.1, "-0.10 AP", 7, {0: "-0.10 AP"})
    averages = (40.0, 60.0, 45.0, 20.0, 42.0, None, 0.0)
    first = ModelPrecision("net.onnx", "v8", "detect", "rgb01", (64, 64), "ort", "1.2.3", *averages)
    evaluation = PrecisionSummary("a.json", 2, Settings(), (first,))
    measured = {"evaluation": evaluation, "agreement": AgreementLoss(0.25, 3, "onnxruntime 1.2.3")}
    return build(quantized, config, source="net.onnx", before=2, after=1, search=search, **measured)


def test_the_json_of_a_run_has_these_keys_and_types(report):
    data = json.loads(to_json(report))
    assert next(iter(data.items())) == ("format", 1)
    assert data["sensitivity"]
    assert data["values"]
    assert_fits(data, Report)


def test_names_of_keywords_lose_their_underscore():
    @dataclass(frozen=True)
    class Some:
        float_: int
        a_b: int

    assert as_dict(Some(1, 2)) == {"float": 1, "a_b": 2}


def test_every_field_is_documented():
    for kind in vars(schema).values():
        if dataclasses.is_dataclass(kind) and kind.__module__ == schema.__name__:
            for field in dataclasses.fields(kind):
                assert f"        {field.name}: " in kind.__doc__, (kind.__name__, field.name)
