"""The pass manager: it knows nothing of quantization.

A `Rewrite` edits the graph and says how many edits it made. An `Analysis` reads the graph and finds one frozen fact;
facts are kept by their type. An edit forgets the facts found before it, but for those that the rewrite `keeps`. So
data flows one way, and an order that cannot work is refused when the pipeline is built.
"""

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
    """What the analyses found, at most one fact of each type."""

    def __init__(self, pinned: Iterable[object] = ()) -> None:
        self._found: dict[type, object] = {type(fact): fact for fact in pinned}
        self._pinned = frozenset(self._found)

    def __getitem__(self, kind: type[Fact]) -> Fact:
        fact = self.get(kind)
        if fact is None:
            raise PipelineError(f"no {kind.__name__} has been found for this graph")
        return fact

    def get(self, kind: type[Fact]) -> Fact | None:
        """The fact of this type, or None."""
        fact = self._found.get(kind)
        assert fact is None or isinstance(fact, kind)
        return fact

    def __contains__(self, kind: type) -> bool:
        return kind in self._found

    def __iter__(self) -> Iterator[object]:
        return iter(self._found.values())

    def is_pinned(self, kind: type) -> bool:
        """Whether the fact was given from outside: it is never found anew and never forgotten."""
        return kind in self._pinned

    def _put(self, fact: object) -> None:
        self._found[type(fact)] = fact

    def _forget(self, keeps: Sequence[type]) -> None:
        for kind in list(self._found):
            if kind not in self._pinned and not _kept(kind, keeps):
                del self._found[kind]


class Pass(ABC):
    """One step over a model. `name` is also the name of its file and on the command line."""

    name: ClassVar[str]
    needs: ClassVar[Sequence[type]] = ()

    @abstractmethod
    def run(self, model: Model, facts: Facts) -> Any:
        """Do the step."""


class Rewrite(Pass):
    """A pass that edits the graph in place.

    `keeps` lists the types of facts that stay true after its edits; `keeps = EVERYTHING` keeps all.
    """

    keeps: ClassVar[Sequence[type]] = ()

    @abstractmethod
    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of edits; a second run on its own result makes none."""


class Analysis(Pass, Generic[Fact]):
    """A pass that reads the graph and returns one frozen fact of type `gives`."""

    gives: ClassVar[type]

    @abstractmethod
    def run(self, model: Model, facts: Facts) -> Fact:
        """Find the fact; the graph is not touched."""


EVERYTHING: Sequence[type] = (object,)

Hook = Callable[[Pass, Model, object, float], None]
"""Called after each pass with the pass, the model, the pass's result (edits or fact) and the seconds it took."""


def _kept(kind: type, keeps: Sequence[type]) -> bool:
    return any(issubclass(kind, kept) for kept in keeps)


class Pipeline:
    """Passes in an order that works.

    Args:
        passes: run from first to last.
        pinned: facts given from outside; the analyses that would find them are skipped.
        hooks: called after each pass.

    Raises:
        PipelineError: a pass needs a fact that no pass before it gives, or that an edit in between forgets.
    """

    def __init__(self, passes: Sequence[Pass], *, pinned: Iterable[object] = (), hooks: Sequence[Hook] = ()) -> None:
        self.passes = tuple(passes)
        self._pinned = tuple(pinned)
        self._hooks = tuple(hooks)
        _check_order(self.passes, {type(fact) for fact in self._pinned})

    def run(self, model: Model) -> Facts:
        """Run every pass over the model, which is edited in place, and return the facts that hold at the end."""
        facts = Facts(self._pinned)
        for step in self.passes:
            if isinstance(step, Analysis) and facts.is_pinned(step.gives):
                log.info("%s: skipped, %s was given", step.name, step.gives.__name__)
                continue
            start = time.perf_counter()
            result = step.run(model, facts)
            if isinstance(step, Analysis):
                facts._put(result)
            elif isinstance(step, Rewrite) and result:
                facts._forget(step.keeps)
            seconds = time.perf_counter() - start
            for hook in self._hooks:
                hook(step, model, result, seconds)
        return facts


def _check_order(passes: Sequence[Pass], pinned: set[type]) -> None:
    """Walk the passes as if every rewrite edited, and refuse the first need that nothing gives."""
    known = set(pinned)
    lost: dict[type, str] = {}
    for step in passes:
        for need in step.needs:
            if need not in known:
                cause = f"{lost[need]} forgets it" if need in lost else "no pass before it gives it"
                raise PipelineError(f"{step.name} needs {need.__name__}, and {cause}")
        if isinstance(step, Analysis):
            known.add(step.gives)
        elif isinstance(step, Rewrite):
            gone = {kind for kind in known - pinned if not _kept(kind, step.keeps)}
            lost.update(dict.fromkeys(gone, step.name))
            known -= gone
