"""The detector that the tests of the API quantize."""

import onnx
from graphs import v8, with_metadata

from onnxq import Quantized


def detector_model() -> onnx.ModelProto:
    """A detector with Ultralytics' metadata and more, which must be kept."""
    model = with_metadata(v8())
    model.metadata_props.add(key="onnxq", value="not one of ours")
    model.graph.doc_string = "a graph"
    model.producer_name = "an exporter"
    return model


def content(quantized: Quantized) -> bytes:
    """The bytes of a quantized model."""
    return quantized.model.SerializeToString(deterministic=True)
