"""Pipeline hooks: time, log and save the model after each pass."""

import logging
from pathlib import Path

from onnxq.errors import ConfigError
from onnxq.ir import Model, storage
from onnxq.pipeline import Analysis, Hook, Pass, Rewrite

__all__ = ["log_passes", "save_each", "time_passes"]

log = logging.getLogger(__name__)


def time_passes(seconds_by_name: dict[str, float]) -> Hook:
    """Return a hook that adds the seconds of each pass to a dictionary, by name."""

    def hook(step: Pass, model: Model, result: object, seconds: float) -> None:
        seconds_by_name[step.name] = seconds_by_name.get(step.name, 0.0) + seconds

    return hook


def log_passes(step: Pass, model: Model, result: object, seconds: float) -> None:
    """Log one line for each pass."""
    if isinstance(step, Analysis):
        outcome = f"found {', '.join(kind.__name__ for kind in step.kinds())}"
    else:
        outcome = f"{result} edit{'' if result == 1 else 's'}"
    log.info("%-19s %-41s %6.2f s", step.name, outcome, seconds)


def save_each(folder: Path) -> Hook:
    """Return a hook that saves the model after each rewrite that edits it, as `04-fold-constants.onnx`.

    Args:
        folder: created at the first file.

    Raises:
        ConfigError: by the hook, if the folder cannot be created or a file cannot be written.
    """
    number = 0

    def hook(step: Pass, model: Model, result: object, seconds: float) -> None:
        nonlocal number
        number += 1
        if isinstance(step, Rewrite) and result:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{folder}: cannot be created ({error.strerror}); choose another place") from None
            storage.save(model.to_linked_proto(), folder / f"{number:02}-{step.name}.onnx")

    return hook
