"""What quantization costs: average precision, agreement, error along the graph, latency, mixed precision."""
