"""Weights of large models stay in files: tensors of a model link to them.

- links: tensors that link to a file, their values, and models without links
- in_file: a model whose weights stay in its own file
- spill: a temporary file for weights that a pass has changed
"""
