"""Where each runtime wants its Q/DQ pairs, as data.

A target is a table of rules by operator. The placement of each follows what its runtime was measured to fuse: a Q/DQ
pair that is not fused away costs a pass over memory, and one that is missing leaves the node in float. TensorRT was
not measured: its placement is from NVIDIA's documentation ("Explicit Quantization") and tools (Model-Optimizer).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from onnxq.errors import ConfigError
from onnxq.numerics.scheme import MAX_BITS, Scheme
from onnxq.targets.stem import FloatStemRule

_CHANNELS_AT_ONCE = 8
"""TensorRT's integer kernels for few channels take them in bundles of this many."""


class Role(Enum):
    """What kind of thing a node does to the integers that it is given."""

    LAYER = "has weights: runs on integers whenever its target can"
    ELEMENTWISE = "computes: runs on integers where what it makes is wanted as integers"
    CARRIER = "moves values or picks among them: its output stands on the grid of its input"


@dataclass(frozen=True)
class Rule:
    """How nodes of one operator are quantized.

    Attributes:
        role: see `Role`.
        input: a Q stands in front of the node. Without one, and without one behind, it rides along: the runtime moves
            the Q of others across it.
        output: a Q stands behind the node.
        shared: input and output are on one grid; a Concat's inputs only where nothing else reads them.
        behind_integers: stays float where what it reads is made by a float node, as it is no slower then.
        binding: a Concat's inputs are on its grid also where others read them.
        residual: an Add that is one with the layer of one of its inputs; a Q stands in front of the other one only.
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
        name: on the command line.
        title: in words.
        rules: operator -> rule. Operators without a rule stay float.
        signed: activations are int8 rather than uint8.
        symmetric: activations have their zero point in the middle.
        takes_half: it keeps to the types in the file, which can be float16 where nothing is on integers.
        takes_int4: weights can be stored as int4 (ONNX, opset 21): where it loads a file, it makes int8 of them.
        narrow_activations: activations can have fewer than 8 bits, for which integers pass through a Clip.
        last_layers: the last Convs run on integers.
        least_stride: 1x1 Convs run as products of integers with a float output where nobody wants it as integers; and
            where it goes into a SiLU, if the image is down to this fraction of its height there or a last layer is
            next. To put what goes into a SiLU on a grid costs the most accuracy of all; so far down the network it
            saves no time. None: they run as Convs.
        fused_activations: operators that are one with the Conv before them when the Q stands behind both.
        expand_softmax: a Softmax over another axis than the last is faster in the steps that it is defined by.
        upsample_to_concat: a nearest Resize of integers is faster as copies of rows and columns.
        float_depthwise: depthwise Convs stay float. Each convolves a channel by itself, so that channels of small
            values drown in a scale shared with those of large ones; and they gain little, as they wait for memory.
        stem: which Convs near the image stay float; None: none.
        least_channels: Convs with fewer input or output channels stay float where they have no kernel: `is_too_narrow`.
        float_readers: operators whose nodes, where they stay float, go on reading the float tensor, not the
            dequantized one.
        checks_parser: onnx-tensorrt is what reads it, so that the file is held against its rules.
        runtime: what runs it, of those that may be on this machine, so that its work can be checked.
    """

    name: str
    title: str
    rules: Mapping[str, Rule]
    signed: bool = False
    symmetric: bool = False
    takes_half: bool = False
    takes_int4: bool = False
    narrow_activations: bool = True
    last_layers: bool = True
    least_stride: int | None = None
    fused_activations: frozenset[str] = frozenset()
    expand_softmax: bool = False
    upsample_to_concat: bool = False
    float_depthwise: bool = False
    stem: FloatStemRule | None = None
    least_channels: int = 0
    float_readers: frozenset[str] = frozenset()
    checks_parser: bool = False
    runtime: str | None = None

    def scheme(self, bits: int, symmetric: bool = False) -> Scheme:
        """Scheme of this target's activations.

        Raises:
            ConfigError: the target cannot have activations of so few bits.
        """
        if bits < MAX_BITS and not self.narrow_activations:
            raise ConfigError(
                f"--act-bits {bits}: {self.title} has no Clip of integers, which narrow activations need; "
                f"use --act-bits {MAX_BITS} (--weight-bits can be less)"
            )
        return Scheme(bits, self.signed, self.symmetric or symmetric)

    def is_too_narrow(self, weight: Sequence[int], group: int, first: bool) -> bool:
        """Whether a Conv has so few channels that there is no good integer kernel for it.

        NVIDIA's rule for INT8 (Model-Optimizer, `find_nodes_from_convs_to_exclude`): of the narrow Convs those without
        groups need a square kernel, a multiple of 8 channels on one side, and enough channels on one side unless they
        are the first ones; those with groups, as depthwise ones, 8 k output channels and a kernel of at least 3.

        Args:
            weight: its shape, (output channels, input channels / group, kernel...).
            group: number of groups.
            first: no layer stands before it.
        """
        outputs, inputs, *kernel = weight
        if min(outputs, inputs) >= self.least_channels:
            return False
        if group > 1:
            return outputs % _CHANNELS_AT_ONCE != 0 or min(kernel) < 3
        wide = first or max(outputs, inputs) >= self.least_channels
        bundled = outputs % _CHANNELS_AT_ONCE == 0 or inputs % _CHANNELS_AT_ONCE == 0
        return not (wide and bundled and len(set(kernel)) == 1)
