"""The record of a target: where its runtime needs Q/DQ pairs, which integers it takes, and what a file for it needs.

A target is data: rules by operator, and the properties of one runtime. The placement follows what that runtime was
measured to fuse: a Q/DQ pair that is not fused costs a pass over memory, and a missing one leaves the node in float.
TensorRT was not measured: its placement is from NVIDIA's documentation ("Explicit Quantization") and tools
(Model-Optimizer).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx

from onnxq.errors import ConfigError
from onnxq.numerics.scheme import INT8, MIN_BITS, UINT8, Container, Scheme
from onnxq.targets.few_channels import FewChannelsRule
from onnxq.targets.stem import FloatStemRule

POINTWISE_TO_MATMUL = "pointwise-to-matmul"
"""The lowering pass that the choice of nodes depends on: it lets an integer 1x1 Conv have a float output."""


class Role(Enum):
    """What a node does with integers."""

    LAYER = "has weights: runs on integers if its target can"
    ELEMENTWISE = "computes: runs on integers if a consumer reads its output as integers"
    CARRIER = "moves or selects values: its output has the scale and zero point of its input"


@dataclass(frozen=True)
class Rule:
    """How nodes of one operator are quantized.

    Attributes:
        role: see `Role`.
        input: a Q stands in front of the node. With neither this nor `output`, the runtime moves the Q of other nodes
            across the node.
        output: a Q stands behind the node.
        shared: input and output share one scale and zero point; a Concat's inputs only if it is their sole consumer.
        behind_integers: stays float if its input comes from a float node, where integers save no time.
        binding: a Concat's inputs have its scale and zero point even if they have other consumers.
        residual: an Add that the runtime fuses with the layer of one of its inputs; only the other input has a Q.
    """

    role: Role
    input: bool = True
    output: bool = True
    shared: bool = False
    behind_integers: bool = False
    binding: bool = False
    residual: bool = False


@dataclass(frozen=True)
class Target:
    """A runtime.

    Attributes:
        name: word for `--target`.
        title: name in texts.
        rules: operator -> rule. Operators without a rule stay float.
        activations: integer types that activations can have; the width of the first is the default.
        weights: integer types that weights can have; the width of the first is the default.
        symmetric_activations: activations have their zero point in the middle.
        symmetric_weights: weights have their zero point in the middle.
        quantizes_decode: the decode behind the last layers and the outputs of the model are quantized too.
        lowering: names of the passes, in their order, that rewrite the quantized graph for this runtime
            (`onnxq.passes.LOWERING` has them).
        min_opset: the least ONNX opset that a file for this runtime needs.
        strongly_typed: it computes in the types that the file has, so that float16 for float operators has to be
            written into the file (`--float-type fp16`); other runtimes choose by themselves.
        takes_int4: weights can be stored as INT4 (ONNX, opset 21), of which it makes int8 when it loads a file.
        clips: integer types that its Clip takes, through which activations with fewer bits than their type pass.
        quantizes_last_layers: the last layers of each branch run on integers.
        float_silu_stride: a 1x1 Conv in front of a SiLU has a float output if the image is down to this fraction of its
            height there, or if the SiLU leads to a last layer. To quantize the input of a SiLU costs the most accuracy
            of all, and so deep in a network it saves no time. Only with the lowering pass `pointwise-to-matmul`.
        fused_activations: operators that the runtime fuses with the Conv before them if the Q stands behind both.
        float_depthwise: depthwise Convs stay float. Each of their channels is convolved alone, so that channels of
            small values drown in a scale shared with large ones; and as they wait for memory they gain little time.
        stem: which Convs near the image stay float; None: none.
        few_channels: which Convs have too few channels for an integer kernel; None: none.
        bypasses_dq: operators whose float nodes read the float tensor itself, even if there is a dequantized one.
        file_rules: the messages about what in a file the runtime would not read, or not as it is meant; None: no rules
            beyond those of ONNX.
        runtime: key in `onnxq.runtime.RUNTIMES` of what runs the result, to check it there if installed.
    """

    name: str
    title: str
    rules: Mapping[str, Rule]
    activations: tuple[Container, ...] = (UINT8,)
    weights: tuple[Container, ...] = (INT8,)
    symmetric_activations: bool = False
    symmetric_weights: bool = True
    quantizes_decode: bool = False
    lowering: tuple[str, ...] = ()
    min_opset: int = 13
    strongly_typed: bool = False
    takes_int4: bool = False
    clips: tuple[Container, ...] = (UINT8, INT8)
    quantizes_last_layers: bool = True
    float_silu_stride: int | None = None
    fused_activations: frozenset[str] = frozenset()
    float_depthwise: bool = False
    stem: FloatStemRule | None = None
    few_channels: FewChannelsRule | None = None
    bypasses_dq: frozenset[str] = frozenset()
    file_rules: Callable[[onnx.ModelProto], list[str]] | None = None
    runtime: str | None = None

    def activation_scheme(self, bits: int, *, symmetric: bool = False, half: bool = False) -> Scheme:
        """Return the scheme of activations of this width, in the narrowest type that holds it.

        Args:
            bits: width of the integers.
            symmetric: zero point in the middle even if the target does not require it.
            half: scales are float16 numbers.

        Raises:
            ConfigError: the target cannot have activations of this width.
        """
        container = self._container(self.activations, bits, "activations")
        if bits < container.bits and container not in self.clips:
            widths = " or ".join(str(each.bits) for each in self.activations)
            raise ConfigError(
                f"{bits} bits: {self.title} has no Clip of {container}, which narrow activations need; "
                f"use {widths} bits for activations (weights can have fewer)"
            )
        return Scheme(bits, container, self.symmetric_activations or symmetric, half=half)

    def weight_scheme(self, bits: int, *, half: bool = False) -> Scheme:
        """Return the scheme of weights of this width, without an axis, in the narrowest type that holds it.

        Raises:
            ConfigError: the target cannot have weights of this width.
        """
        return Scheme(bits, self._container(self.weights, bits, "weights"), self.symmetric_weights, half=half)

    def opset(self, schemes: Iterable[Scheme]) -> int:
        """Return the least ONNX opset for this target with integers of these schemes."""
        return max([self.min_opset, *(scheme.container.opset for scheme in schemes)])

    @property
    def lowers_pointwise(self) -> bool:
        """Whether an integer 1x1 Conv can have a float output, as `pointwise-to-matmul` makes a product of it."""
        return POINTWISE_TO_MATMUL in self.lowering

    def _container(self, allowed: Sequence[Container], bits: int, of: str) -> Container:
        fitting = [each for each in allowed if MIN_BITS <= bits <= each.bits]
        if not fitting:
            most = max(each.bits for each in allowed)
            raise ConfigError(f"{bits} bits: {of} of {self.title} have {MIN_BITS} to {most} bits")
        return min(fitting, key=lambda each: each.bits)
