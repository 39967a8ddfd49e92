import numpy as np
import onnx
import pytest
from graphs import DETECTORS, copy, feed, nodes, prepared, rewrite, run, session, v5_raw, v8, with_metadata

from onnxq.facts import DecodeBoundary
from onnxq.ir import Model
from onnxq.passes.cut_decode import CutDecode
from onnxq.passes.find_decode import FindDecode
from onnxq.pipeline import Facts


def cut(model):
    """Return a prepared model, its decode boundary, the cut model, and the number of removed nodes."""
    before = prepared(model).to_proto()
    head = FindDecode().run(Model(before), Facts())
    return before, head, *rewrite(CutDecode(), before, Facts([head]))


@pytest.mark.parametrize("name", DETECTORS)
def test_it_ends_at_the_last_layers(name):
    before, head, after, edits = cut(DETECTORS[name]())
    onnx.checker.check_model(after, full_check=True)
    assert [output.name for output in after.graph.output] == [nodes(before)[n].output[0] for n in head.last]
    assert {n.name for n in after.graph.node} == head.body
    assert edits == len(head.tail)
    assert list(after.graph.input) == list(before.graph.input)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_outputs_are_what_these_layers_gave(name):
    before, _, after, _ = cut(DETECTORS[name]())
    wanted = [output.name for output in after.graph.output]
    tapped = copy(before)
    known = {output.name for output in before.graph.output}
    tapped.graph.output.extend(output for output in after.graph.output if output.name not in known)
    values = feed(before)
    expected = dict(zip(wanted, session(tapped).run(wanted, values)))
    found = run(after, values)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in wanted)


def test_a_second_cut_removes_nothing():
    _, head, after, _ = cut(v8())
    again, edits = rewrite(CutDecode(), after, Facts([head]))
    assert edits == 0
    assert again == after


def test_a_model_without_decode_stays():
    before, _, after, edits = cut(v5_raw())
    assert edits == 0
    assert list(after.graph.node) == list(before.graph.node)


def test_the_metadata_stays():
    before, _, after, _ = cut(with_metadata(v8()))
    assert list(after.metadata_props) == list(before.metadata_props)


def test_the_head_is_found_anew_after_the_cut():
    assert DecodeBoundary not in CutDecode.keeps
