"""Rows of the tables of Q-YOLO."""

import pytest

from docs.tools.q_yolo_settings import Setting


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "uh"])
def test_the_papers_methods_only_choose_ranges(method):
    config = Setting("narrow", "symmetric", "4-8", method).config((), 100)
    assert (config.reconstructs, config.keep_bias, config.method_used) == (False, True, method)
    assert (config.weight_bits, config.act_bits, config.symmetric) == (4, 8, True)
