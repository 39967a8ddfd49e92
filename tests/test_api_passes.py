from collections import Counter

import numpy as np
import pytest
from api_model import content, unchanged_detector
from graphs import (
    feed,
    initializers,
    silu_chain,
    v8,
)

from onnxq import Config, plan, quantize
from onnxq.calibration.statistics_file import load_statistics, save_statistics
from onnxq.errors import DataError, PipelineError
from onnxq.facts import (
    CorrectedBiases,
    DecodeBoundary,
    FittedRange,
    FittedRanges,
    InputSummary,
    Migration,
    Plan,
    Probe,
    QuantizationParameters,
    Statistics,
    Verification,
)
from onnxq.numerics.scheme import Range
from onnxq.passes import default, prepare_and_plan
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.observe import Observe
from onnxq.pipeline import Analysis, Pipeline, Rewrite
from onnxq.targets.sizes import ImageSizes

PASSES = [step.name for step in default(Config(), silu_chain(), None)]


@pytest.fixture(scope="module")
def model():
    yield from unchanged_detector()


@pytest.fixture(scope="module")
def feeds(model):
    return [feed(model, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def result(model, feeds):
    return quantize(model, feeds)


# --- facts ------------------------------------------------------------------------------------------------------------


def test_every_fact_comes_out(result):
    kinds = (
        DecodeBoundary,
        ImageSizes,
        Plan,
        Migration,
        Statistics,
        Probe,
        InputSummary,
        FittedRanges,
        QuantizationParameters,
        CorrectedBiases,
        Verification,
    )
    assert all(isinstance(result.facts[kind], kind) for kind in kinds)
    assert {type(fact) for fact in result.facts} == set(kinds)
    assert result.facts[Verification].fused == len(result.facts[Plan].layers) == 11


def test_given_statistics_spare_the_data(model, result):
    def explode():
        raise AssertionError("the data was read")
        yield

    again = quantize(model, explode(), facts=[result.facts[Statistics]])
    assert content(again) == content(result)
    assert again.samples is None
    assert "observe" not in again.timings


@pytest.mark.slow
def test_saved_statistics_do_as_well_and_serve_any_method(tmp_path, model, feeds, result):
    save_statistics(result.facts[Statistics], tmp_path / "seen.npz")
    seen = load_statistics(tmp_path / "seen.npz")
    for config in (Config(), Config(method="minmax"), Config(act_bits=4, symmetric=True, reconstruct=False)):
        assert content(quantize(model, facts=[seen], config=config)) == content(quantize(model, feeds, config))


@pytest.mark.slow
def test_with_given_statistics_the_result_is_compared_on_samples_that_are_given_too(model, feeds, result):
    statistics, probe = result.facts[Statistics], result.facts[Probe]
    assert quantize(model, facts=[statistics]).facts[Verification].sqnr == {}
    again = quantize(model, facts=[statistics, probe])
    assert again.facts[Verification].sqnr == result.facts[Verification].sqnr != {}
    with pytest.raises(PipelineError, match="separate-scales needs Statistics, and observe is skipped"):
        quantize(model, feeds, facts=[probe])


def test_statistics_of_another_model_are_refused(result):
    with pytest.raises(DataError, match="made with another model"):
        quantize(v8(seed=1), facts=[result.facts[Statistics]])


@pytest.mark.slow
def test_ranges_made_by_hand_are_taken(model, feeds, result):
    groups = dict(result.facts[FittedRanges].groups)
    chosen = next(point for point in result.facts[Plan].points if point.tensor == "mul3_out")
    groups[chosen.group] = FittedRange(Range(-1.0, 4.1), method="by hand")
    by_hand = quantize(model, feeds, facts=[FittedRanges(groups)])
    assert by_hand.facts[FittedRanges].groups[chosen.group].method == "by hand"
    before, after = initializers(result.model), initializers(by_hand.model)
    assert float(after[f"{chosen.group}_scale"]) == pytest.approx(5.1 / 255)
    assert int(after[f"{chosen.group}_zero_point"]) == 50
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    own = {f"{chosen.group}_scale", f"{chosen.group}_zero_point"}
    assert own <= changed
    # The integers of the layers that read it depend on the greatest integers of their input, and the biases on both.
    nodes = {node.name: node for node in result.model.graph.node}
    readers = [nodes[name] for point in result.facts[Plan].groups()[chosen.group] for name in point.users]
    makers = {output: node for node in result.model.graph.node for output in node.output}
    follow = {name for node in readers for name in makers[node.input[1]].input} | {n.input[2] for n in readers}
    assert changed - own <= follow


@pytest.mark.slow
def test_a_plan_made_by_hand_is_taken(model, feeds, result):
    config = Config(exclude=("conv3",))
    chosen, _ = plan(model, config)
    assert content(quantize(model, feeds, facts=[chosen])) == content(quantize(model, feeds, config)) != content(result)


# --- hooks, progress, passes ------------------------------------------------------------------------------------------


def test_hooks_are_called_once_per_pass_in_order(model, feeds):
    seen, order = [], []

    def first(step, working, result, seconds):
        order.append("first")
        if isinstance(step, Analysis):
            found = result if isinstance(step.gives, tuple) else (result,)
            assert tuple(map(type, found)) == step.kinds()
        else:
            assert isinstance(step, Rewrite)
            assert isinstance(result, int)
        assert seconds >= 0
        seen.append((step.name, len(working.graph.nodes)))

    quantized = quantize(model, feeds, hooks=[first, lambda *_: order.append("second")])
    assert [name for name, _ in seen] == PASSES
    assert order == ["first", "second"] * len(PASSES)
    assert seen[-1][1] == len(quantized.model.graph.node) > seen[0][1]
    assert list(quantized.timings) == list(dict.fromkeys(PASSES))


def test_an_error_in_a_hook_comes_out(model, feeds):
    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        quantize(model, feeds, hooks=[fail])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7])
