"""Work on many processes and machines. Only this package knows Dask; all others see a `runtime.pool.Pool`."""

from onnxq.cluster.connect import open_pool

__all__ = ["open_pool"]
