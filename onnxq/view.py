"""Shows a model in Netron: `python -m onnxq.view MODEL`.

Netron (https://netron.app, `pip install 'onnxq[view]'`) shows the graph in a browser, with the doc string of each node:
onnxq writes the range, or the reason why the node stays float, into it.
"""

import argparse
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from onnxq.console.terminal import OUT, Parser, guarded, model_file
from onnxq.errors import ConfigError, ModelError
from onnxq.ir.files import why_missing

__all__ = ["main", "serve"]

_LAST_PORT = 65535


def serve(model: Path, port: int | None = None, browse: bool = True) -> str:
    """Start a Netron server for a model on this machine; it runs until the process ends.

    Args:
        model: the model's file.
        port: port of the server; None: any free port.
        browse: whether to open a browser.

    Returns:
        The URL of the page.

    Raises:
        ModelError: the file does not exist.
        ConfigError: Netron is not installed, or the port cannot be used.
    """
    if not os.path.isfile(model):
        raise ModelError(f"{model}: {why_missing(model)}")
    netron = _netron()
    try:
        host, taken = netron.start(str(model), address=("localhost", port), browse=browse)
    except OSError as error:
        raise ConfigError(f"--port {port}: cannot be used ({error.strerror}); give another, or none") from None
    return f"http://{host}:{taken}"


def _netron() -> ModuleType:
    try:
        return import_module("netron")
    except ImportError:
        remedy = "pip install 'onnxq[view]', or open the file on netron.app"
        raise ConfigError(f"Netron is not installed: {remedy}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser("python -m onnxq.view", description="Show a model's graph in Netron.")
    parser.add_argument("model", metavar="MODEL", type=model_file, help="model file, or demo for the demo model")
    parser.add_argument("--port", metavar="N", type=int, help="port of the server (default: any free port)")
    parser.add_argument("--no-browser", action="store_true", help="print the URL, but open no browser")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    arguments = parser.parse_args(argv)
    if arguments.port is not None and not 0 < arguments.port <= _LAST_PORT:
        parser.error(f"--port {arguments.port}: expected 1 to {_LAST_PORT}")
    return guarded(lambda: _view(arguments), arguments.debug)


def _view(arguments: argparse.Namespace) -> None:
    address = serve(arguments.model, arguments.port, not arguments.no_browser)
    OUT.print(f"{arguments.model} is at {address}; Ctrl+C stops the server")
    _netron().wait()


if __name__ == "__main__":
    raise SystemExit(main())
