"""The record of a target: its Q/DQ rules, its integer types, and the requirements of its files.

A target is data: rules by operator, and the properties of one runtime. The placement follows measurements of what the
runtime fuses: a Q/DQ pair that is not fused costs a pass over memory, and a missing pair leaves the node in float.
TensorRT was not measured: its placement follows NVIDIA's documentation ("Explicit Quantization") and tools
(Model-Optimizer).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx

from onnxq.errors import ConfigError
from onnxq.ir import Node
from onnxq.numerics.scheme import INT8, MIN_BITS, UINT8, Container, Scheme
from onnxq.targets.few_channels import FewChannelsRule
from onnxq.targets.float_last import FloatLastRule
from onnxq.targets.stem import FloatStemRule

ANY_CPU = "any"

VNNI = "vnni"

CPUS = (ANY_CPU, VNNI)
"""Choices of `--cpu`. Files for `any` are right on every CPU, those for `vnni` need not be."""

POINTWISE_TO_MATMUL = "pointwise-to-matmul"
"""The lowering pass on which the node selection depends: it lets an integer 1x1 Conv have a float output."""


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
        input: a Q/DQ pair precedes the node. Without `input` and `output`, the runtime moves the Q of other nodes
            across the node.
        output: a Q/DQ pair follows the node.
        shared: input and output share one scale and zero point; an input of a Concat does if the Concat is its only
            consumer.
        behind_integers: the node stays float if its input comes from a float node, because integers save no time there.
        binding: the inputs of a Concat have its scale and zero point even if they have other consumers.
        residual: the runtime fuses the Add with the layer of one of its inputs; only the other input is quantized.
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
        name: value of `--target`.
        title: name in messages.
        rules: operator -> rule. Operators without a rule stay float.
        activations: integer types of activations; the width of the first is the default.
        weights: integer types of weights; the width of the first is the default.
        symmetric_activations: the zero point of activations is in the middle.
        symmetric_weights: the zero point of weights is in the middle.
        quantizes_decode: the decode and the outputs of the model are quantized too.
        least_decode_bits: they are with activations of at least this width.
        float_joins: a Concat of the decode that joins scores with boxes stays float, and so does what follows it: of
            the steps of a scale for pixels only some hundred lie between the scores 0 and 1, even at 16 bits.
        lowering: names of the passes that rewrite the quantized graph for this runtime, in order; keys of
            `onnxq.passes.LOWERING`.
        min_opset: lowest ONNX opset of a file for this runtime.
        strongly_typed: the runtime computes in the types of the file, so float16 for float operators must be written
            into the file (`--float-type fp16`); other runtimes choose the type by themselves.
        takes_int4: weights can be stored as INT4 (ONNX, opset 21); the runtime converts them to int8 when it loads a
            file.
        clips: integer types that its Clip accepts; activations with fewer bits than their type need such a Clip.
        quantizes_last_layers: the last layers of each branch run on integers.
        float_last: rule for last Convs that stay float although they could run on integers; None: no such Conv.
        float_silu_stride: a 1x1 Conv in front of a SiLU has a float output if its stride relative to the image is at
            least this, or if the SiLU leads to a last layer. Quantizing the input of a SiLU costs more accuracy than
            any other activation, and saves no time that deep in a network. Requires the pass `pointwise-to-matmul`.
        float_silu_positions: so it has, too, if its output has at most this many positions, whatever the stride.
        fused_activations: operators that the runtime fuses with the Conv before them if the Q follows both.
        scaling_stride: scales migrate from activations into weights where a Mul by a constant for each channel, between
            a float node and a Q, costs next to no time: in front of tensors whose stride relative to the image is at
            least this. 1: everywhere, because the runtime fuses the Mul; None: nowhere.
        float_depthwise: depthwise Convs stay float. Their channels share one scale but are convolved separately, so
            channels of small values lose their precision; and because they are memory-bound, integers save little time.
        behind_depthwise: a 1x1 Conv with at most this many input channels stays float behind a float depthwise Conv, or
            behind another such 1x1 Conv: to quantize its input and to convert the layout take more time than integers
            save. If no other layer runs on integers, these do.
        stem: rule for Convs near the image that stay float; None: no such Conv.
        few_channels: rule for Convs with too few channels for an integer kernel; None: no such Conv.
        misfused_silu: whether the runtime computes a fused SiLU of wide integers and of this height and width wrongly.
            The gate of such a SiLU, the output of its Sigmoid, has 8 bits, so that the runtime does not fuse it.
        miscomputed: returns how the runtime computes a node wrongly on integers, or an empty text; None: no node. It
            stays float, and reads the float tensor, so that the runtime cannot fuse it with Q and DQ.
        misread: returns how the runtime computes a node otherwise than ONNX, in float as well, or an empty text; None:
            no node. It is warned of.
        bypasses_dq: operators whose float nodes read the float tensor even if a dequantized one exists.
        file_rules: returns a message for each part of a file that the runtime refuses or misreads; None: ONNX's rules
            suffice.
        runtime: key in `onnxq.runtime.RUNTIMES` of the runtime that checks the result if it is installed; None: none.
        runs_on_cpus: its files run on CPUs too, some of which saturate sums of two 8-bit products at 16 bits.
    """

    name: str
    title: str
    rules: Mapping[str, Rule]
    activations: tuple[Container, ...] = (UINT8,)
    weights: tuple[Container, ...] = (INT8,)
    symmetric_activations: bool = False
    symmetric_weights: bool = True
    quantizes_decode: bool = False
    least_decode_bits: int = 0
    float_joins: bool = False
    lowering: tuple[str, ...] = ()
    min_opset: int = 13
    strongly_typed: bool = False
    takes_int4: bool = False
    clips: tuple[Container, ...] = (UINT8, INT8)
    quantizes_last_layers: bool = True
    float_last: FloatLastRule | None = None
    float_silu_stride: int | None = None
    float_silu_positions: int = 0
    fused_activations: frozenset[str] = frozenset()
    scaling_stride: int | None = None
    float_depthwise: bool = False
    behind_depthwise: int = 0
    stem: FloatStemRule | None = None
    few_channels: FewChannelsRule | None = None
    misfused_silu: Callable[[int, int], bool] | None = None
    miscomputed: Callable[[Node], str] | None = None
    misread: Callable[[Node], str] | None = None
    bypasses_dq: frozenset[str] = frozenset()
    file_rules: Callable[[onnx.ModelProto], list[str]] | None = None
    runtime: str | None = None
    runs_on_cpus: bool = True

    def activation_scheme(self, bits: int, *, symmetric: bool = False, half: bool = False) -> Scheme:
        """Return the scheme of activations of this width, in the narrowest type that holds it.

        Args:
            bits: width of the integers.
            symmetric: the zero point is in the middle even if the target does not require it.
            half: scales are float16 values.

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
        """Return the lowest ONNX opset for this target with integers of these schemes."""
        return max([self.min_opset, *(scheme.container.opset for scheme in schemes)])

    @property
    def lowers_pointwise(self) -> bool:
        """Whether `pointwise-to-matmul` lowers an integer 1x1 Conv to a matrix product with a float output."""
        return POINTWISE_TO_MATMUL in self.lowering

    def _container(self, allowed: Sequence[Container], bits: int, kind: str) -> Container:
        fitting = [each for each in allowed if MIN_BITS <= bits <= each.bits]
        if not fitting:
            most = max(each.bits for each in allowed)
            raise ConfigError(f"{bits} bits: {kind} of {self.title} have {MIN_BITS} to {most} bits")
        return min(fitting, key=lambda each: each.bits)
