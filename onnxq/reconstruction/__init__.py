"""Layer-wise reconstruction: each layer is fitted to its quantized input."""
