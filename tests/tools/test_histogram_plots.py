"""Plots of a histogram, read back as XML."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from docs.tools.histogram_plots import error_picture, picture
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.range_methods.unilateral_histogram import unilateral_histogram
from onnxq.numerics.scheme import Scheme
from onnxq.numerics.silu import SILU_MINIMUM


class TestPicture:
    def histogram(self):
        histogram = Histogram()
        x = np.random.default_rng(0).normal(0, 3, 20000).astype(np.float32)
        histogram.add(x / (1 + np.exp(-x)))
        return histogram

    def test_shows_the_extremes_and_the_bounds(self):
        histogram = self.histogram()
        svg = picture("a<b", histogram)
        texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
        assert "What a SiLU gives: a<b, 20,000 values" in texts
        assert f"min {histogram.low:.3f}" in texts
        assert f"max {histogram.high:.2f}" in texts
        for bits in (4, 8):
            bound = unilateral_histogram(histogram, Scheme(bits), SILU_MINIMUM).high
            assert f"UH, {bits} bits: {bound:.2f}" in texts

    def test_shows_what_each_bound_costs(self):
        histogram = self.histogram()
        root = ET.fromstring(error_picture("a<b", histogram))
        texts = [element.text for element in root.iter() if element.tag.endswith("text")]
        assert "What the upper bound costs: a<b" in texts
        curves = [element.get("d")[1:] for element in root.iter() if element.get("fill") == "none"]
        marks = [float(element.get("cy")) for element in root.iter() if element.tag.endswith("circle")]
        assert len(curves) == len(marks) == 2
        for bits, curve, mark in zip((8, 4), curves, marks):
            bound = unilateral_histogram(histogram, Scheme(bits), SILU_MINIMUM).high
            assert f"UH, {bits} bits: {bound:.2f}" in texts
            heights = [float(point.split()[1]) for point in curve.split("L")]
            assert mark == pytest.approx(max(heights), abs=1), "the mark is not where the error is least"
            assert heights[-1] < mark, "the maximum costs no more"
