"""Mixed-precision search: the fewest parts of a network to keep at a higher precision to stay within a loss.

The most sensitive parts come first; bisection finds how many are needed. Each trial quantizes the model and measures
its loss on held-out images.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import onnx

from onnxq.api import Quantized, quantize
from onnxq.calibration.samples import Samples
from onnxq.config import Config
from onnxq.errors import ConfigError, DataError, ModelError, OnnxqError
from onnxq.evaluation.bisection import asked_next, least
from onnxq.evaluation.criteria import Criterion
from onnxq.evaluation.held_out import require_held_out
from onnxq.facts import Plan, Sensitivities, Statistics
from onnxq.ir import storage
from onnxq.ir.files import atomic_write, refuse_special
from onnxq.ir.load import load
from onnxq.pipeline import Hook
from onnxq.progress import Progress, silent
from onnxq.runtime.pool import IN_PROCESS, Finished, Pool
from onnxq.runtime.session import limited_cores
from onnxq.version import VERSION

log = logging.getLogger(__name__)

WIDENED_BITS = 8
"""Width that narrower pieces get before they are kept in float."""


@dataclass(frozen=True)
class HigherPrecision:
    """A part of the network at a higher precision than the options ask for.

    Attributes:
        nodes: names of its nodes, the layer first.
        bits: width of its weights and inputs; None if it stays float.
    """

    nodes: tuple[str, ...]
    bits: int | None


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        quantized: the model.
        config: options with which `quantize` gives the same model at once.
        kept: parts kept at a higher precision, the most sensitive first.
        loss: loss of the model, in the unit of the criterion.
        loss_text: the loss in words.
        images: number of images that the loss was measured on.
        trials: number of parts kept -> loss in words, for each trial.
    """

    quantized: Quantized
    config: Config
    kept: tuple[HigherPrecision, ...]
    loss: float
    loss_text: str
    images: int
    trials: Mapping[int, str]


def search(
    model: str | Path | onnx.ModelProto,
    data: object,
    config: Config,
    criterion: Criterion,
    limit: float,
    *,
    record_file: Path | None = None,
    on_calibration: bool = False,
    hooks: Sequence[Hook] = (),
    progress: Progress = silent,
    pool: Pool = IN_PROCESS,
) -> SearchResult:
    """Find the fewest parts to keep at a higher precision, so that the loss is at most `limit`.

    Parts with fewer than 8 bits get 8, the most sensitive first; if all of them are not enough, parts stay float in the
    same order. Bisection assumes that a model loses less with each part more, which measurements confirm up to their
    noise: the model found is within the limit, and the model with one part less was not.

    Args:
        model: the float model.
        data: calibration data as for `quantize`; read several times.
        config: the options to start from.
        criterion: measures the loss.
        limit: the largest loss allowed.
        record_file: JSON file that each result is written to at once; an interrupted search continues from it.
        on_calibration: allow the criterion to measure on calibration images.
        hooks: called after each pass of what runs in this process.
        progress: called after each step.
        pool: where trials run, several at once: those that bisection may ask for next. The result is the same, as it
            does not ask for others.

    Raises:
        ConfigError: the criterion measures on calibration images, or the limit is not a number or cannot be kept.
        ModelError, DataError: as from `quantize` and the criterion.
    """
    if math.isnan(limit):
        raise ConfigError("limit: expected a number, got nan")
    original = load(model)
    plain = quantize(original, data, config, hooks=hooks, progress=progress, pool=pool)
    if not on_calibration:
        require_held_out(plain.samples.files if plain.samples else (), criterion.files)
    record = _TrialRecord.open(record_file, _search_key(original, config, plain.facts[Statistics], criterion))
    record.check(plain.facts[Plan])
    trials = _Trials(original, data, config, criterion, record, hooks, progress, plain, pool)
    count = 0
    if trials.loss(0) > limit:
        if not record.order:
            record.set_order(trials.measure_sensitivities())
        trials.candidates = _candidates(record.order, plain.facts[Plan])
        count = trials.least(limit)
        if trials.loss(count) > limit:
            raise ConfigError(
                f"the limit cannot be kept: with every part at a higher precision the model still has "
                f"{criterion.describe(trials.loss(count))}; allow more, or give better calibration data"
            )
    return trials.result(count)


