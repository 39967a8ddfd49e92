#!/bin/sh
# Quantize an exported detector, then compare and time both models.
#
#     yolo export model=yolov8n.pt format=onnx
#     examples/after_export.sh yolov8n.onnx images/ [TARGET]
#     yolo predict model=yolov8n.int8.onnx source=images/
set -eu
model=$1 images=$2 target=${3:-ort}
quantized=${model%.onnx}.int8.onnx

python -m onnxq "$model" --calib "$images" --target "$target" -o "$quantized"
python -m onnxq.compare "$model" "$quantized" --images "$images" --max-images 20
python -m onnxq.benchmark "$model" "$quantized" --rounds 10
