"""Layer-wise reconstruction: each layer is fitted so that it reproduces its float output on its quantized input."""

RECONSTRUCT_BELOW = 8
"""Layers are reconstructed by default if a width is below this: with more levels, rounding alone loses little."""
