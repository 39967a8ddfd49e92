"""The contract of all passes, held over every graph of `graphs` and the default order of every target."""

import ast
import inspect
from collections import Counter
from pathlib import Path

import graphs
import onnx
import pytest
from cases import fast_first, paired
from graphs import BUILDERS, feed, quantized, silu_chain, v8

import onnxq.ir
import onnxq.passes
from onnxq import Config, quantize
from onnxq.errors import PipelineError
from onnxq.facts import CorrectedBiases, FittedRanges, Plan, QuantizationParameters, Reconstruction, Statistics
from onnxq.ir import Model
from onnxq.passes import default, prepare_and_cut
from onnxq.pipeline import Analysis, Pass, Pipeline, Rewrite
from onnxq.targets import TARGETS

FILES = {path.stem for path in Path(onnxq.passes.__file__).parent.glob("*.py")} - {"__init__"}

CONFIGS = {
    **{target: Config(target=target) for target in TARGETS},
    "half": Config(target="tensorrt", float_type="fp16"),
    "int4": Config(target="generic", weight_bits=4, pack="int4", reconstruct=True),
    "plain": Config(target="ort", equalize=False, keep_bias=True),
    "migrated": Config(target="openvino", migrate=True),
}


class ReadFacts:
    """Facts that note which types a pass reads."""

    def __init__(self, facts, read):
        self._facts, self._read = facts, read

    def __getitem__(self, kind):
        self._read.add(kind)
        return self._facts[kind]

    def get(self, kind):
        self._read.add(kind)
        return self._facts.get(kind)

    def is_pinned(self, kind):
        return self._facts.is_pinned(kind)


class Watched:
    """Lets passes run as always, and checks each run.

    Attributes:
        runs: by pass, how often it ran.
        read: by pass, the types of the facts that it read.
    """

    def __init__(self):
        self.runs = Counter()
        self.read = {}
        self._left = None, b""

    def _before(self, model):
        """Return what the last pass left: nothing edits the model between passes."""
        if self._left[0] is not model:
            self._left = model, content(model)
        return self._left[1]

    def __call__(self, step: Pass) -> Pass:
        run = step.run

        def watched(model, facts):
            self.runs[step.name] += 1
            facts = ReadFacts(facts, self.read.setdefault(step.name, set()))
            before = self._before(model)
            result = run(model, facts)
            if isinstance(step, Analysis):
                assert content(model) == before, f"{step.name} edits the model"
                found = result if isinstance(step.gives, tuple) else (result,)
                assert tuple(map(type, found)) == step.kinds()
            elif isinstance(step, Rewrite):
                after = content(model)
                assert result or after == before, f"{step.name} edits the model and says that it does not"
                assert run(model, facts) == 0, f"a second run of {step.name} makes edits"
                assert content(model) == after, f"a second run of {step.name} changes the model"
                self._left = model, after
            return result

        step.run = watched
        return step


def content(model: Model) -> bytes:
    return model.to_proto().SerializeToString(deterministic=True)


@pytest.fixture
def watched(monkeypatch):
    """Checks every pass that `quantize` runs."""
    each = Watched()
    monkeypatch.setattr("onnxq.api.default", lambda *args, **kw: [each(step) for step in default(*args, **kw)])
    return each


def quantize_watched(model: onnx.ModelProto, config: Config, **options: object) -> None:
    quantize(model, [feed(model, seed) for seed in range(2)], config, **options)


PAIRS = paired(BUILDERS, TARGETS)
"""Each graph with two targets: before the plan, passes edit alike for all targets; after it, each meets many graphs."""


@pytest.mark.parametrize(("graph", "target"), fast_first([*PAIRS[::3], *PAIRS[1::3], *PAIRS[2::3]], len(PAIRS[::3])))
@pytest.mark.filterwarnings("ignore")
def test_default_passes_keep_the_contract(watched, graph, target):
    quantize_watched(BUILDERS[graph](), CONFIGS[target])
    assert {"normalize", "plan-quantization", "insert-qdq", "verify"} <= watched.runs.keys()


