"""Quantization arithmetic in numpy: integer schemes, histograms, ranges, quantization error, SQNR."""
