import logging
import time

import onnx
import onnx.parser
import pytest

from onnxq.hooks import log_passes, save_each, time_passes
from onnxq.ir import Model
from onnxq.pipeline import Analysis, Pipeline, Rewrite


class Rename(Rewrite):
    """Gives the only node its next name; with `edits` 0 it leaves it."""

    name = "rename"

    def __init__(self, node="", seconds=0.0):
        self.node, self.seconds = node, seconds

    def run(self, model, facts):
        time.sleep(self.seconds)
        if not self.node:
            return 0
        model.graph.nodes[0].name = self.node
        return 1


class Look(Analysis[str]):
    name = "look"
    gives = str

    def run(self, model, facts):
        return model.graph.nodes[0].name


class LookTwice(Analysis[tuple[str, int]]):
    name = "look-twice"
    gives = (str, int)

    def run(self, model, facts):
        return model.graph.nodes[0].name, len(model.graph.nodes)


@pytest.fixture
def model():
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    proto = onnx.parser.parse_model(text)
    proto.metadata_props.add(key="names", value="{0: 'cat'}")
    return Model(proto)


def test_times_add_up_by_name(model):
    seconds = {}
    steps = [Rename("a", 0.02), Look(), Rename("b", 0.03)]
    Pipeline(steps, hooks=[time_passes(seconds)]).run(model)
    assert list(seconds) == ["rename", "look"]
    assert seconds["rename"] >= 0.05
    assert 0 <= seconds["look"] < seconds["rename"]


def test_each_pass_is_one_line_in_the_log(model, caplog):
    caplog.set_level(logging.INFO, "onnxq.hooks")
    Pipeline([Rename("a"), Rename(), Look()], hooks=[log_passes]).run(model)
    lines = [record.getMessage().split() for record in caplog.records]
    assert len({len(record.getMessage()) for record in caplog.records}) == 1  # columns
    assert [" ".join(line[:-2]) for line in lines] == ["rename 1 edit", "rename 0 edits", "look found str"]
    assert all(float(line[-2]) >= 0 and line[-1] == "s" for line in lines)
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_all_facts_of_an_analysis_are_logged(model, caplog):
    caplog.set_level(logging.INFO)
    Pipeline([Rename("a"), LookTwice()], hooks=[log_passes]).run(model)
    assert "look-twice          found str, int" in caplog.text


def test_the_model_is_saved_after_each_pass_that_edits_it(model, tmp_path):
    folder = tmp_path / "deep" / "steps"
    Pipeline([Rename("a"), Look(), Rename(), Rename("b")], hooks=[save_each(folder)]).run(model)
    saved = {path.name: onnx.load(path) for path in folder.iterdir()}
    assert {name: proto.graph.node[0].name for name, proto in saved.items()} == {
        "01-rename.onnx": "a",
        "04-rename.onnx": "b",
    }
    assert all(proto.metadata_props[0].key == "names" for proto in saved.values())


def test_nothing_is_saved_and_no_folder_made_where_nothing_is_edited(model, tmp_path):
    Pipeline([Look(), Rename()], hooks=[save_each(tmp_path / "steps")]).run(model)
    assert not (tmp_path / "steps").exists()
