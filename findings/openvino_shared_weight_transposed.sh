#!/usr/bin/env bash
# OpenVINO multiplies twice by the same matrix if a float model multiplies by a square weight and by its transpose. One of the
# two products is taken the wrong way round, whichever comes first.
#
# Expected: x W' W and x W W' differ from x W' W' and x W W. W' is a Gemm with `transB`, W is a MatMul of the same initializer.
# Seen with openvino 2026.4.1, CPU, float32 inference precision, no quantization, weights of 48 x 48 if not said otherwise:
#   model                   rows of x   OpenVINO computes
#   x W' W                         64   x W' W'
#   x W W'                         64   x W W
#   x W' W                          8   x W W
#   x W W'                          8   x W' W'
#   Softmax(x W') W                64   Softmax(x W) W
#   Relu(x W') W                   64   Relu(x W') W
#   x W' W, 48 x 32                64   x W' W
#   x W' W, two copies of W        64   x W' W
# onnx's reference evaluator computes what the model says. Nothing is logged.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

SIZE = 48


def model(products: str, columns: int, rows: int, between: str, copies: int) -> onnx.ModelProto:
    """Two products by one weight: T by its transpose, N as it is."""
    w = np.random.default_rng(0).normal(size=(SIZE, columns)).astype(np.float32) / 7
    nodes, tensor = [], "x"
    for place, product in enumerate(products):
        inputs, output = [tensor, f"w{place % copies}"], "xyz"[place + 1]
        transposed = helper.make_node("Gemm", inputs, [output], transB=1)
        nodes.append(transposed if product == "T" else helper.make_node("MatMul", inputs, [output]))
        tensor = output
        if between and place == 0:
            nodes.append(helper.make_node(between, [output], ["between"]))
            tensor = "between"
    width = columns if products[0] == "T" else SIZE
    graph = helper.make_graph(
        nodes, "products", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [rows, None])],
        [numpy_helper.from_array(w, f"w{copy}") for copy in range(copies)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def title(products: str, between: str) -> str:
    first, second = ("W'" if product == "T" else "W" for product in products)
    return f"{between}(x {first}) {second}" if between else f"x {first} {second}"


print("model                   rows of x   OpenVINO computes")
for products, columns, rows, between, copies, expected in (
    ("TN", SIZE, 64, "", 1, "TT"),
    ("NT", SIZE, 64, "", 1, "NN"),
    ("TN", SIZE, 8, "", 1, "NN"),
    ("NT", SIZE, 8, "", 1, "TT"),
    ("TN", SIZE, 64, "Softmax", 1, "NN"),
    ("TN", SIZE, 64, "Relu", 1, "TN"),
    ("TN", 32, 64, "", 1, "TN"),
    ("TN", SIZE, 64, "", 2, "TN"),
):
    made, core = model(products, columns, rows, between, copies), openvino.Core()
    width = columns if products[0] == "T" else SIZE
    x = np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32)
    compiled = core.compile_model(core.read_model(made.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([x])[0]
    candidates = [products] if columns != SIZE else ["TN", "NT", "TT", "NN"]
    references = {
        name: ReferenceEvaluator(model(name, columns, rows, between, copies)).run(None, {"x": x})[0] for name in candidates
    }
    same = [name for name in candidates if np.allclose(references[name], found, atol=1e-4)]
    what = title(products, between) + (f", {SIZE} x {columns}" if columns != SIZE else "")
    what += ", two copies of W" if copies == 2 else ""
    print(f"{what:<24}{rows:>9}   {' or '.join(title(name, between) for name in same)}")
    assert same == [expected], "OpenVINO does otherwise than it did"
PYTHON
