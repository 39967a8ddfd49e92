"""The script that makes the table of docs/cpus.md, on a small graph."""

import numpy as np
import onnx
import pytest
from graphs import depthwise_net, quantized, saturating, with_metadata

from docs.tools import cpu_kinds, cpus
from docs.tools.cpus import NotRun, Settings
from onnxq.errors import ConfigError
from onnxq.targets import GENERIC


@pytest.fixture
def bench(tmp_path):
    """Return a function that makes a bench with a float model, and its quantized file."""

    def make(model=None, **options):
        model = with_metadata(saturating() if model is None else model)
        onnx.save(model, tmp_path / "net.onnx")
        result, _ = quantized(model, GENERIC, limited=False)
        result.metadata_props.add(key="onnxq.target", value="generic")
        onnx.save(result, tmp_path / "net-generic.onnx")
        given = {"rounds": 0, "stored": False, "cpus": ("native",), "runtimes": ("ort",), **options}
        settings = Settings([tmp_path / "net.onnx"], None, 1, threads=1, folder=tmp_path / "kept", timeout=300, **given)
        return cpus.Bench(settings), tmp_path / "net-generic.onnx", settings

    return make


def available(cpu, folder):
    """Skip the test if a kind of CPU cannot be had."""
    try:
        cpu_kinds.KINDS[cpu].launcher(folder)
    except cpu_kinds.Unavailable as error:
        pytest.skip(str(error))


def test_a_file_on_this_cpu(bench):
    opened, path, _ = bench(depthwise_net())
    file = opened.file(path)
    cell = opened.cell(file, "native", "ort")
    assert file.target == "generic"
    assert list(cell.exact) == list(cell.real) == list(file.simulated) == ["output"]
    assert cell.exact["output"] > 25
    assert cell.real["output"] == pytest.approx(file.simulated["output"], abs=2)
    assert cell.least is None


@pytest.mark.parametrize("cpu", ["no-vnni", "avx2", pytest.param("haswell", marks=pytest.mark.slow)])
def test_sums_saturate_without_vnni(bench, cpu, tmp_path):
    available(cpu, tmp_path)
    opened, path, _ = bench()
    cell = opened.cell(opened.file(path), cpu, "ort")
    assert cell.exact["output"] < 15


@pytest.mark.parametrize("cpu", ["no-amx", "avx-vnni", "sse42", pytest.param("nehalem", marks=pytest.mark.slow)])
def test_sums_are_exact_with_vnni_and_with_sse(bench, cpu, tmp_path):
    available(cpu, tmp_path)
    opened, path, _ = bench()
    cell = opened.cell(opened.file(path), cpu, "ort")
    if "signal 4" in cell.failed:
        pytest.skip(f"onnxruntime has an instruction that this CPU lacks: {cell.failed}")
    assert cell.exact["output"] > 40


def test_times_are_paired_with_the_float_model(bench):
    opened, path, _ = bench(rounds=2)
    cell = opened.cell(opened.file(path), "native", "ort")
    assert cell.least > 0
    assert cell.median > 0


def test_results_are_kept(bench):
    opened, path, settings = bench()
    first = opened.cell(opened.file(path), "native", "ort")
    again, _, _ = bench(stored=True)
    assert again.cell(again.file(path), "native", "ort") == first
    with pytest.raises(NotRun):
        again.cell(again.file(path), "haswell", "ort")
    assert len(list(settings.folder.glob("runs/*.npz"))) == 3


def test_a_failure_is_told(bench):
    opened, path, settings = bench()
    file = opened.file(path)
    wrong = settings.folder / "wrong.npz"
    np.savez(wrong, **{"0/another": np.zeros(1, np.float32)})
    refused = cpus.File(file.path, file.plain, file.target, wrong, file.simulated)
    with pytest.raises(cpus.Failure, match="another"):
        opened.cell(refused, "native", "ort")


def test_the_tables(bench):
    _, path, settings = bench(depthwise_net(), cpus=("native", "haswell"))
    cpus.Bench(settings).file(path)
    lines = list(cpus.markdown([path], settings.__class__(**{**vars(settings), "cpus": ("native",)})))
    assert lines[2] == "| net in onnxruntime | generic |"
    assert lines[4].startswith("| exact | - / ")
    assert lines[5].startswith(f"| this one: {cpu_kinds.this_cpu()} | ")
    assert len(lines) == 6


def test_a_kind_that_is_not_there_is_told(bench, monkeypatch):
    def launcher(_):
        raise cpu_kinds.Unavailable("it is sold out")

    monkeypatch.setitem(cpu_kinds.KINDS, "a76", cpu_kinds.Kind("Cortex-A76", "emulated", launcher))
    _, path, settings = bench(depthwise_net(), cpus=("a76",))
    assert list(cpus.markdown([path], settings))[-1] == "- Cortex-A76 was not measured: it is sold out"


def test_a_clear_loss_is_bold():
    file = cpus.File(None, None, "ort", None, {"a": 40.0, "b": 30.0})
    assert cpus._text(file, cpus.Cell({"a": 50.0, "b": 45.0}, {"a": 39.0, "b": 28.0})) == "45.0 / 28.0"
    assert cpus._text(file, cpus.Cell({"a": 50.0, "b": 45.0}, {"a": 36.0, "b": 30.0})) == "**45.0 / 30.0**"
    assert cpus._text(file, cpus.Cell({"a": 50.0}, {"a": 40.0, "b": 30.0}, 1.5, 1.4)) == "50.0 / 30.0, 1.50x (1.40)"
    assert cpus._text(file, cpus.Cell(failed="because")) == "fails"
    assert cpus._text(file, None) == ""


def test_the_table_of_a_page_is_replaced():
    page = f"before\n\n{cpus._BEGIN}\n\nold\n\n{cpus._END}\nafter\n"
    assert cpus.replaced(page, "new") == f"before\n\n{cpus._BEGIN}\n\nnew\n\n{cpus._END}\nafter\n"
    with pytest.raises(ConfigError, match="no place for the table"):
        cpus.replaced("before\n", "new")
