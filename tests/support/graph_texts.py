"""Graphs of detectors as text."""

import onnx
from onnx import parser

# At 64 px strides 8, 16 and 32 make 64 + 16 + 4 = 84 cells.
RAW = """
    box = Conv (images, w)
    logits = Conv (images, w)
    scores = Sigmoid (logits)
    both = Concat <axis = 1> (box, scores)
    flat = Reshape (both, shape)
    out = Transpose <perm = [0, 2, 1]> (flat)
"""
DECODED = """
    logits = Conv (images, w)
    flat = Reshape (logits, shape)
    scores = Sigmoid (flat)
    out = Mul (scores, stride)
"""
DECODED_WITH_EXP = """
    both = Conv (images, w)
    centre, size, scores = Split (both)
    shifted = Add (centre, grid)
    sides = Exp (size)
    out = Concat <axis = 1> (shifted, sides, scores)
"""


def model(
    nodes: str = DECODED,
    output: str = "float[1,84,8] out",
    image: str = "float[1,3,64,64] images",
    weights: str = "float[8,3,8,8] w",
    **metadata: str,
) -> onnx.ModelProto:
    """A graph as text; its weights are inputs by ONNX's old habit, and have no data."""
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]> g ({image}, {weights}) => ({output}) {{ {nodes} }}'
    )
    for value in list(made.graph.input)[image.count("]") or 1 :]:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        made.graph.initializer.add(name=value.name, data_type=value.type.tensor_type.elem_type, dims=dims)
    for key, text in metadata.items():
        made.metadata_props.add(key=key, value=text)
    return made
