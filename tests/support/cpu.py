"""Whether runtimes compute exactly on the CPU that the tests run on."""

from functools import cache

from graphs import feed, quantized, run, saturating

from onnxq.numerics.scheme import INT8
from onnxq.runtime import Runtime
from onnxq.targets import OPENVINO


def sums_exactly(runtime: type[Runtime], weight_bits: int) -> bool:
    """Return whether a runtime's sums of products of 8-bit values and weights are exact on this CPU.

    CPUs without VNNI add pairs of products in 16 bits, which hold two products with weights of 7 bits, but not of 8.
    """
    return weight_bits < INT8.bits or not saturates(runtime)


@cache
def saturates(runtime: type[Runtime]) -> bool:
    """Return whether the sums of the largest products saturate, by running some."""
    model, _ = quantized(saturating(), OPENVINO, limited=False)
    found, expected = runtime(model).run(feed(model))["output"], run(model)["output"]
    return bool(abs(found.max() / expected.max() - 1) > 0.1)
