"""The version of onnxq, for metadata, reports and the package alike."""

VERSION = "0.2.0"
