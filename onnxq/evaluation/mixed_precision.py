"""The fewest pieces of a network to keep at a higher precision, so that what is lost stays within a budget.

The pieces are taken from the most sensitive on; how many are needed is found by bisection, each trial by quantizing the
model anew and measuring what it lost, on data that it was not calibrated with.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from onnxq._files import atomic_write
from onnxq.api import Quantized, quantize
from onnxq.config import Config
from onnxq.errors import ConfigError, DataError
from onnxq.evaluation.criteria import Criterion
from onnxq.facts import Plan, Sensitivities, Statistics
from onnxq.ir import storage
from onnxq.ir.load import load
from onnxq.pipeline import Hook
from onnxq.progress import Progress, silent
from onnxq.version import VERSION

log = logging.getLogger(__name__)

WIDENED_BITS = 8
"""Width that narrower pieces get before they are kept in float."""


@dataclass(frozen=True)
class HigherPrecision:
    """A piece of the network at a higher precision than the options say.

    Attributes:
        nodes: its names, the layer first.
        bits: of its weights and inputs; None: it stays float.
    """

    nodes: tuple[str, ...]
    bits: int | None


@dataclass(frozen=True)
class SearchResult:
    """What a search ends with.

    Attributes:
        quantized: the model.
        config: with which `quantize` makes it at once.
        kept: what was kept at a higher precision, the most sensitive first.
        loss: of the model, as the judge has it.
        said: the same in words.
        pictures: how many the judge looked at.
        trials: by how many pieces were kept what each model that was judged had lost, in words.
    """

    quantized: Quantized
    config: Config
    kept: tuple[HigherPrecision, ...]
    loss: float
    said: str
    pictures: int
    trials: Mapping[int, str]

    def summary(self) -> dict[str, Any]:
        """The search in numbers and words, for reports."""
        return {
            "said": self.said,
            "pictures": self.pictures,
            "kept": [{"nodes": list(piece.nodes), "bits": piece.bits} for piece in self.kept],
            "trials": [{"kept": count, "said": said} for count, said in sorted(self.trials.items())],
        }


def search(
    model: str | Path | onnx.ModelProto,
    data: object,
    config: Config,
    judge: Criterion,
    limit: float,
    *,
    cache: Path | None = None,
    on_calibration: bool = False,
    hooks: Sequence[Hook] = (),
    progress: Progress = silent,
) -> SearchResult:
    """Find the fewest pieces to keep at a higher precision, so that no more than `limit` is lost.

    Pieces of fewer than 8 bits first get 8, from the most sensitive on; where all of them do not suffice, pieces stay
    float, in the same order. A piece more is taken for a model that loses no more, which measurements confirm but for
    their noise: what is found is within the limit, and with one piece less it was not.

    Args:
        model: float.
        data: to calibrate with, as for `quantize`; it is read several times.
        config: the options to start from.
        judge: says what was lost.
        limit: how much may be.
        cache: file that every result goes to at once, and from which a search that was interrupted goes on.
        on_calibration: the judge may look at pictures that the model was calibrated with.
        hooks: called after each pass.
        progress: told how far the work is.

    Raises:
        ConfigError: the judge looks at pictures of the calibration; the limit is no number, or cannot be kept.
        ModelError, DataError: as from `quantize` and the judge.
    """
    if math.isnan(limit):
        raise ConfigError("the limit is no number; say how much may be lost")
    original = load(model)
    plain = quantize(original, data, config, hooks=hooks, progress=progress)
    if not on_calibration:
        refuse_shared(plain.samples.files if plain.samples else (), judge.files)
    results = _TrialRecord.open(cache, _digest(original, config, plain.facts[Statistics], judge))
    made: dict[int, Quantized] = {0: plain}
    kept: list[HigherPrecision] = []

    def settings(count: int) -> Config:
        return _with(config, kept[:count])

    def loss(count: int) -> float:
        known = results.losses.get(count)
        if known is None:
            trial = _within(f"trial {len(tried) + 1}", progress)
            if count not in made:
                made.clear()
                made[count] = quantize(original, data, settings(count), hooks=hooks, progress=trial)
            known = judge.loss(made[count].model, trial)
            results.add(count, known)
            log.info("%d pieces at a higher precision: %s", count, judge.say(known))
        tried[count] = judge.say(known)
        return known

    tried: dict[int, str] = {}
    best = 0
    if loss(0) > limit:
        if not results.order:
            measured = quantize(original, data, config, hooks=hooks, sensitivity=True, progress=progress)
            results.rank([piece.nodes for piece in measured.facts[Sensitivities].worst_first()])
        kept += _steps(results.order, plain.facts[Plan])
        best = _least(loss, limit, len(kept))
        if loss(best) > limit:
            raise ConfigError(
                f"the limit cannot be kept: with every piece at a higher precision the model still has "
                f"{judge.say(loss(best))}; allow more, or give better calibration data"
            )
    final = made.get(best) or quantize(original, data, settings(best), hooks=hooks, progress=progress)
    lost = loss(best)
    return SearchResult(final, settings(best), tuple(kept[:best]), lost, judge.say(lost), judge.pictures, tried)


def _within(whole: str, progress: Progress) -> Progress:
    """The progress of one of many things, which says of which."""

    def tell(task: str, done: int, total: int, /) -> None:
        progress(f"{whole}: {task}", done, total)

    return tell


def _least(loss: Callable[[int], float], limit: float, most: int) -> int:
    """The least count with a loss within the limit, if fewer are always worse; `most` where none is."""
    low, high = 0, 1
    while high < most and loss(high) > limit:
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if loss(middle) > limit:
            low = middle
        else:
            high = middle
    return high


def _steps(order: Iterable[tuple[str, ...]], plan: Plan) -> list[HigherPrecision]:
    """What to keep, in this order: narrow pieces at 8 bits, then pieces in float; but for the last, which is left."""
    pieces = list(order)
    narrow = {name for weight in plan.weights if weight.scheme.bits < WIDENED_BITS for name in weight.users}
    narrow |= {name for point in plan.points if point.scheme.bits < WIDENED_BITS for name in point.users}
    widened = [HigherPrecision(nodes, WIDENED_BITS) for nodes in pieces if narrow & set(nodes)]
    return widened + [HigherPrecision(nodes, None) for nodes in pieces[:-1]]


def _with(config: Config, kept: Sequence[HigherPrecision]) -> Config:
    """The options with which these pieces are kept."""
    floats = [name for piece in kept if piece.bits is None for name in piece.nodes]
    wide = {name: piece.bits for piece in kept if piece.bits is not None for name in piece.nodes if name not in floats}
    widths = (f"{name}={bits}/{bits}" for name, bits in wide.items())
    return replace(config, exclude=(*config.exclude, *floats), bits=(*config.bits, *widths))


def refuse_shared(calibrated: Sequence[Path], judged: Sequence[Path]) -> None:
    """Refuse to judge by pictures that were calibrated with.

    Raises:
        ConfigError: a picture is among both, under whatever name.
    """
    known = {_content(file): file for file in calibrated}
    for file in judged:
        if file.is_file() and (twin := known.get(_content(file))) is not None:
            raise ConfigError(
                f"--images: {file} is calibrated with too, as {twin}; what was fitted to a picture looks better on it "
                "than on others: give other pictures, or --on-calibration if that is meant"
            )


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _digest(original: onnx.ModelProto, config: Config, statistics: Statistics, judge: Criterion) -> str:
    """Of everything that the results of a search depend on."""
    digest = hashlib.sha256(storage.digest(original).encode())
    for name in sorted(statistics.histograms):
        digest.update(name.encode() + statistics.histograms[name].counts.tobytes())
    digest.update(f"{VERSION} {config} {statistics.samples} {judge.identity()}".encode())
    return digest.hexdigest()


class _TrialRecord:
    """What a search has found so far, in a file."""

    def __init__(self, path: Path | None, key: str, order: list[tuple[str, ...]], losses: dict[int, float]) -> None:
        self._path = path
        self._key = key
        self.order = order
        self.losses = losses

    @classmethod
    def open(cls, path: Path | None, key: str) -> "_TrialRecord":
        """Results of the same search, if the file has any; none if it is of another one."""
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: is no record of a search ({error}); remove it") from error
        if not isinstance(found, Mapping) or found.get("key") != key:
            return cls(path, key, [], {})
        order = [tuple(nodes) for nodes in found["order"]]
        return cls(path, key, order, {int(count): float(loss) for count, loss in found["losses"].items()})

    def rank(self, order: list[tuple[str, ...]]) -> None:
        """Keep the order of the pieces."""
        self.order = order
        self._write()

    def add(self, count: int, loss: float) -> None:
        """Keep what was lost with so many steps."""
        self.losses[count] = loss
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        found = {"key": self._key, "order": self.order, "losses": {str(k): v for k, v in self.losses.items()}}
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
