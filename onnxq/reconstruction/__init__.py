"""Layer-wise reconstruction: each layer is fitted to its quantized input."""

RECONSTRUCT_BELOW = 8
"""Widths below which layers are reconstructed by default: with more levels than that, rounding alone loses little."""
