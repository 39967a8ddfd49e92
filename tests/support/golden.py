"""Golden texts: what graphs look like without their numbers, and their comparison with the files in `golden/`.

When graphs are meant to change, write the files anew with

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
    """The graph as onnx.printer writes it, one line per node, and a line for each initializer.

    Of initializers only int64 ones, which are shapes, axes and sizes, show their values; inferred shapes are left out.
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


def assert_golden(model: onnx.ModelProto, name: str, folder: Path = FOLDER) -> None:
    """Assert that the graph looks as the file of this name says; see the top of this file for how to rewrite it."""
    path = folder / f"{name}.txt"
    if os.environ.get("ONNXQ_GOLDEN") == "write":
        path.write_text(text(model), encoding="utf-8")
    assert path.is_file(), f"{path} is absent; ONNXQ_GOLDEN=write makes it"
    expected, actual = path.read_text(encoding="utf-8"), text(model)
    difference = difflib.unified_diff(
        expected.splitlines(), actual.splitlines(), f"golden/{path.name}", "now", lineterm="", n=1
    )
    assert expected == actual, "\n".join(["the graph has changed (ONNXQ_GOLDEN=write accepts it):", *difference])
