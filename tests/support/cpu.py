"""What runtimes compute on the CPU that the tests run on."""

from functools import cache

from graphs import feed, quantized, run, saturating

from onnxq.numerics.scheme import INT8
from onnxq.runtime import Runtime
from onnxq.targets import OPENVINO


def sums_exactly(runtime: type[Runtime], weight_bits: int) -> bool:
    """Whether a runtime's sums of 8-bit values times weights of so many bits are exact on this CPU.

    CPUs without VNNI add the products in pairs in 16 bits, where two of weights of 7 bits have room.
    """
    return weight_bits < INT8.bits or not saturates(runtime)


@cache
def saturates(runtime: type[Runtime]) -> bool:
    """Whether the sums of the largest products saturate: the runtime is asked for some."""
    model, _ = quantized(saturating(), OPENVINO)
    found, expected = runtime(model).run(feed(model))["output"], run(model)["output"]
    return bool(abs(found.max() / expected.max() - 1) > 0.1)
