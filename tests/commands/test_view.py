import importlib.util
import socket
import subprocess
import sys
import urllib.request

import onnx
import pytest
from graphs import csp

from onnxq.errors import ConfigError, ModelError
from onnxq.view import main, serve

needs_netron = pytest.mark.skipif(importlib.util.find_spec("netron") is None, reason="Netron is not installed")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "a b.onnx"
    onnx.save(csp(), path)
    return path


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@needs_netron
def test_the_model_is_served(model, port):
    command = [sys.executable, "-m", "onnxq.view", str(model), "--port", str(port), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ran:
        try:
            assert ran.stdout.readline() == f"{model} is at http://localhost:{port}; Ctrl+C stops the server\n"
            with urllib.request.urlopen(f"http://localhost:{port}/") as page:
                assert "netron" in page.read().decode().lower()
            with urllib.request.urlopen(f"http://localhost:{port}/data/a%20b.onnx") as file:
                assert file.read() == model.read_bytes()
        finally:
            ran.terminate()


@needs_netron
def test_a_port_that_is_taken(model):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {number}: cannot be used .*; give another"):
            serve(model, number, browse=False)


def test_without_netron_it_is_said_how_to_get_it(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "netron", None)
    assert main([str(model), "--no-browser"]) == 1
    assert "error: Netron is not installed: pip install 'onnxq[view]'" in capsys.readouterr().err


def test_no_such_file(tmp_path):
    with pytest.raises(ModelError, match=r"none\.onnx: no such file"):
        serve(tmp_path / "none.onnx", browse=False)


@pytest.mark.parametrize("options", [["--port", "0"], ["--port", "70000"], ["--port", "x"]])
def test_usage(model, options):
    with pytest.raises(SystemExit) as ended:
        main([str(model), *options])
    assert ended.value.code == 2
