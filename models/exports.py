"""Export YOLO models with random weights, by the exporters of their projects and without a download.

    pip install torch torchvision ultralytics onnx onnxslim onnxscript
    python models/exports.py exports [NAME ...]

Weights are drawn with a seed, and batch normalization is fitted to noise, so that activations have the scale of a
trained network. The files are good for structure and speed, never for accuracy. Ultralytics' licence is AGPL-3.0.
"""

import argparse
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

SIZE = 320

EXPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "yolov3-tiny": ("yolov3-tiny.yaml", {}),
    "yolov5nu": ("yolov5n.yaml", {}),
    "yolov6n-u": ("yolov6n.yaml", {}),
    "yolov8n": ("yolov8n.yaml", {}),
    "yolov8n-seg": ("yolov8n-seg.yaml", {}),
    "yolov8n-pose": ("yolov8n-pose.yaml", {}),
    "yolov8n-obb": ("yolov8n-obb.yaml", {}),
    "yolov8n-cls": ("yolov8n-cls.yaml", {"imgsz": 224}),
    "yolov8n-p2": ("yolov8n-p2.yaml", {}),
    "yolov8n-p6": ("yolov8n-p6.yaml", {}),
    "yolov8n-ghost": ("yolov8n-ghost.yaml", {}),
    "yolov8s-worldv2": ("yolov8s-worldv2.yaml", {}),
    "yolov8n-opset11": ("yolov8n.yaml", {"opset": 11}),
    "yolov8n-opset12": ("yolov8n.yaml", {"opset": 12}),
    "yolov8n-opset13": ("yolov8n.yaml", {"opset": 13}),
    "yolov8n-opset16": ("yolov8n.yaml", {"opset": 16}),
    "yolov8n-opset20": ("yolov8n.yaml", {"opset": 20}),
    "yolov8n-float16": ("yolov8n.yaml", {"half": True}),
    "yolov8n-batch4": ("yolov8n.yaml", {"batch": 4}),
    "yolov8n-wide": ("yolov8n.yaml", {"imgsz": (256, 416)}),
    "yolov8n-unsimplified": ("yolov8n.yaml", {"simplify": False}),
    "yolov8n-dynamic": ("yolov8n.yaml", {"dynamic": True}),
    "yolov8n-nms": ("yolov8n.yaml", {"nms": True}),
    "yolov8n-seg-nms": ("yolov8n-seg.yaml", {"nms": True}),
    "yolov8n-pose-nms": ("yolov8n-pose.yaml", {"nms": True}),
    "yolov8n-obb-nms": ("yolov8n-obb.yaml", {"nms": True}),
    "yolov9t": ("yolov9t.yaml", {}),
    "yolov9c-seg": ("yolov9c-seg.yaml", {}),
    "yolov10n": ("yolov10n.yaml", {}),
    "yolov10n-unsimplified": ("yolov10n.yaml", {"simplify": False}),
    "yolo11n": ("yolo11n.yaml", {}),
    "yolo11n-seg": ("yolo11n-seg.yaml", {}),
    "yolo11n-pose": ("yolo11n-pose.yaml", {}),
    "yolo11n-obb": ("yolo11n-obb.yaml", {}),
    "yolo11n-cls": ("yolo11n-cls.yaml", {"imgsz": 224}),
    "yolo11n-nms": ("yolo11n.yaml", {"nms": True}),
    "yolo12n": ("yolo12n.yaml", {}),
    "yolo12n-dynamic": ("yolo12n.yaml", {"dynamic": True}),
    "yolo12n-unsimplified": ("yolo12n.yaml", {"simplify": False}),
    "yolo26n": ("yolo26n.yaml", {}),
    "yolo26n-seg": ("yolo26n-seg.yaml", {}),
    "yolo26n-pose": ("yolo26n-pose.yaml", {}),
    "yolo26n-obb": ("yolo26n-obb.yaml", {}),
    "yolo26n-cls": ("yolo26n-cls.yaml", {"imgsz": 224}),
    "yolo26n-dynamic": ("yolo26n.yaml", {"dynamic": True}),
}
"""Name -> configuration of Ultralytics, and options of its exporter (TorchScript; simplified with onnxslim)."""

DYNAMO: dict[str, tuple[str, dict[str, Any]]] = {
    "yolov8n-dynamo": ("yolov8n.yaml", {}),
    "yolov8n-dynamo-raw": ("yolov8n.yaml", {"optimize": False}),
    "yolov8n-dynamo-batch": ("yolov8n.yaml", {"dynamic_shapes": {"x": {0: "batch"}}}),
    "yolov6n-dynamo": ("yolov6n.yaml", {"opset_version": 20}),
    "yolov9t-dynamo": ("yolov9t.yaml", {"opset_version": 22}),
    "yolo11n-dynamo": ("yolo11n.yaml", {}),
    "yolo12n-dynamo": ("yolo12n.yaml", {}),
}
"""Name -> configuration of Ultralytics, and options of `torch.onnx.export(dynamo=True)`."""


def network(yaml: str, size: int) -> YOLO:
    """Build a model with random weights, in which activations neither vanish nor grow."""
    torch.manual_seed(0)
    built = YOLO(yaml)
    for module in built.model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.requires_grad:
            torch.nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()))
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    built.model.train()
    with torch.no_grad():
        for _ in range(2):
            built.model(torch.rand(2, 3, size, size))
    built.model.eval()
    return built


def export(yaml: str, target: Path, **options: Any) -> None:
    """Export as `yolo export` does."""
    options = {"imgsz": SIZE, "simplify": True, **options}
    size = options["imgsz"] if isinstance(options["imgsz"], int) else max(options["imgsz"])
    shutil.move(network(yaml, size).export(format="onnx", **options), target)


def export_by_dynamo(yaml: str, target: Path, **options: Any) -> None:
    """Export with PyTorch's dynamo exporter, without the metadata of Ultralytics."""
    model = network(yaml, SIZE).model
    for module in model.modules():
        if hasattr(module, "export") and hasattr(module, "format"):
            module.export, module.format = True, "onnx"
    image = torch.rand(1, 3, SIZE, SIZE)
    model(image)  # the first run creates the anchors of the head
    torch.onnx.export(model, (image,), str(target), dynamo=True, external_data=False, **options)


def main() -> int:
    """Write the exports that do not exist yet; return 1 if one could not be exported."""
    parser = argparse.ArgumentParser(description="Write exports of YOLO models, with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    args = parser.parse_args()
    jobs: dict[str, tuple[Callable[..., None], str, dict[str, Any]]] = {
        **{name: (export, *how) for name, how in EXPORTS.items()},
        **{name: (export_by_dynamo, *how) for name, how in DYNAMO.items()},
    }
    unknown = set(args.names) - set(jobs)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: known names: {', '.join(jobs)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in args.names or jobs:
        write, yaml, options = jobs[name]
        target = args.folder / f"{name}.onnx"
        if target.exists():
            continue
        try:
            write(yaml, target, **options)
        except Exception as error:  # a failure must not stop the other exports
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            print(target)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
