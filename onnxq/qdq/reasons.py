"""Reasons why nodes stay float: the codes, their meaning, and the functions that decide them."""

from enum import StrEnum
from typing import Self

from onnxq.facts import Reason


class Code(StrEnum):
    """Stable names of the reasons.

    Attributes:
        summary: one line, without the numbers of a node.
        rule: the function that decides it, as `module:function`.
        is_choice: the node can run on integers, so `--include` overrules the reason.
    """

    summary: str
    rule: str
    is_choice: bool

    def __new__(cls, code: str, summary: str, rule: str, is_choice: bool = False) -> Self:
        """Make a member whose value is the code alone."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.summary, member.rule, member.is_choice = summary, rule, is_choice
        return member

    EXCLUDED = "excluded", "excluded", "qdq.selection:refuse"
    DECODE = "decode", "decode after the last layers", "qdq.selection:refuse"
    LOST_CHANNELS = (
        "lost-channels",
        "one scale for all channels, of its input or its weights, loses those that it needs",
        "qdq.lost_channels:lost_layers",
        True,
    )
    JOINS_SCORES = (
        "joins-scores",
        "joins scores with values of another size, which one scale does not hold",
        "qdq.network:Network.joins_scores",
        True,
    )
    NOT_FLOAT32 = "not-float32", "does not compute on float32", "qdq.selection:_node_refusal"
    NO_RULE = "no-rule", "the target runs the operator in float", "qdq.selection:_node_refusal"
    MISCOMPUTED = "miscomputed", "the target's runtime computes it wrongly on integers", "qdq.selection:_node_refusal"
    MODEL_OUTPUT = "model-output", "makes an output of the model", "qdq.selection:_makes_a_float_output"
    WEIGHT_NOT_CONSTANT = "weight-not-constant", "its weight is not constant", "qdq.selection:_layer_refusals"
    NOT_A_PLAIN_PRODUCT = "not-a-plain-product", "is not x W + b with a matrix W", "qdq.selection:_is_plain_product"
    LAST_LAYER = "last-layer", "last layer of its branch", "qdq.selection:_layer_refusals", True
    DEPTHWISE = "depthwise", "depthwise Conv", "qdq.selection:_quantized_anyway", True
    BEHIND_DEPTHWISE = (
        "behind-depthwise",
        "1x1 Conv with few channels behind a float depthwise Conv",
        "qdq.selection:_FloatChannels.refusal",
        True,
    )
    STEM = "stem", "near the image, with few channels", "targets.stem:FloatStemRule.convs", True
    TOO_FEW_CHANNELS = (
        "too-few-channels",
        "too few channels for integers",
        "targets.few_channels:FewChannelsRule.keeps_float",
        True,
    )
    NO_FUSED_LAYER = "no-fused-layer", "fuses with no layer on integers", "qdq.network:Network.residual_layer"
    NO_CONSUMER = "no-consumer", "no consumer runs on integers", "qdq.selection:demand", True
    FLOAT_PRODUCER = "float-producer", "reads the float output of a layer", "qdq.selection:withdraw"
    FLOAT_INPUTS = "float-inputs", "its inputs are float, integers save no time", "qdq.selection:_follows_floats", True
    FLOAT_DECODE = "float-decode", "the decode before it is float", "qdq.selection:_follows_floats", True

    def reason(self, detail: str = "") -> Reason:
        """Return the reason of one node; `detail` has its numbers and is the summary if there are none."""
        return Reason(self.value, f"{self.value}: {detail or self.summary}")


_CODES: dict[str, Code] = {code.value: code for code in Code}


def summary_of(reason: Reason) -> str:
    """Return the text of a reason without the numbers of a node: the summary of its code, if the code is known."""
    code = _CODES.get(reason.code)
    return reason.text if code is None else code.summary


def is_choice(reason: Reason) -> bool:
    """Return whether the node can run on integers, so that `--include` overrules the reason."""
    return reason.code in _CODES and _CODES[reason.code].is_choice
