"""The pass manager; it is independent of quantization.

A `Rewrite` edits the graph and returns the number of edits. An `Analysis` reads the graph and returns one frozen
fact, or a tuple of facts; facts are stored by their type. An edit forgets all earlier facts except those that the
rewrite `keeps`. A pass reads only the facts that it declares in `needs` and `uses`. Therefore data flows one way, and
the constructor of `Pipeline` refuses an order that cannot work.
"""

import copy
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from onnxq.errors import PipelineError
from onnxq.ir import Model

__all__ = ["EVERYTHING", "Analysis", "Fact", "Facts", "Hook", "Pass", "Pipeline", "Rewrite"]

Fact = TypeVar("Fact")

log = logging.getLogger(__name__)


class Facts:
    """The results of the analyses, at most one fact of each type.

    Args:
        pinned: facts given from outside; they are never replaced or forgotten.
    """

    def __init__(self, pinned: Iterable[object] = ()) -> None:
        self._found: dict[type, object] = {type(fact): fact for fact in pinned}
        self._pinned = frozenset(self._found)
        self._reader: Pass | None = None

    def __getitem__(self, kind: type[Fact]) -> Fact:
        fact = self.get(kind)
        if fact is None:
            raise PipelineError(f"no {kind.__name__} has been found for this graph")
        return fact

    def get(self, kind: type[Fact]) -> Fact | None:
        """Return the fact of this type, or None.

        Raises:
            PipelineError: the pass that reads it does not declare it.
        """
        self._check_declared(kind)
        fact = self._found.get(kind)
        assert fact is None or isinstance(fact, kind)
        return fact

    def __contains__(self, kind: type) -> bool:
        self._check_declared(kind)
        return kind in self._found

    def __iter__(self) -> Iterator[object]:
        return (fact for kind, fact in self._found.items() if self._reader is None or self._reader.declares(kind))

    def is_pinned(self, kind: type) -> bool:
        """Return whether the fact was given from outside."""
        self._check_declared(kind)
        return kind in self._pinned

    def _check_declared(self, kind: type) -> None:
        if self._reader is not None and not self._reader.declares(kind):
            raise PipelineError(
                f"{self._reader.name} reads {kind.__name__}, which it does not declare; list it in its needs or uses"
            )

    def _as_seen_by(self, step: "Pass") -> "Facts":
        """Return a view of the same facts through which this pass reads only what it declares."""
        view = copy.copy(self)
        view._reader = step
        return view

    def _put(self, fact: object) -> None:
        self._found[type(fact)] = fact

    def _forget(self, keeps: Sequence[type]) -> None:
        for kind in list(self._found):
            if kind not in self._pinned and not _kept(kind, keeps):
                del self._found[kind]


class Pass(ABC):
    """One step over a model.

    Attributes:
        name: of the pass, with hyphens; its file has the same name with underscores.
        needs: types of the facts that the pass cannot run without.
        uses: types of the facts that the pass reads if an earlier pass found them.
    """

    name: ClassVar[str]
    needs: ClassVar[Sequence[type]] = ()
    uses: ClassVar[Sequence[type]] = ()

    def declares(self, kind: type) -> bool:
        """Return whether the pass may read facts of this type."""
        return kind in self.needs or kind in self.uses

    @abstractmethod
    def run(self, model: Model, facts: Facts) -> Any:
        """Run the step on the model."""


