"""What can be hung on a pipeline; the passes know nothing of it."""

import logging
from pathlib import Path

from onnxq.errors import ConfigError
from onnxq.ir import Model, storage
from onnxq.pipeline import Analysis, Hook, Pass, Rewrite

__all__ = ["log_passes", "save_each", "time_passes"]

log = logging.getLogger(__name__)


def time_passes(seconds_by_name: dict[str, float]) -> Hook:
    """Record the seconds that each pass took."""

    def hook(step: Pass, model: Model, result: object, seconds: float) -> None:
        seconds_by_name[step.name] = seconds_by_name.get(step.name, 0.0) + seconds

    return hook


def log_passes(step: Pass, model: Model, result: object, seconds: float) -> None:
    """Log a line per pass."""
    edits = f"{result} edit{'' if result == 1 else 's'}"
    kinds = ", ".join(kind.__name__ for kind in step.kinds()) if isinstance(step, Analysis) else ""
    what = edits if isinstance(step, Rewrite) else f"found {kinds}"
    log.info("%-19s %-19s %6.2f s", step.name, what, seconds)


def save_each(folder: Path) -> Hook:
    """Save the model to `folder` after each rewrite that edited it, as `04-fold-constants.onnx`."""
    number = 0

    def hook(step: Pass, model: Model, result: object, seconds: float) -> None:
        nonlocal number
        number += 1
        if isinstance(step, Rewrite) and result:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{folder}: cannot be made ({error.strerror}); choose another place") from None
            storage.save(model.to_proto(), folder / f"{number:02}-{step.name}.onnx")

    return hook
