"""Settings for all tests."""

import pytest
from hypothesis import HealthCheck, settings

from onnxq.cluster import open_pool

# How fast examples are drawn and run depends on what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def dask_pool():
    """A pool of two processes on this machine, the same for all tests: it takes seconds to start."""
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    with open_pool(2) as pool:
        yield pool
