"""Settings for all tests."""

import functools

import pytest
from hypothesis import HealthCheck, settings

from onnxq.calibration import confirm_layout, dead_leaves, demo, samples
from onnxq.cluster import open_pool
from onnxq.evaluation import ground_truth, predictor

# How fast examples are drawn and run depends on what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def painted_once(paint, most):
    """Return a function that paints the same pictures, keeps some, and lets nobody write to them."""

    @functools.wraps(paint)
    def locked(*args, **kwargs):
        painted = paint(*args, **kwargs)
        for array in painted if isinstance(painted, tuple) else (painted,):
            array.setflags(write=False)
        return painted

    return functools.lru_cache(most)(locked)


@pytest.fixture(scope="session", autouse=True)
def _scenes_are_painted_once():
    """Paint a scene once for all tests: almost each looks at the same few, which are nothing but their number and size.

    Tests of the painting import the functions by name, and so paint.
    """
    leaves, scene = painted_once(dead_leaves.dead_leaves_image, 64), painted_once(demo.scene, 400)
    with pytest.MonkeyPatch.context() as patch:
        for module in (dead_leaves, confirm_layout, samples, predictor):
            patch.setattr(module, "dead_leaves_image", leaves)
        for module in (demo, ground_truth):
            patch.setattr(module, "scene", scene)
        yield


@pytest.fixture(scope="session")
def dask_pool():
    """A pool of two processes on this machine, the same for all tests: it takes seconds to start."""
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    with open_pool(2) as pool:
        yield pool
