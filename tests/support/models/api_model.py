"""The detector that the tests of the API quantize."""

from collections.abc import Iterator

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


def unchanged_detector() -> Iterator[onnx.ModelProto]:
    """Yield the detector for a fixture, and assert afterwards that no test has changed it."""
    model = detector_model()
    yield model
    assert model.SerializeToString(deterministic=True) == detector_model().SerializeToString(deterministic=True)


def content(quantized: Quantized) -> bytes:
    """The bytes of a quantized model."""
    return quantized.model.SerializeToString(deterministic=True)