class _Trials:
    """Quantizes a model with its first candidates at a higher precision, and measures the loss.

    Attributes:
        candidates: what to keep at a higher precision, in this order.
    """

    def __init__(
        self,
        original: onnx.ModelProto,
        data: object,
        config: Config,
        criterion: Criterion,
        record: "_TrialRecord",
        hooks: Sequence[Hook],
        progress: Progress,
        plain: Quantized,
        pool: Pool,
    ) -> None:
        self._original, self._data, self._config = original, data, config
        self._criterion, self._record = criterion, record
        self._hooks, self._progress, self._pool = hooks, progress, pool
        self._samples = plain.samples
        self._failed: dict[int, OnnxqError] = {}
        self._latest: tuple[int, Quantized] | None = (0, plain)
        self._losses: dict[int, float] = {}
        self.candidates: list[HigherPrecision] = []

    def loss(self, count: int) -> float:
        """Return the loss with `count` candidates, from the record if it has it."""
        if count in self._failed:
            raise self._failed[count]
        loss = self._record.losses.get(count)
        if loss is None:
            progress = _prefixed(f"trial {len(self._losses) + 1}", self._progress)
            loss = self._criterion.loss(self._quantized(count, progress).model, progress)
            self._add(count, loss)
        self._losses[count] = loss
        return loss

    def _add(self, count: int, loss: float) -> None:
        """Add a loss to the record.

        Raises:
            ModelError: it is not a number.
        """
        if math.isnan(loss):
            raise ModelError(
                f"the loss with {count} parts at a higher precision is not a number: outputs of the float model or "
                "of the quantized one are not finite; check both with python -m onnxq.compare"
            )
        self._record.add(count, loss)
        log.info("%d parts at a higher precision: %s", count, self._criterion.describe(loss))

    def least(self, limit: float) -> int:
        """Return the number of candidates that bisection finds; raises as `loss` does."""
        most = len(self.candidates)
        while self._pool.is_remote:
            losses = self._record.losses
            next_ones = asked_next(losses, limit, most, self._pool.at_once)
            if not next_ones or next_ones[0] in self._failed:
                break
            self._measure([count for count in next_ones if count not in self._failed])
        return least(self.loss, limit, most)

    def _measure(self, counts: Sequence[int]) -> None:
        """Measure several losses at once; what fails is raised if it is asked for."""
        assert self._samples is not None
        work = _Trial(
            self._original, self._samples.to_send(), self._config, self._criterion, self.candidates, self._pool.cores
        )

        def told(done: int) -> None:
            self._progress(f"trials {', '.join(map(str, counts))}", done, len(counts))

        for number, found in self._pool.run(work, counts, told):
            try:
                if isinstance(found, OnnxqError):
                    raise found
                self._add(counts[number], found)
            except OnnxqError as error:
                self._failed[counts[number]] = error

    def measure_sensitivities(self) -> list[tuple[str, ...]]:
        """Return the nodes of each part of the network, the most sensitive part first."""
        measured = quantize(
            self._original,
            self._data,
            self._config,
            hooks=self._hooks,
            sensitivity=True,
            progress=self._progress,
            pool=self._pool,
        )
        return [part.nodes for part in measured.facts[Sensitivities].worst_first()]

    def result(self, count: int) -> SearchResult:
        """Return the model with `count` candidates, its loss and all trials."""
        loss = self.loss(count)
        return SearchResult(
            quantized=self._quantized(count, self._progress),
            config=_with(self._config, self.candidates[:count]),
            kept=tuple(self.candidates[:count]),
            loss=loss,
            loss_text=self._criterion.describe(loss),
            images=self._criterion.images,
            trials={kept: self._criterion.describe(each) for kept, each in self._losses.items()},
        )

    def _quantized(self, count: int, progress: Progress) -> Quantized:
        """Return the model with `count` candidates; only the latest one is kept in memory."""
        if self._latest is None or self._latest[0] != count:
            self._latest = None  # frees its memory before the next one is made
            config = _with(self._config, self.candidates[:count])
            quantized = quantize(
                self._original, self._data, config, hooks=self._hooks, progress=progress, pool=self._pool
            )
            self._latest = count, quantized
        return self._latest[1]


class _Trial:
    """Measures the loss with some of the candidates, where the pool runs it.

    Args:
        original, samples, config: as in `search`.
        criterion: as in `search`.
        candidates: all of them, in order.
        share: cores to use; 0: all.
    """

    def __init__(
        self,
        original: onnx.ModelProto,
        samples: Samples,
        config: Config,
        criterion: Criterion,
        candidates: Sequence[HigherPrecision],
        share: int,
    ) -> None:
        self._original, self._samples, self._config = original, samples, config
        self._criterion = criterion
        self._candidates = candidates
        self._share = share

    def __call__(self, count: int, finished: Finished) -> float | OnnxqError:
        """Return the loss with so many candidates, or why there is none."""
        try:
            config = _with(self._config, self._candidates[:count])
            with limited_cores(self._share):
                return self._criterion.loss(quantize(self._original, self._samples, config).model, silent)
        except OnnxqError as error:
            return error
        finally:
            finished(1)


