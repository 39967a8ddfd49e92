"""Results of a script that measures for hours, in a file from which the next run continues."""

import hashlib
import json
from pathlib import Path
from typing import Any

from onnxq.errors import ConfigError
from onnxq.ir.files import atomic_write, check_writable

_FORMAT = "onnxq q_yolo 1"


class Cache:
    """Results in a JSON file, keyed by a digest of everything that they depend on.

    Raises:
        ConfigError: the file is not a cache of this script, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        check_writable(path)
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            known = stored["format"] == _FORMAT
            self.results = stored["results"]
        except (ValueError, KeyError, TypeError, OSError):
            known = False
        if not known:
            raise ConfigError(f"--cache {path}: not a cache of this script; remove it, or give another name")

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Add a result and write the file."""
        self.results[key] = result
        with atomic_write(self.path) as temporary:
            temporary.write_text(
                json.dumps({"format": _FORMAT, "results": self.results}, indent=1) + "\n", encoding="utf-8"
            )


def digest(*parts: object) -> str:
    """Return a digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
