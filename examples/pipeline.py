"""onnxq as a step of a pipeline, in which each step is a function from model to model, as in Olive.

    python examples/pipeline.py pipeline.json

The file names the model, the steps and the output:

    {"input": "yolov8n.onnx", "output": "out.onnx", "steps": [
        {"type": "metadata", "values": {"site": "roof"}},
        {"type": "quantize", "data": "images/", "target": "openvino", "method": "uh"},
        {"type": "check", "least_sqnr": 15}
    ]}
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

import onnxq
from onnxq.facts import Verification


def metadata(model: onnx.ModelProto, state: dict[str, Any], values: dict[str, str]) -> onnx.ModelProto:
    """Write metadata into the model; onnxq keeps it."""
    onnx.helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, **values})
    return model


def quantize(model: onnx.ModelProto, state: dict[str, Any], data: str | None = None, **options: Any) -> onnx.ModelProto:
    """Quantize the model; `options` are fields of `onnxq.Config`."""
    state["quantized"] = onnxq.quantize(model, data, onnxq.Config(**options))
    return state["quantized"].model


def check(model: onnx.ModelProto, state: dict[str, Any], least_sqnr: float) -> onnx.ModelProto:
    """Stop if the SQNR of an output is too low."""
    noisy = {name: db for name, db in state["quantized"].facts[Verification].sqnr.items() if db < least_sqnr}
    if noisy:
        raise SystemExit(f"too noisy: {noisy}")
    return model


STEPS: dict[str, Callable[..., onnx.ModelProto]] = {"metadata": metadata, "quantize": quantize, "check": check}


def run(plan: dict[str, Any]) -> None:
    """Run the steps in order."""
    model, state = onnx.load(plan["input"]), {}
    for step in plan["steps"]:
        options = {key: value for key, value in step.items() if key != "type"}
        model = STEPS[step["type"]](model, state, **options)
    onnx.save(model, plan["output"])


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()))
