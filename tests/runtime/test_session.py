from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import feed, quantized, saturating
from graphs import run as run_as_it_is
from onnx import helper, parser
from texts import DOUBLE, HEAD, THREE_OUTPUTS, rows

from onnxq.errors import ModelError
from onnxq.runtime import streaming
from onnxq.runtime.session import cores, fitted, iter_outputs, limited_cores, open_session, run, run_named
from onnxq.targets import OPENVINO, ORT

TWO_NODES = parser.parse_model(
    f"{HEAD} g (float[2] x) => (float[2] y) <float one = {{1}}> {{ t = Identity(one) y = Add(x, t) }}"
)


class TestOpenSession:
    def test_runs_a_model_and_a_file(self, tmp_path):
        onnx.save(DOUBLE, tmp_path / "a.onnx")
        for source in (DOUBLE, tmp_path / "a.onnx"):
            [y] = run(open_session(source), rows(3))
            np.testing.assert_array_equal(y, [[6, 6]])

    @pytest.mark.parametrize("content", [None, b"", b"hello, world"])
    def test_a_file_that_cannot_be_loaded(self, tmp_path, content):
        path = tmp_path / "a.onnx"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=r"^onnxruntime cannot load the model: .*a\.onnx") as caught:
            open_session(path)
        assert "\n" not in str(caught.value)

    def test_a_model_that_is_not_valid(self):
        model = parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = NoSuchOperator(x) }}")
        with pytest.raises(ModelError, match=r"^onnxruntime cannot load the model: .*NoSuchOperator") as caught:
            open_session(model)
        assert caught.value.__cause__ is not None

    def test_optimized_or_as_it_is(self, tmp_path):
        for optimized, ops in ((True, ["Add"]), (False, ["Identity", "Add"])):
            path = tmp_path / f"{optimized}.onnx"
            made = open_session(TWO_NODES, optimized=optimized, optimized_path=path)
            assert [node.op_type for node in onnx.load(path).graph.node] == ops
            np.testing.assert_array_equal(run(made, {"x": np.float32([1, 2])})[0], [2, 3])

    @pytest.mark.parametrize("target", [ORT, OPENVINO], ids=lambda t: t.name)
    def test_exact_is_what_the_file_says_on_every_cpu(self, target):
        model, _ = quantized(saturating(), target, limited=False)
        values = feed(model)
        expected = run_as_it_is(model, values)["output"]
        for made in (open_session(model, exact=True), streaming.open_worker_session(model, 1)):
            np.testing.assert_allclose(run(made, values)[0], expected, rtol=1e-5)

    def test_exact_runs_no_layer_on_integers(self, tmp_path):
        for exact in (True, False):
            open_session(quantized(saturating(), limited=False)[0], exact=exact, optimized_path=tmp_path / "run.onnx")
            found = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
            assert bool({"QLinearConv", "QGemm"} & {*found}) is not exact

    def test_threads_are_as_asked_for(self):
        assert open_session(DOUBLE, threads=3).get_session_options().intra_op_num_threads == 3

    def test_nothing_is_printed(self, capfd):
        # onnxruntime warns of initializers that nothing reads.
        model = onnx.ModelProto()
        model.CopyFrom(DOUBLE)
        model.graph.initializer.append(helper.make_tensor("unused", onnx.TensorProto.FLOAT, [1], [0.0]))
        run(open_session(model), rows(1))
        assert capfd.readouterr() == ("", "")


class TestRun:
    def test_all_outputs_or_only_some_in_their_order(self):
        made = open_session(THREE_OUTPUTS)
        assert [float(y[0, 0]) for y in run(made, rows(-1))] == pytest.approx([1, 1, np.exp(-1)])
        assert [float(y[0, 0]) for y in run(made, rows(-1), ["c", "a"])] == pytest.approx([np.exp(-1), 1])

    def test_an_output_that_is_an_input_is_a_copy(self):
        model = onnx.ModelProto()
        model.CopyFrom(DOUBLE)
        model.graph.output.append(model.graph.input[0])
        values = rows(3)
        found = run(open_session(model), values, ["x"])
        values["x"][:] = 7
        assert found[0].ravel()[0] == 3

    @pytest.mark.parametrize(
        "feed",
        [
            {},
            {"other": np.zeros((1, 2), np.float32)},
            {"x": np.zeros((1, 3), np.float32)},
            {"x": np.zeros((1, 2), np.int64)},
            {"x": np.zeros(2, np.float32)},
        ],
        ids=["nothing", "name", "shape", "type", "rank"],
    )
    def test_a_feed_that_does_not_fit(self, feed):
        with pytest.raises(ModelError, match=r"^onnxruntime cannot run the model: .") as caught:
            run(open_session(DOUBLE), feed)
        assert "\n" not in str(caught.value)

    def test_floats_are_given_in_the_type_that_the_model_takes(self):
        feed = {"x": np.float64([1, 2]), "n": np.int64([3])}
        taken = fitted(feed, {"x": np.dtype(np.float16)})
        assert {name: array.dtype for name, array in taken.items()} == {"x": np.float16, "n": np.int64}
        [y] = run(open_session(DOUBLE), {"x": np.float16([[1, 2]])})
        assert y.dtype == np.float32

    def test_outputs_by_name(self):
        found = run_named(open_session(THREE_OUTPUTS), rows(-1))
        assert {name: float(array[0, 0]) for name, array in found.items()} == pytest.approx(
            {"a": 1, "b": 1, "c": np.exp(-1)}
        )

    def test_outputs_one_after_the_other(self):
        session, names = open_session(THREE_OUTPUTS), ["c", "a"]
        found = list(iter_outputs(session, rows(-1), names))
        assert [name for name, _ in found] == names
        for (_, one), other in zip(found, run(session, rows(-1), names), strict=True):
            np.testing.assert_array_equal(one, other)


def test_there_is_a_core():
    assert cores() >= 1


def test_a_missing_file_is_named():
    with pytest.raises(ModelError, match=r"nowhere.model\.onnx"):
        open_session(Path("nowhere") / "model.onnx")


def test_cores_are_limited_within_a_block():
    before = cores()
    with limited_cores(7):
        assert cores() == 7
        with limited_cores(0):
            assert cores() == 7
        with limited_cores(3):
            assert cores() == 3
        assert cores() == 7
    assert cores() == before
