"""Golden texts of graphs without numbers, and of scales and zero points, compared with the files in `golden/`.

To accept changed graphs or scales, rewrite the files with

    ONNXQ_GOLDEN=write pytest tests/repository/test_golden.py

and read the difference before it is committed.
"""

import difflib
import os
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper, printer

FOLDER = Path(__file__).parent / "golden"


def text(model: onnx.ModelProto) -> str:
    """Return the graph as onnx.printer writes it, a line per node, and a line per initializer.

    Only int64 initializers, which are shapes, axes and sizes, show their values; inferred shapes are left out.
    """
    outline = onnx.ModelProto()
    outline.CopyFrom(model)
    del outline.graph.initializer[:], outline.graph.value_info[:]
    lines = [line.rstrip() for line in printer.to_text(outline).splitlines()]
    return "\n".join([*lines, "", *map(_initializer, model.graph.initializer), ""])


def _initializer(tensor: onnx.TensorProto) -> str:
    kind = TensorProto.DataType.Name(tensor.data_type).lower()
    line = f"{kind}[{','.join(map(str, tensor.dims))}] {tensor.name}"
    if tensor.data_type != TensorProto.INT64:
        return line
    return f"{line} = {numpy_helper.to_array(tensor).tolist()}"


def scales(model: onnx.ModelProto) -> str:
    """Return a line with scale and zero point for each Q/DQ pair and quantized weight, in the order of their nodes.

    Scales have three digits: the last ones depend on the order in which a CPU adds.
    """
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    lines = {}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, *zero_point = (values[name] for name in node.input[1:])
            steps = " ".join(f"{step:.2e}" for step in numpy_helper.to_array(scale).ravel().tolist())
            points = sorted(
                {point for tensor in zero_point for point in numpy_helper.to_array(tensor).ravel().tolist()}
            )
            kinds = [TensorProto.DataType.Name(tensor.data_type).lower() for tensor in zero_point]
            lines[scale.name] = " ".join([scale.name.removesuffix("_scale"), *kinds, *map(str, points), "steps", steps])
    return "\n".join([*lines.values(), ""])


def assert_golden(model: onnx.ModelProto, name: str, folder: Path = FOLDER) -> None:
    """Assert that the text of a graph is that of the file of this name."""
    assert_text(text(model), name, folder, "the graph has changed")


def assert_scales(model: onnx.ModelProto, name: str, folder: Path = FOLDER) -> None:
    """Assert that scales and zero points are those of the file of this name."""
    assert_text(scales(model), name, folder, "scales have changed")


def assert_text(actual: str, name: str, folder: Path, message: str) -> None:
    """Assert that a text is that of a file, or rewrite the file; `message` opens the error."""
    path = folder / f"{name}.txt"
    if os.environ.get("ONNXQ_GOLDEN") == "write":
        path.write_text(actual, encoding="utf-8")
    assert path.is_file(), f"{path} is absent; ONNXQ_GOLDEN=write makes it"
    expected = path.read_text(encoding="utf-8")
    difference = difflib.unified_diff(
        expected.splitlines(), actual.splitlines(), f"golden/{path.name}", "now", lineterm="", n=1
    )
    assert expected == actual, "\n".join([f"{message} (ONNXQ_GOLDEN=write accepts it):", *difference])
