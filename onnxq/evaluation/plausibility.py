"""Tells numbers that cannot be those of a trained detector on images of its kind."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxq.evaluation.average_precision import LEAST_AP, ModelPrecision


def doubts(models: Sequence[ModelPrecision]) -> Iterator[str]:
    """Yield a sentence for each model whose average precision cannot be true.

    Args:
        models: the models; the first is the one that others are compared with.
    """
    first = models[0]
    for model in models:
        if model.AP is None or model.AP >= LEAST_AP:
            continue
        name = Path(model.model).name
        if model is not first and first.AP is not None and first.AP >= LEAST_AP:
            yield (
                f"{name} has an AP of {model.AP:.2f}, and {Path(first.model).name} of {first.AP:.2f}: quantization "
                f"destroyed it; python -m onnxq.compare {first.model} {model.model} shows where noise enters, and "
                "--exclude or --max-drop keep layers float"
            )
        else:
            yield (
                f"{name} has an AP of {model.AP:.2f}, and a trained detector has more than {LEAST_AP:g} on images of "
                f"its kind: check the input (--preprocess, {model.preprocess}), the outputs (--family, "
                f"{model.family}), the {model.classes or 'classes'}, and the boxes of the annotations"
            )
