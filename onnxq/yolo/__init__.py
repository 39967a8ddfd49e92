"""What is specific to YOLO: preprocessing, output layouts, decoding, detections."""