class Rewrite(Pass):
    """A pass that edits the graph in place.

    Attributes:
        keeps: types of the facts that stay true after its edits; `EVERYTHING` keeps all.
    """

    keeps: ClassVar[Sequence[type]] = ()

    @abstractmethod
    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of edits; a second run on its own result makes none."""


class Analysis(Pass, Generic[Fact]):
    """A pass that reads the graph, never edits it, and returns one frozen fact.

    Attributes:
        gives: type of the fact; or a tuple of types, if `run` returns a tuple of facts, one of each type.
    """

    gives: ClassVar[type | tuple[type, ...]]

    @classmethod
    def kinds(cls) -> tuple[type, ...]:
        """Return the types of all facts that the analysis gives."""
        return cls.gives if isinstance(cls.gives, tuple) else (cls.gives,)

    @abstractmethod
    def run(self, model: Model, facts: Facts) -> Fact:
        """Return the fact."""


EVERYTHING: Sequence[type] = (object,)

Hook = Callable[[Pass, Model, object, float], None]
"""Called after each pass with the pass, the model, the result (number of edits, or fact) and the seconds it took."""


def _kept(kind: type, keeps: Sequence[type]) -> bool:
    return any(issubclass(kind, kept) for kept in keeps)


class Pipeline:
    """Passes in an order that works.

    Args:
        passes: run from first to last.
        pinned: facts given from outside. An analysis that gives one of them is skipped as a whole.
        hooks: called after each pass.

    Raises:
        PipelineError: a pass needs a fact that no earlier pass gives; needs or uses a fact that an earlier pass gives
            and a rewrite in between forgets; or uses a fact that only a later pass gives.
    """

    def __init__(self, passes: Sequence[Pass], *, pinned: Iterable[object] = (), hooks: Sequence[Hook] = ()) -> None:
        self.passes = tuple(passes)
        self._pinned = tuple(pinned)
        self._hooks = tuple(hooks)
        _check_order(self.passes, {type(fact) for fact in self._pinned})

    def run(self, model: Model) -> Facts:
        """Run every pass over the model, which is edited in place, and return the facts that hold at the end.

        Raises:
            PipelineError: a pass reads a fact that it does not declare.
        """
        facts = Facts(self._pinned)
        for step in self.passes:
            if isinstance(step, Analysis) and (given := [kind for kind in step.kinds() if facts.is_pinned(kind)]):
                log.info("%s: skipped, %s was given", step.name, given[0].__name__)
                continue
            start = time.perf_counter()
            result = step.run(model, facts._as_seen_by(step))
            if isinstance(step, Analysis):
                for fact in result if isinstance(step.gives, tuple) else (result,):
                    facts._put(fact)
            elif isinstance(step, Rewrite) and result:
                facts._forget(step.keeps)
            seconds = time.perf_counter() - start
            for hook in self._hooks:
                hook(step, model, result, seconds)
        return facts


def _check_order(passes: Sequence[Pass], pinned: set[type]) -> None:
    """Follow the facts through the passes as if every rewrite edited the graph, and refuse the first that is missing.

    A fact that a pass uses may be absent if no pass gives it. If a rewrite forgets it, or only a later pass gives it,
    the pass would do without it silently, so the order is refused.
    """
    known = set(pinned)
    forgotten_by: dict[type, str] = {}
    skipped: dict[type, str] = {}
    for number, step in enumerate(passes):
        for kind in step.needs:
            if kind not in known:
                absent = skipped.get(kind, "no pass before it gives it")
                cause = f"{forgotten_by[kind]} forgets it" if kind in forgotten_by else absent
                raise PipelineError(f"{step.name} needs {kind.__name__}, and {cause}")
        for kind in step.uses:
            if kind in known:
                continue
            if kind in forgotten_by:
                raise PipelineError(f"{step.name} uses {kind.__name__}, and {forgotten_by[kind]} forgets it")
            giver = _giver(kind, passes[number + 1 :], pinned)
            if giver is not None:
                remedy = f"move {giver.name} before it"
                raise PipelineError(f"{step.name} uses {kind.__name__}, and {giver.name} behind it gives it; {remedy}")
        if isinstance(step, Analysis):
            given = pinned.intersection(step.kinds())
            if given:
                [name, *_] = sorted(kind.__name__ for kind in given)
                skipped.update(dict.fromkeys(step.kinds(), f"{step.name} is skipped, as {name} was given"))
            else:
                known.update(step.kinds())
        elif isinstance(step, Rewrite):
            forgotten = {kind for kind in known - pinned if not _kept(kind, step.keeps)}
            forgotten_by.update(dict.fromkeys(forgotten, step.name))
            known -= forgotten


def _giver(kind: type, passes: Iterable[Pass], pinned: set[type]) -> Pass | None:
    """Return the first of these passes that gives a fact of this type and is not skipped."""
    analyses = (step for step in passes if isinstance(step, Analysis) and not pinned.intersection(step.kinds()))
    return next((step for step in analyses if kind in step.kinds()), None)