@pytest.mark.slow
class TestEveryPass:
    """Runs in some configuration, and reads all that it declares."""

    @pytest.fixture(scope="class")
    def runs(self):
        """All passes, checked in every configuration of two graphs."""
        each = Watched()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("onnxq.api.default", lambda *args, **kw: [each(step) for step in default(*args, **kw)])
            for config in CONFIGS.values():
                quantize_watched(
                    silu_chain(), config, sensitivity=config.reconstructs or config.target == "ort", speed=True
                )
            quantize_watched(quantized(v8())[0], Config(requantize=True))
        Pipeline([each(step) for step in prepare_and_cut(Config())]).run(Model(v8()))
        return each

    def test_runs(self, runs):
        assert {name.replace("-", "_") for name in runs.runs} == FILES

    def test_reads_what_it_needs_or_uses(self, runs):
        declared = {step.name: {*step.needs, *step.uses} for step in passes_of_all_configs()}
        assert runs.read == declared


def passes_of_all_configs() -> list[Pass]:
    """A pass of each kind."""
    configs = [*CONFIGS.values(), Config(requantize=True)]
    data = graphs.samples([feed(silu_chain())])
    steps = [step for config in configs for step in default(config, silu_chain(), data, sensitivity=True, speed=True)]
    return list({step.name: step for step in [*steps, *prepare_and_cut(Config())]}.values())


class Trim(Rewrite):
    """A rewrite that keeps what `insert-qdq` needs, and forgets what it uses."""

    name = "trim"
    keeps = (Plan, QuantizationParameters, FittedRanges, Statistics)

    def run(self, model, facts):
        return 1


@pytest.mark.parametrize(
    ("config", "fact"), [(Config(), CorrectedBiases), (Config(weight_bits=4), Reconstruction)], ids=["8 bits", "4 bits"]
)
@pytest.mark.parametrize("reader", ["insert-qdq", "measure-sensitivity"])
def test_an_order_that_would_write_plainly_rounded_weights_is_refused(config, fact, reader):
    data = graphs.samples([feed(silu_chain())])
    steps = default(config, silu_chain(), data, sensitivity=reader == "measure-sensitivity")
    place = [step.name for step in steps].index(reader)
    with pytest.raises(PipelineError, match=f"^{reader} uses {fact.__name__}, and trim forgets it$"):
        Pipeline([*steps[:place], Trim(), *steps[place:]])


@pytest.mark.parametrize(("config", "giver"), [(Config(), "correct-bias"), (Config(weight_bits=4), "reconstruct")])
def test_an_order_that_finds_weights_or_biases_after_they_are_written_is_refused(config, giver):
    steps = default(config, silu_chain(), graphs.samples([feed(silu_chain())]))
    late = next(step for step in steps if step.name == giver)
    steps.remove(late)
    place = [step.name for step in steps].index("insert-qdq") + 1
    message = f"^insert-qdq uses [A-Za-z]+, and {giver} behind it gives it; move {giver} before it$"
    with pytest.raises(PipelineError, match=message):
        Pipeline([*steps[:place], late, *steps[place:]])


def test_builders_are_all_that_need_no_arguments():
    found = [
        name
        for name, function in inspect.getmembers(graphs, inspect.isfunction)
        if function.__module__ in ("backbones", "detectors")
        and not name.startswith("_")
        and inspect.signature(function).return_annotation is onnx.ModelProto
        and all(
            p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()
        )
    ]
    assert sorted(found) == sorted(BUILDERS)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_pass_takes_public_names_of_the_graph_package_alone(name):
    tree = ast.parse((Path(onnxq.passes.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    taken = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxq.ir")
    ]
    assert {node.module for node in taken} == {"onnxq.ir"}
    assert {alias.name for node in taken for alias in node.names} <= set(onnxq.ir.__all__)