def test_progress_is_told_up_to_the_total(model, feeds, count):
    told = []
    np_feeds = np.concatenate([feeds[number % 4]["images"] for number in range(count)])
    quantize(model, list(np_feeds), progress=lambda *call: told.append(call))
    first, *calibrating, last = told
    assert (first, last) == (("preparing", 0, 0), ("checking", 0, 0))
    assert {task for task, _, _ in calibrating} == {"calibrating"}
    assert [done for _, done, _ in calibrating] == sorted(done for _, done, _ in calibrating)
    assert calibrating[-1][1] == count


def test_progress_knows_the_total_of_files(tmp_path, model, feeds):
    np.save(tmp_path / "data.npy", np.concatenate([each["images"] for each in feeds]))
    told = []
    quantize(model, tmp_path / "data.npy", progress=lambda *call: told.append(call))
    assert told[-2] == ("calibrating", 4, 4)
    assert {total for task, _, total in told if task == "calibrating"} == {4}


def test_an_interrupt_in_progress_comes_out(model, feeds):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(model, feeds, progress=interrupt)


class CountNodes(Analysis[Counter]):
    name = "count-nodes"
    gives = Counter

    def run(self, model, facts):
        return Counter(node.op for node in model.graph.nodes)


def test_passes_of_ones_own(model, feeds, result):
    config = Config()
    passes = [*default(config, model, None), CountNodes()]
    again = quantize(model, None, config, passes=passes, facts=[result.facts[Statistics]])
    assert again.facts[Counter]["Conv"] == 17
    assert again.facts[Counter]["Gemm"] == 1
    assert list(again.timings) == [
        name for name in dict.fromkeys([*PASSES, "count-nodes"]) if name not in ("observe", "choose-migration")
    ]
    assert content(again) == content(result)


def test_passes_in_the_wrong_order_are_refused(model, feeds):
    with pytest.raises(PipelineError, match="plan-quantization needs DecodeBoundary, and no pass before it gives it"):
        quantize(model, feeds, passes=[step for step in prepare_and_plan(Config()) if not isinstance(step, FindDecode)])


def test_verify_without_observe_is_refused(model, result):
    steps = [step for step in default(Config(), model, None) if not isinstance(step, Observe)]
    given = result.facts[Statistics]
    with pytest.raises(PipelineError, match=r"^verify needs Probe, and no pass before it gives it$"):
        Pipeline(steps, pinned=[given])
    with pytest.raises(PipelineError, match=r"^verify needs Probe, and observe is skipped, as Statistics was given$"):
        Pipeline(default(Config(), model, None), pinned=[given])
    assert Pipeline(steps, pinned=[given, Probe()]).passes == tuple(steps)


def test_passes_that_forget_what_is_needed_are_refused(model, feeds):
    *first, choose = prepare_and_plan(Config())
    with pytest.raises(PipelineError, match="plan-quantization needs DecodeBoundary, and fold-constants forgets it"):
        quantize(model, feeds, passes=[*first, FoldConstants(), choose])
