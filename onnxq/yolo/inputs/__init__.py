"""Inputs of detectors: image files, the image that a model takes, and what it does to it first."""
