"""Layer-wise reconstruction: each layer is fitted to its quantized input so that it gives its float output."""
