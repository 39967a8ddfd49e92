"""Calibration data: files, synthetic images, feeds of a model, and checks of the data."""
