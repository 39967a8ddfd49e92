import logging
from dataclasses import dataclass

import onnx.parser
import pytest

from onnxq.errors import PipelineError
from onnxq.ir import Model
from onnxq.pipeline import EVERYTHING, Analysis, Facts, Pass, Pipeline, Rewrite


@dataclass(frozen=True)
class Apples:
    count: int = 1


@dataclass(frozen=True)
class Pears:
    count: int = 1


@dataclass(frozen=True)
class GoldenApples(Apples):
    """Apples, too."""


class Edit(Rewrite):
    """Makes so many edits."""

    name = "edit"

    def __init__(self, edits=1):
        self.edits = edits

    def run(self, model, facts):
        model.graph.doc_string = f"{model.graph.doc_string or ''}edit "
        return self.edits


class KeepApples(Edit):
    name = "keep-apples"
    keeps = (Apples,)


class KeepAll(Edit):
    name = "keep-all"
    keeps = EVERYTHING


class NeedApples(Edit):
    name = "need-apples"
    needs = (Apples,)


class PickApples(Analysis[Apples]):
    name = "pick-apples"
    gives = Apples
    runs = 0

    def run(self, model, facts):
        self.runs += 1
        return Apples(self.runs)


class PickPears(Analysis[Pears]):
    name = "pick-pears"
    gives = Pears

    def run(self, model, facts):
        return Pears()


class UseApples(Edit):
    name = "use-apples"
    uses = (Apples,)

    def run(self, model, facts):
        self.found = facts.get(Apples)
        return self.edits


class CountAll(Analysis[int]):
    name = "count-all"
    gives = int
    needs = (Apples, Pears)

    def run(self, model, facts):
        return facts[Apples].count + facts[Pears].count


class PickBoth(Analysis[tuple[Apples, Pears]]):
    name = "pick-both"
    gives = (Apples, Pears)

    def run(self, model, facts):
        return Apples(3), Pears(4)


class PickGolden(Analysis[GoldenApples]):
    name = "pick-golden"
    gives = GoldenApples

    def run(self, model, facts):
        return GoldenApples()


@pytest.fixture
def model():
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    return Model(onnx.parser.parse_model(text))


class TestRun:
    def test_passes_run_from_first_to_last_on_the_model(self, model):
        order = []

        class Note(Edit):
            def run(self, model, facts):
                order.append(self.edits)
                return super().run(model, facts)

        Pipeline([Note(1), Note(2), Note(3)]).run(model)
        assert order == [1, 2, 3]
        assert model.graph.doc_string == "edit edit edit "

    def test_facts_are_found_by_their_type(self, model):
        facts = Pipeline([PickApples(), PickPears(), CountAll()]).run(model)
        assert facts[Apples] == Apples(1)
        assert facts[int] == 2
        assert Pears in facts
        assert set(facts) == {Apples(1), Pears(), 2}

    def test_an_analysis_may_find_several_facts_in_one_run(self, model):
        facts = Pipeline([PickBoth(), CountAll()]).run(model)
        assert facts[int] == 7

    def test_an_edit_may_keep_one_of_several_facts(self, model):
        assert set(Pipeline([PickBoth(), KeepApples()]).run(model)) == {Apples(3)}

    def test_an_empty_pipeline_finds_nothing(self, model):
        assert list(Pipeline([]).run(model)) == []

    def test_an_edit_forgets_what_was_found_before(self, model):
        facts = Pipeline([PickApples(), Edit()]).run(model)
        assert Apples not in facts
        assert facts.get(Apples) is None

    def test_a_rewrite_that_edits_nothing_forgets_nothing(self, model):
        facts = Pipeline([PickApples(), Edit(edits=0)]).run(model)
        assert facts[Apples] == Apples(1)

    def test_an_edit_keeps_what_it_says_and_no_more(self, model):
        facts = Pipeline([PickApples(), PickPears(), KeepApples()]).run(model)
        assert set(facts) == {Apples(1)}

    def test_keeping_everything(self, model):
        facts = Pipeline([PickApples(), PickPears(), KeepAll()]).run(model)
        assert set(facts) == {Apples(1), Pears()}

    def test_keeping_a_type_keeps_its_subclasses(self, model):
        facts = Pipeline([PickGolden(), PickPears(), KeepApples()]).run(model)
        assert set(facts) == {GoldenApples()}

    def test_a_fact_is_found_anew_after_an_edit(self, model):
        pick = PickApples()
        facts = Pipeline([pick, Edit(), pick, NeedApples(edits=0)]).run(model)
        assert facts[Apples] == Apples(2)

    def test_a_pipeline_can_run_again(self, model):
        pipeline = Pipeline([PickPears(), PickApples()])
        pipeline.run(model)
        assert pipeline.run(model)[Apples] == Apples(2)


