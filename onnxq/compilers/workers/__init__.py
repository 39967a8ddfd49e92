"""Scripts that run in a compiler's own environment and process; they import nothing of onnxq.

A script finds its job in the working folder and leaves the result there: `run_worker` in `onnxq/compilers/process.py`.
"""
