"""Options as users type them: errors of the Python interface name its fields, `act_bits`, and not `--act-bits`."""

import dataclasses
import re

from onnxq.config import Config
from onnxq.evaluation.predictor import Settings

_OTHER_WORDS = {"confidence": "--conf"}
"""Field -> its option, where the two differ by more than hyphens."""


def option_of(field: str) -> str:
    """Return the option of a field of `Config` or `Settings`."""
    return _OTHER_WORDS.get(field, "--" + field.replace("_", "-"))


_FIELDS = "|".join(field.name for kind in (Config, Settings) for field in dataclasses.fields(kind))

_FIELD = re.compile(rf"^((?:[^:\n]+: )?)({_FIELDS})(?=: )")
"""A field that begins a message, or follows what the message is about, as in `model.onnx: layout: ...`."""


def with_options(message: str) -> str:
    """Return the message of an error with the option in the place of the field that it begins with."""
    return _FIELD.sub(lambda found: found[1] + option_of(found[2]), message)
