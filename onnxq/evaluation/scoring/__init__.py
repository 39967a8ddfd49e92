"""Scores detections against ground truth: COCO's average precision of boxes, masks, keypoints and rotated boxes."""
