"""Checks of models from anywhere: whatever is malformed ends in one error that names the node or tensor.

- tensors: element types, shapes, and as many values as they say
- external_data: values in other files, which must be beside the model
- functions: local functions that can be inlined
- nodes: inputs, outputs and attributes as the operators define them; sources of all tensors; types and shapes of inputs
- activations: tensors of a run that fit into memory
- layers: weights, biases and attributes of a layer that agree
"""