class TestPinned:
    def test_the_analysis_that_would_find_a_given_fact_is_skipped(self, model, caplog):
        caplog.set_level(logging.INFO)
        pick = PickApples()
        facts = Pipeline([pick, PickPears(), CountAll()], pinned=[Apples(40)]).run(model)
        assert pick.runs == 0
        assert facts[int] == 41
        assert caplog.messages == ["pick-apples: skipped, Apples was given"]

    @pytest.mark.parametrize("given", [Apples(40), Pears(40)])
    def test_an_analysis_is_skipped_if_one_of_its_facts_is_given(self, model, given):
        assert set(Pipeline([PickBoth()], pinned=[given]).run(model)) == {given}

    def test_edits_do_not_forget_a_given_fact(self, model):
        given = Apples(40)
        facts = Pipeline([PickApples(), PickPears(), Edit(), NeedApples()], pinned=[given]).run(model)
        assert facts[Apples] is given
        assert facts.is_pinned(Apples)
        assert Pears not in facts

    def test_a_found_fact_is_not_a_given_one(self, model):
        facts = Pipeline([PickApples()]).run(model)
        assert not facts.is_pinned(Apples)

    def test_a_given_fact_is_enough_for_a_need(self, model):
        assert Pipeline([NeedApples(edits=0)], pinned=[Apples(3)]).run(model)[Apples] == Apples(3)

    def test_given_facts_hold_in_each_run(self, model):
        pipeline = Pipeline([PickApples()], pinned=iter([Apples(3)]))
        for _ in range(2):
            assert pipeline.run(model)[Apples] == Apples(3)


class TestOrder:
    def refused(self, passes, message, **more):
        with pytest.raises(PipelineError, match=f"^{message}$"):
            Pipeline(passes, **more)

    def test_a_need_that_nothing_gives(self):
        self.refused([NeedApples()], "need-apples needs Apples, and no pass before it gives it")

    def test_a_need_that_only_a_later_pass_gives(self):
        self.refused([NeedApples(), PickApples()], "need-apples needs Apples, and no pass before it gives it")

    def test_a_need_that_an_edit_forgets(self):
        self.refused([PickApples(), PickPears(), Edit(), CountAll()], "count-all needs Apples, and edit forgets it")

    def test_the_edit_named_is_the_one_that_forgets(self):
        self.refused(
            [PickApples(), PickPears(), KeepAll(), KeepApples(), Edit(0), PickApples(), CountAll()],
            "count-all needs Pears, and keep-apples forgets it",
        )

    def test_the_second_of_two_needs(self):
        self.refused([PickApples(), CountAll()], "count-all needs Pears, and no pass before it gives it")

    def test_an_analysis_can_lack_a_fact_as_well_as_a_rewrite(self):
        self.refused([PickPears(), CountAll()], "count-all needs Apples, and no pass before it gives it")

    def test_a_given_fact_does_not_stand_for_another(self):
        self.refused([PickPears(), Edit(), CountAll()], "count-all needs Pears, and edit forgets it", pinned=[Apples()])

    def test_a_skipped_analysis_gives_none_of_its_facts(self):
        message = "count-all needs Pears, and pick-both is skipped, as Apples was given"
        self.refused([PickBoth(), CountAll()], message, pinned=[Apples()])
        Pipeline([PickBoth(), CountAll()], pinned=[Apples(), Pears()])
        Pipeline([PickBoth(), PickPears(), CountAll()], pinned=[Apples()])

    def test_a_rewrite_may_need_what_it_forgets(self, model):
        facts = Pipeline([PickApples(), NeedApples()]).run(model)
        assert Apples not in facts

    def test_what_is_found_again_is_known_again(self):
        Pipeline([PickApples(), Edit(), PickApples(), NeedApples()])

    def test_what_is_kept_is_known(self):
        Pipeline([PickApples(), KeepApples(), KeepAll(), NeedApples()])

    def test_a_used_fact_that_nothing_gives_may_be_absent(self, model):
        step = UseApples()
        Pipeline([Edit(), step]).run(model)
        assert step.found is None

    def test_a_used_fact_that_is_there_is_read(self, model):
        step = UseApples()
        Pipeline([PickApples(), KeepApples(), step]).run(model)
        assert step.found == Apples(1)

    def test_a_used_fact_that_an_edit_forgets(self):
        self.refused(
            [PickApples(), PickPears(), Edit(), UseApples()],
            "use-apples uses Apples, and edit forgets it",
        )

    def test_a_used_fact_that_is_found_again(self):
        Pipeline([PickApples(), Edit(), PickApples(), UseApples()])

    def test_a_used_fact_that_is_found_only_later(self):
        message = "use-apples uses Apples, and pick-apples behind it gives it; move pick-apples before it"
        self.refused([UseApples(), PickApples()], message)

    def test_a_used_fact_of_a_later_analysis_that_is_skipped(self):
        Pipeline([UseApples(), PickBoth()], pinned=[Pears()])

    def test_a_used_fact_that_was_given_is_never_forgotten(self, model):
        step = UseApples()
        Pipeline([Edit(), step], pinned=[Apples(7)]).run(model)
        assert step.found == Apples(7)

    def test_nothing_is_run_to_find_out(self):
        pick = PickApples()
        self.refused([pick, CountAll()], "count-all needs Pears, and no pass before it gives it")
        assert pick.runs == 0


