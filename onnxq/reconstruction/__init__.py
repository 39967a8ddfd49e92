"""Layer-wise reconstruction: each layer is fitted to its quantized input so that it gives its float output."""

RECONSTRUCT_BELOW = 8
"""Layers are reconstructed by default if a width is below this: with more levels, rounding alone loses little."""
