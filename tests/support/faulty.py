"""Runtimes with faults made on purpose: onnxruntime, but something is wrong."""

from pathlib import Path

import numpy as np
import onnx
from graphs import copy
from onnx import numpy_helper

from onnxq.runtime import OnnxRuntime


def erring(*constants: str, only_narrow: bool = False) -> type[OnnxRuntime]:
    """Return onnxruntime with these constants doubled; with `only_narrow` not where sums cannot saturate."""

    class Erring(OnnxRuntime):
        def __init__(self, model: onnx.ModelProto | Path, *, wide_sums: bool = False, **options: int) -> None:
            changed = onnx.load(model) if isinstance(model, Path) else copy(model)
            for tensor in changed.graph.initializer:
                if tensor.name in constants and not (only_narrow and wide_sums):
                    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
            super().__init__(changed, wide_sums=wide_sums, **options)

    return Erring


def noisy(decibels: float, output: str = "output") -> type[OnnxRuntime]:
    """Return onnxruntime with noise in one output of the whole model, of this energy below the signal's, dB."""

    class Noisy(OnnxRuntime):
        def run(self, feed):
            outputs = super().run(feed)
            if output in outputs and "images" in feed:  # not in a layer alone
                values = outputs[output]
                noise = np.random.default_rng(0).normal(size=values.shape)
                noise *= np.sqrt(np.square(values).sum() / np.square(noise).sum()) * 10 ** (-decibels / 20)
                outputs[output] = (values + noise).astype(values.dtype)
            return outputs

    return Noisy