class TestFacts:
    def test_a_fact_that_was_not_found(self):
        with pytest.raises(PipelineError, match=r"^no Apples has been found for this graph$"):
            Facts()[Apples]

    def test_a_fact_is_not_found_under_the_type_above_it(self):
        facts = Facts([GoldenApples()])
        assert facts[GoldenApples] == GoldenApples()
        assert facts.get(Apples) is None


READS = {
    "by index": lambda facts: facts[Apples],
    "get": lambda facts: facts.get(Apples),
    "in": lambda facts: Apples in facts,
    "is_pinned": lambda facts: facts.is_pinned(Apples),
}


class TestDeclaredFacts:
    """A pass reads the facts that it declares, in whatever way it reads them, and no others."""

    def step(self, read, **declared):
        def run(self, model, facts):
            self.read = read(facts)
            return 0

        return type("Peek", (Rewrite,), {"name": "peek", "run": run, **declared})()

    @pytest.mark.parametrize("read", READS.values(), ids=READS)
    def test_an_undeclared_fact_is_refused(self, model, read):
        message = r"^peek reads Apples, which it does not declare; list it in its needs or uses$"
        with pytest.raises(PipelineError, match=message):
            Pipeline([PickApples(), self.step(read, needs=(Pears,))], pinned=[Pears()]).run(model)

    @pytest.mark.parametrize("declared", ["needs", "uses"])
    @pytest.mark.parametrize("read", READS.values(), ids=READS)
    def test_a_declared_fact_is_read(self, model, read, declared):
        step = self.step(read, **{declared: (Apples,)})
        Pipeline([step], pinned=[Apples(3)]).run(model)
        assert step.read in (Apples(3), True)

    def test_only_declared_facts_are_listed(self, model):
        step = self.step(list, uses=(Apples,))
        Pipeline([PickApples(), PickPears(), step]).run(model)
        assert step.read == [Apples(1)]

    def test_whoever_runs_the_pipeline_reads_all(self, model):
        facts = Pipeline([PickApples(), PickPears(), self.step(lambda facts: None)]).run(model)
        assert facts[Apples] == Apples(1)
        assert facts[Pears] == Pears()


class TestHooks:
    def test_are_called_after_each_pass_with_its_result(self, model):
        calls = []
        steps = [Edit(3), PickApples(), KeepAll(0)]

        def hook(step, seen, result, seconds):
            calls.append((step, seen, result))
            assert seconds >= 0

        Pipeline(steps, hooks=[hook]).run(model)
        assert calls == [(steps[0], model, 3), (steps[1], model, Apples(1)), (steps[2], model, 0)]

    def test_are_called_in_order(self, model):
        calls = []
        hooks = [lambda step, *_, mark=mark: calls.append(f"{mark} {step.name}") for mark in "ab"]
        Pipeline([PickApples(), Edit()], hooks=hooks).run(model)
        assert calls == ["a pick-apples", "b pick-apples", "a edit", "b edit"]

    def test_are_not_called_for_a_skipped_analysis(self, model):
        calls = []
        hook = lambda step, *_: calls.append(step.name)  # noqa: E731
        Pipeline([PickApples(), Edit()], pinned=[Apples()], hooks=[hook]).run(model)
        assert calls == ["edit"]

    def test_what_a_hook_raises_stops_the_run(self, model):
        def hook(step, model, result, seconds):
            raise ValueError(step.name)

        pick = PickApples()
        with pytest.raises(ValueError, match="edit"):
            Pipeline([Edit(), pick], hooks=[hook]).run(model)
        assert pick.runs == 0


def test_a_pass_without_run_cannot_be_made():
    class Half(Pass):
        name = "half"

    with pytest.raises(TypeError, match="run"):
        Half()
