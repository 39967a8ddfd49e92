"""The script that makes the tables of docs/q-yolo.md, on the sketch model and two pictures."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image

from docs.tools import q_yolo
from docs.tools.costs import layers
from docs.tools.q_yolo_settings import ENDS, METHODS, Setting
from models import make
from onnxq.config import Config
from onnxq.errors import ConfigError
from onnxq.evaluation.average_precision import Scores, evaluate
from onnxq.facts import Plan
from onnxq.yolo.output_layout import UNKNOWN

LAST = ["Conv_91", "Conv_96", "Conv_101", "Conv_106"]
HEADER = (
    "| W-A | activations | method | AP | AP50 | AP75 | APs | APm | APl | MB | MB packed | OPs G | BOPs G | seconds |"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The sketch, two pictures, and what is on them."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "SIZE", 64)  # of the input, px
        onnx.save(make.build(), folder / "sketch.onnx")
    (folder / "images").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (2, 40, 50, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    truth = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(2)],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(make.CLASSES)],
        "annotations": [{"image_id": 0, "category_id": 1, "bbox": [5, 5, 20, 20]}],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder


@pytest.fixture
def evaluated(monkeypatch):
    """The digests of the models that were evaluated; scores are made up, but different."""
    seen: list[int] = []

    def measure(model, truth, settings):
        seen.append(hash(model.SerializeToString(deterministic=True)))
        return Scores(*(10 * k + len(seen) / 100 for k in range(1, 7)), len(truth.images), UNKNOWN, settings.runtime)

    monkeypatch.setattr(q_yolo, "measure_precision", measure)
    return seen


def arguments(folder, cache, *more):
    pictures = ["--calib", folder / "images", "--images", folder / "images", "--annotations", folder / "truth.json"]
    return [str(a) for a in (folder / "sketch.onnx", *pictures, "--cache", cache, *more)]


def subject(folder, cache):
    study = q_yolo.Study(folder / "images", 2, folder / "truth.json", folder / "images", None, 1, q_yolo.Cache(cache))
    return q_yolo.Subject(folder / "sketch.onnx", study)


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


FEW = ["--methods", "minmax", "uh", "--bits", "8-8", "4-4", "--activations", "asymmetric", "--ends", "8", "narrow"]


class TestTables:
    @pytest.mark.slow
    def test_there_is_a_row_for_each_combination(self, folder, tmp_path, capsys, evaluated):
        combinations = ["--methods", "uh", "--bits", "8-8", "4-8"]
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json", *combinations)) == 0
        lines = capsys.readouterr().out.splitlines()
        for ends, bits in (("float", ["8-8", "4-8"]), ("8", ["4-8"]), ("narrow", ["8-8", "4-8"])):
            start = lines.index(f"### sketch, {ENDS[ends]}")
            table = [cells(line) for line in lines[start + 2 : lines.index("", start + 2)]]
            assert lines[start + 2] == HEADER
            assert {len(row) for row in table} == {14}
            assert table[2][:3] == ["32-32", "", "float"]
            kinds = ("asymmetric", "symmetric")
            assert [row[:3] for row in table[3:]] == [[width, kind, "uh"] for width in bits for kind in kinds]
            assert all(row[3][:2] == "10" and row[8][:2] == "60" for row in table[2:])

    @pytest.mark.slow
    def test_the_overview_has_each_ap(self, folder, tmp_path, capsys, evaluated):
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json", *FEW)) == 0
        lines = capsys.readouterr().out.splitlines()
        start = lines.index("## sketch")
        assert lines[start + 2].startswith("AP; float 10.01.")
        # In the order in which they were measured: the ends at 8 bits first.
        assert [cells(line) for line in lines[start + 4 : start + 10]] == [
            ["first and last", "method", "8-8", "4-4"],
            ["---", "---", "---", "---"],
            ["8", "minmax", "", "10.02"],
            ["8", "uh", "", "10.03"],
            ["narrow", "minmax", "10.04", "10.06"],
            ["narrow", "uh", "10.05", "10.07"],
        ]

    @pytest.mark.slow
    def test_what_stays_float_is_said(self, folder, tmp_path, capsys, evaluated):
        ends = ["--ends", "float", "narrow", "--methods", "uh", "--bits", "4-4", "--activations", "asymmetric"]
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json", *ends)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "Convs quantized" in line] == [
            "26 of 31 Convs quantized; 5 float: first or last.",
            "31 of 31 Convs quantized.",
        ]

    def test_scores_are_those_of_the_real_evaluation(self, folder, tmp_path):
        found = subject(folder, tmp_path / "cache.json").measured(None)
        scores = evaluate(folder / "sketch.onnx", folder / "truth.json", folder / "images")
        assert found["ap50"] == scores.ap50
        assert found["ap"] == scores.ap
        assert found["ap_large"] is None  # there is no large object
        assert found["seconds_evaluating"] > 0

    @pytest.mark.slow
    def test_of_a_document_only_the_tables_are_replaced(self, folder, tmp_path, evaluated):
        document = tmp_path / "study.md"
        document.write_text(f"# Head\n\n{q_yolo._BEGIN}\nold\n{q_yolo._END}\n\nFoot\n")
        command = arguments(folder, tmp_path / "cache.json", "--document", document, *FEW)
        assert q_yolo.main(command) == 0
        text = document.read_text()
        assert text.startswith(f"# Head\n\n{q_yolo._BEGIN}\n\nCalibration: 100 images. AP: 2 images.")
        assert text.endswith(f"\n{q_yolo._END}\n\nFoot\n")
        assert "old" not in text
        assert HEADER in text
        assert q_yolo.main(command) == 0
        assert document.read_text() == text

    def test_a_document_without_a_place_is_refused_before_the_work(self, folder, tmp_path, capsys, evaluated):
        (tmp_path / "study.md").write_text("# Head\n")
        command = arguments(folder, tmp_path / "cache.json", "--document", tmp_path / "study.md", *FEW)
        assert q_yolo.main(command) == 1
        assert "--document: has no lines <!-- tables" in capsys.readouterr().err
        assert evaluated == []


class TestCache:
    @pytest.mark.slow
    def test_a_run_that_was_broken_off_goes_on(self, folder, tmp_path, capsys, monkeypatch, evaluated):
        command = arguments(folder, tmp_path / "cache.json", *FEW)
        whole = q_yolo.measure_precision

        def breaks(*given):
            if len(evaluated) == 3:
                raise KeyboardInterrupt
            return whole(*given)

        monkeypatch.setattr(q_yolo, "measure_precision", breaks)
        assert q_yolo.main(command) == 130
        assert len(json.loads((tmp_path / "cache.json").read_text())["results"]) == 3
        monkeypatch.setattr(q_yolo, "measure_precision", whole)
        monkeypatch.setattr(q_yolo.Observe, "run", None)  # the images are not run again
        capsys.readouterr()
        assert q_yolo.main(command) == 0
        assert len(evaluated) == len(set(evaluated)) == 7
        assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["4/7", "5/7", "6/7", "7/7"]
        assert q_yolo.main(command) == 0
        assert len(evaluated) == 7

    @pytest.mark.slow
    def test_what_is_the_same_file_is_evaluated_once(self, folder, tmp_path, monkeypatch, evaluated):
        monkeypatch.setitem(METHODS, "ours", METHODS["uh, biases corrected"])
        same = ["--methods", "uh, biases corrected", "ours", "--bits", "8-8", "--activations", "asymmetric"]
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json", *same, "--ends", "narrow")) == 0
        assert len(evaluated) == 2  # with the float model

    @pytest.mark.slow
    def test_ranges_by_uh_alone_are_not_the_default(self, folder, tmp_path, evaluated):
        both = ["--methods", "uh, biases corrected", "ours", "--bits", "8-8", "--activations", "asymmetric"]
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json", *both, "--ends", "narrow")) == 0
        assert len(set(evaluated)) == 3

    @pytest.mark.slow
    @pytest.mark.parametrize("more", [["--count", "1"], ["--max-images", "1"]])
    def test_other_data_is_evaluated_anew(self, folder, tmp_path, evaluated, more):
        few = ["--methods", "uh", "--bits", "8-8", "--activations", "asymmetric", "--ends", "narrow"]
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json", *few)) == 0
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json", *few, *more)) == 0
        assert len(evaluated) == 4

    @pytest.mark.slow
    def test_other_code_is_evaluated_anew(self, folder, tmp_path, monkeypatch, evaluated):
        few = ["--methods", "uh", "--bits", "8-8", "--activations", "asymmetric", "--ends", "narrow"]
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json", *few)) == 0
        monkeypatch.setattr(q_yolo, "_code_digest", lambda: "another")
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json", *few)) == 0
        assert len(evaluated) == 4

    @pytest.mark.parametrize("content", ["", "[]", '{"format": "another", "results": {}}'])
    def test_another_file_is_refused(self, folder, tmp_path, capsys, content):
        (tmp_path / "cache.json").write_text(content)
        assert q_yolo.main(arguments(folder, tmp_path / "cache.json")) == 1
        assert "not a cache of this script; remove it" in capsys.readouterr().err


class TestCosts:
    @pytest.mark.slow
    def test_what_a_row_says_of_the_sketch(self, folder, tmp_path, evaluated):
        found = subject(folder, tmp_path / "cache.json")
        plain = found.measured(None)
        row = found.measured(Setting("narrow", "asymmetric", "4-4", "uh"))
        # Without its decode: all Convs but the one that integrates the distributions.
        *weights, _ = [
            (numpy_helper.to_array(t), node)
            for node in onnx.load(folder / "sketch.onnx").graph.node
            for t in onnx.load(folder / "sketch.onnx").graph.initializer
            if node.op_type == "Conv" and node.input[1] == t.name
        ]
        assert len(weights) == plain["convs"] == row["convs"] == 31
        parameters = sum(values.size for values, _ in weights)
        assert plain["bytes"] == plain["packed_bytes"] == (folder / "sketch.onnx").stat().st_size
        assert row["packed_bytes"] == row["bytes"] - parameters / 2
        assert row["ops"] == plain["ops"] / 8
        assert row["bops"] == plain["bops"] / 64
        assert 2 * 432 * 128 * 128 < plain["ops"] < 2 * parameters * 128 * 128


class TestEnds:
    def bits(self, folder, tmp_path, ends, bits="4-4"):
        """The model, and (weight bits, input bits) by the Conv."""
        found = subject(folder, tmp_path / "cache.json")
        model, plan = found.quantized(Setting(ends, "asymmetric", bits, "minmax"))
        of_layers = layers(found._prepared, found._head, plan)
        return model, {layer.name: (layer.weight_bits, layer.act_bits) for layer in of_layers}

    @pytest.mark.slow
    def test_all_are_narrow(self, folder, tmp_path):
        model, bits = self.bits(folder, tmp_path, "narrow")
        assert set(bits.values()) == {(4, 4)}
        assert {"Conv_0", *LAST} <= bits.keys()
        # In the file too: integers of 4 bits, and a Clip behind every Q.
        stored = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8]
        weights = [values for values in stored if values.ndim == 4]
        assert len(weights) == 31
        assert {int(np.abs(values).max()) for values in weights} == {7}
        q = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert "images" in {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        assert {node.input[0] for node in model.graph.node if node.op_type == "Clip"} == set(q)

    @pytest.mark.slow
    def test_weights_and_activations_may_differ(self, folder, tmp_path):
        _, bits = self.bits(folder, tmp_path, "narrow", "4-8")
        assert set(bits.values()) == {(4, 8)}

    def test_first_and_last_at_8_bits(self, folder, tmp_path):
        _, bits = self.bits(folder, tmp_path, "8")
        wide = {name for name, pair in bits.items() if pair == (8, 8)}
        assert wide >= {"Conv_0", *LAST}
        assert (4, 4) in bits.values()
        _, bits = self.bits(folder, tmp_path, "8", "4-8")
        assert bits == {name: (8 if name in wide else 4, 8) for name in bits}

    @pytest.mark.slow
    def test_first_and_last_float(self, folder, tmp_path):
        _, bits = self.bits(folder, tmp_path, "float")
        assert {name for name, pair in bits.items() if pair == (32, 32)} == {"Conv_0", *LAST}
        assert {pair for name, pair in bits.items() if name not in {"Conv_0", *LAST}} == {(4, 4)}

    def test_ours_is_what_the_tool_does_unasked(self, folder, tmp_path, monkeypatch):
        asked = Setting("8", "asymmetric", "4-4", "ours").config((), 100)
        assert asked == Config(target="openvino", weight_bits=4, act_bits=4, count=100)
        assert asked.reconstructs
        given = {}

        def quantize(model, **more):
            given.update(more)
            return SimpleNamespace(model=model, facts={Plan: None})

        monkeypatch.setattr(q_yolo, "quantize", quantize)
        found = subject(folder, tmp_path / "cache.json")
        found.quantized(Setting("narrow", "asymmetric", "4-4", "ours"))
        assert given["config"].widths == (("op:Conv", (4, 4)),)
        assert "reconstruct" in [each.name for each in given["passes"]]
        assert "choose-migration" in [each.name for each in given["passes"]]
        assert given["facts"] == ()

    def test_the_default_at_8_bits_is_calibrated_by_itself(self, folder, tmp_path, monkeypatch):
        given = []

        def quantize(model, **more):
            given.append(more)
            return SimpleNamespace(model=model, facts={Plan: None})

        monkeypatch.setattr(q_yolo, "quantize", quantize)
        found = subject(folder, tmp_path / "cache.json")
        for method in ("ours", "uh"):
            found.quantized(Setting("narrow", "asymmetric", "8-8", method))
        assert [each["facts"] for each in given] == [(), (found.statistics,)]
        assert [each["data"] is None for each in given] == [False, True]


class TestPicture:
    @pytest.mark.slow
    def test_has_the_same_bytes_each_time(self, folder, tmp_path, evaluated):
        few = ["--methods", "uh", "--bits", "8-8", "--activations", "asymmetric", "--ends", "narrow"]
        for name in ("one", "two"):
            command = arguments(folder, tmp_path / f"{name}.json", "--plot", tmp_path / f"{name}.svg", *few)
            assert q_yolo.main(command) == 0
        assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()

    def test_a_tensor_of_that_name_must_be_there(self, folder, tmp_path):
        with pytest.raises(ConfigError, match=r"--tensor nothing: no SiLU that a Conv reads; there are Mul_2_out, "):
            q_yolo.draw(subject(folder, tmp_path / "cache.json"), "nothing", tmp_path / "a.svg")


class TestWorkers:
    @pytest.mark.slow
    def test_cells_are_those_of_one_process(self, folder, tmp_path, capsys, dask_pool):
        found = {}
        address = dask_pool._client.scheduler.address
        for name, words in (("alone", ()), ("workers", ("--workers", address))):
            cache = tmp_path / f"{name}.json"
            document = tmp_path / f"{name}.md"
            document.write_text(f"{q_yolo._BEGIN}\n{q_yolo._END}\n")
            assert q_yolo.main(arguments(folder, cache, *FEW, "--document", document, *words)) == 0
            results = json.loads(cache.read_text())["results"]
            found[name] = {
                key: {what: number for what, number in each.items() if not what.startswith("seconds")}
                for key, each in results.items()
            }
            err = capsys.readouterr().err.splitlines()
            assert sorted(line.split()[0] for line in err) == [f"{k}/7" for k in range(1, 8)]
        assert found["alone"] == found["workers"]
        [alone, workers] = (sorted(tmp_path.glob(f"{name}.sketch.*.npz")) for name in found)
        assert alone[0].read_bytes() == workers[0].read_bytes()
        texts = [(tmp_path / f"{name}.md").read_text().splitlines() for name in found]
        assert [line.rpartition(" | ")[0] for line in texts[0]] == [line.rpartition(" | ")[0] for line in texts[1]]