def _prefixed(prefix: str, progress: Progress) -> Progress:
    """Return a progress callback that puts a prefix before each task."""

    def call(task: str, done: int, total: int, /) -> None:
        progress(f"{prefix}: {task}", done, total)

    return call


def _candidates(order: Iterable[tuple[str, ...]], plan: Plan) -> list[HigherPrecision]:
    """Return what to keep at a higher precision, in order: narrow parts at 8 bits, then all parts but one as float."""
    parts = list(order)
    narrow = {name for weight in plan.weights if weight.scheme.bits < WIDENED_BITS for name in weight.users}
    narrow |= {name for point in plan.points if point.scheme.bits < WIDENED_BITS for name in point.users}
    widened = [HigherPrecision(nodes, WIDENED_BITS) for nodes in parts if narrow & set(nodes)]
    return widened + [HigherPrecision(nodes, None) for nodes in parts[:-1]]


def _with(config: Config, kept: Sequence[HigherPrecision]) -> Config:
    """Return the options that keep these parts at a higher precision."""
    floats = [name for part in kept if part.bits is None for name in part.nodes]
    wide = {name: part.bits for part in kept if part.bits is not None for name in part.nodes if name not in floats}
    widths = (f"{name}={bits}/{bits}" for name, bits in wide.items())
    return replace(config, exclude=(*config.exclude, *floats), bits=(*config.bits, *widths))


def _search_key(original: onnx.ModelProto, config: Config, statistics: Statistics, criterion: Criterion) -> str:
    """Return a digest of everything that the results of a search depend on."""
    digest = hashlib.sha256(storage.digest(original).encode())
    for name in sorted(statistics.histograms):
        histogram = statistics.histograms[name]
        bins = f"{name} {histogram.exponent} {histogram.start} {histogram.low} {histogram.high}"
        digest.update(bins.encode() + histogram.counts.tobytes())
    digest.update(f"{VERSION} {config} {statistics.samples} {criterion.identity()}".encode())
    return digest.hexdigest()


def _no_record(path: Path | None, cause: object) -> DataError:
    return DataError(f"{path}: not a record of this search ({cause}); remove it")


class _Recorded(msgspec.Struct, forbid_unknown_fields=True):
    """What the file of a search holds."""

    key: str
    order: list[Annotated[list[str], msgspec.Meta(min_length=1)]]
    losses: dict[Annotated[int, msgspec.Meta(ge=0)], float]


class _TrialRecord:
    """Results of a search so far, in a JSON file.

    Attributes:
        order: nodes of each part, the most sensitive part first; empty if not measured yet.
        losses: number of parts kept -> loss.
    """

    def __init__(self, path: Path | None, key: str, order: list[tuple[str, ...]], losses: dict[int, float]) -> None:
        self._path = path
        self._key = key
        self.order = order
        self.losses = losses

    @classmethod
    def open(cls, path: Path | None, key: str) -> "_TrialRecord":
        """Read the results of the search with this key; there are none if the file is of another search.

        Raises:
            DataError: the file cannot be read, or is not such a record.
        """
        if path is None or not path.exists():
            return cls(path, key, [], {})
        refuse_special(path)
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Recorded)
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise _no_record(path, error) from error
        if found.key != key:
            return cls(path, key, [], {})
        return cls(path, key, [tuple(nodes) for nodes in found.order], found.losses)

    def check(self, plan: Plan) -> None:
        """Check that the results can be those of a search with this plan.

        Raises:
            DataError: parts have nodes that the network lacks, or there are losses with more parts than it has.
        """
        names = [name for nodes in self.order for name in nodes]
        unknown = next((name for name in names if name not in plan.ops), None)
        if unknown is not None:
            raise _no_record(self._path, f"there is no node {unknown!r}")
        if len(set(names)) < len(names):
            raise _no_record(self._path, "a node is in two parts")
        most = len(_candidates(self.order, plan))
        if max(self.losses, default=0) > most:
            raise _no_record(self._path, f"it has the loss with {max(self.losses)} of {most} parts")

    def set_order(self, order: list[tuple[str, ...]]) -> None:
        """Set and write the order of the parts."""
        self.order = order
        self._write()

    def add(self, count: int, loss: float) -> None:
        """Add and write the loss with `count` parts; one that JSON cannot hold is not kept."""
        if not math.isfinite(loss):
            return
        self.losses[count] = loss
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        losses = {str(count): self.losses[count] for count in sorted(self.losses)}
        content = {"key": self._key, "order": self.order, "losses": losses}
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
