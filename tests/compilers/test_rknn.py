import sys

import numpy as np
import pytest
from graphs import DETECTORS, Net, attention, classifier, quantized, rewrite, run, sqnr, v8
from installed import interpreter, needs_compiler

from onnxq.compilers.base import Job, Ran
from onnxq.compilers.layers import NO_QUANTIZE, file_layers
from onnxq.compilers.rknn import Rknn, misread, operators, why_float
from onnxq.errors import ConfigError
from onnxq.ir import ProtoIndex
from onnxq.passes.own_dequantize import OwnDequantize
from onnxq.passes.split_max_pool import SplitMaxPool
from onnxq.targets import TARGETS

HEAD = "D RKNN: [06:08:38.319] "
LOG = "\n".join(HEAD + line for line in (
    ">>>>>> start: rknn::RKNNAddFirstConv",
    "ID   OpType         DataType Target InputShape          OutputShape    Cycles  RW(KB) FullName        ",
    "0    InputOperator  INT8     CPU    \\                   (1,3,160,160)  0/0/0   0      InputOperator:images",
    "1    Conv           INT8     NPU    (1,3,160,160),(16)  (1,16,80,80)   9/5/9   77     Conv:/stem/Conv",
    "2    exSwish        INT8     NPU    (1,16,80,80)        (1,16,80,80)   0/0/0   200    exSwish:/stem/Mul_2",
    "3    ConvExSwish    INT8     NPU    (1,16,80,80),(24)   (1,24,40,40)   6/1/1   103    Conv:/a b/Conv",
    "4    Conv           FLOAT16  NPU    (4,16,1,500),(1)    (4,1,1,500)    4/4/1   62     Conv:/ReduceSum_2conv",
    "5    Reshape        FLOAT16  CPU    (1,10,1,500),(3)    (1,10,500)     0/0/0   9      Reshape:output0-rs",
    "6    OutputOperator FLOAT16  CPU    (1,10,500)          \\              0/0/0   9      OutputOperator:output0",
    "7    Conv           INT8     NPU    (1,8,1,1),(9)       (1,9,1,1)      9/9/9   1      Conv:/linear/Gemm#2",
    "8    exMatMul       INT8     NPU    (2,8,1,1),(9)       (2,9,1,1)      9/9/9   1      exMatMul:/split#1",
    "9    exMatMul       FLOAT16  NPU    (2,8,1,1),(9)       (2,9,1,1)      9/9/9   1      exMatMul:/split#2",
    "10   Conv           INT8     NPU    (2,8,1,1),(9)       (2,9,1,1)      9/9/9   1      Conv:/split#3",
))  # fmt: skip
"""Lines of rknn-toolkit2 2.5.0's build log, some columns narrower."""


def test_the_table_of_operators_is_read():
    layers, on_cpu = operators(LOG)
    assert {name: ran for name, ran in layers.items() if "#" not in name} == {
        "/stem/Conv": Ran("int8 x int8", True),
        "/a b/Conv": Ran("int8 x int8", True),
        "/ReduceSum_2conv": Ran("float16", False),
        "/linear/Gemm": Ran("int8 x int8", True),  # the toolkit numbers the nodes that it makes of one
        "/split": Ran("float16", False),
    }
    assert layers["/split#1"].on_integers
    assert on_cpu == ["output0-rs (Reshape)"]


def test_what_stands_around_a_layer_tells_why_it_is_float():
    model, _ = quantized(DETECTORS["v5_raw"](), TARGETS["generic"])
    index = ProtoIndex(model.graph)
    told = {layer.name: why_float(index, layer) for layer in file_layers(model)}
    assert told["conv2"] == ""
    assert told["conv3"] == "a float node reads its DequantizeLinear, too: detect0"
    assert told["detect0"] == NO_QUANTIZE


@pytest.mark.parametrize(("counts", "size", "sentences"), [(1, 25, 1), (1, 24, 0), (0, 25, 0)])
def test_poolings_that_the_toolkit_computes_wrongly_are_told(counts, size, sentences):
    net = Net(size=size)
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": counts}
    x = net.block("images", 8, 3)
    y = net.add("AveragePool", x, name="pool", **pool)
    net.channels[y] = 8
    model, _ = quantized(net.model(net.conv(net.block(y, 8, 3), 4)), TARGETS["generic"])
    told = list(misread(model))
    assert len(told) == sentences
    assert all(text.startswith("rknn-toolkit2 computes AveragePool 'pool' otherwise than ONNX") for text in told)


@pytest.mark.slow
@needs_compiler("rknn")
def test_a_wide_max_pool_is_computed_as_the_file_has_it(tmp_path):
    """In findings/rknn_max_pool_edges.sh the toolkit takes values below 0 near the edges for 0."""
    net = Net(size=32)
    x = net.block("images", 16, 3)
    x = net.add("Sub", net.add("Sigmoid", x), net.const(np.float32(1)))  # below 0
    y = net.add("MaxPool", x, kernel_shape=[13, 13], pads=[6] * 4)
    net.channels[y] = 16
    model, facts = quantized(net.model(net.conv(net.block(y, 16, 3), 4)), TARGETS["generic"])
    split, edits = rewrite(SplitMaxPool(), model, facts)
    assert edits == 1
    feed = {"images": np.random.default_rng(0).random((1, 3, 32, 32), np.float32)}
    job = Job(split, file_layers(split), [feed], tmp_path, "", interpreter("rknn") or sys.executable, 300.0)
    [outputs] = Rknn().build(job).outputs
    [(name, expected)] = run(model, feed).items()
    assert sqnr(expected, outputs[name]) > 20


@pytest.mark.slow
@needs_compiler("rknn")
def test_a_dequantize_linear_of_their_own_for_float_nodes_keeps_convs_on_integers(tmp_path):
    before, facts = quantized(DETECTORS["v5_raw"](), TARGETS["generic"])
    after, _ = rewrite(OwnDequantize(), before, facts)
    ran = []
    for number, model in enumerate((before, after)):
        folder = tmp_path / str(number)
        folder.mkdir()
        job = Job(model, file_layers(model), (), folder, "", interpreter("rknn") or sys.executable, 300.0)
        layers = Rknn().build(job).layers
        ran.append([layer.name for layer in job.layers if layer.is_wanted and not layers[layer.name].on_integers])
    assert ran == [["conv3", "conv4"], []]


def test_where_it_is_not_installed_a_line_tells_how_to_get_it():
    with pytest.raises(ConfigError, match=r"^rknn-toolkit2 is not installed; .*--python rknn/bin/python$"):
        Rknn().require(sys.executable)


@pytest.mark.slow
@needs_compiler("rknn")
@pytest.mark.parametrize("build", [v8, attention, classifier])
def test_a_file_runs_in_the_simulator(build, tmp_path):
    model, _ = quantized(build(), TARGETS["generic"])
    [value] = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    feed = {value.name: np.random.default_rng(0).random(shape, np.float32)}
    job = Job(model, file_layers(model), [feed], tmp_path, "", interpreter("rknn") or sys.executable, 300.0)
    built = Rknn().build(job)
    assert all(layer.name in built.layers for layer in job.layers)
    [outputs] = built.outputs
    assert set(outputs) == {output.name for output in model.graph.output}
