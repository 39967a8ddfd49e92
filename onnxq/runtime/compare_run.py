"""Comparison of a run with the exact computation: is it only rounded differently, or wrong; in which layers, and why.

A run and the exact computation of a file round the same values differently: integer kernels, or float32 sums in another
order, give another integer where a value is near the middle of two. In a deep network such differences spread until
both roundings are independent, so the run can be as far from the exact computation as this is from the float model
(within 3 dB), without any fault: noise at the outputs alone does not tell. What a run loses against the float model
tells even less: an average over a few pictures, some of which may have next to no signal.

Therefore there are three steps, and each is taken only if the one before leaves doubt:

1. The run is right if it is at least 6 dB nearer to the exact computation than the float model is, or if it has 50 dB.
2. If the run is no more than 3 dB further away, it is right if sums that cannot saturate bring it no nearer: 1 dB, or
   3 dB where only another file has such sums.
3. Each layer runs alone on the exact inputs, where nothing has spread: rounding leaves more than 37 dB, a fault less
   than 30 (`locate_error`). If none is wrong although the run is more than 3 dB further away, each runs with the layers
   before it. No wrong layer, no fault; unless the run is 6 dB further away than the float model is.

A remedy is tried before it is told: the wrong layers are made float, and the run must be right by the same steps, no
more than 3 dB further away than the float model. Layers that were right by themselves are not run alone again, unless
other nodes than before are around them.

The parts of an output that joins several are judged like outputs: beside boxes in pixels, the noise of scores is
nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import onnx

from onnxq.errors import ModelError
from onnxq.ir.quantized_layers import made_float
from onnxq.numerics.arrays import NamedArrays
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.runtime.base import Runtime
from onnxq.runtime.joined import Parts, with_parts
from onnxq.runtime.locate_error import WRONG, LayerError, altered, layer_errors, layers_before
from onnxq.runtime.session import Feed, open_session, run_named

_HARMLESS = 50.0
"""SQNR against the exact computation above which nothing is lost, dB: a hundredth of the noise of 8 bits."""

_NEARER = 6.0
"""How much nearer to the exact result than the float model a run is right; how much further, wrong; dB."""

_INDEPENDENT = 3.0
"""Noise of two independent roundings over that of one, dB."""

_GAIN = 1.0
"""Gain of sums that cannot saturate which is more than another rounding of the same file, dB; of another file,
`_INDEPENDENT`."""

_WRONG_TOGETHER = 15.0
"""SQNR of a layer with the layers before it below which it is wrong, dB; rounding inside a few of them can leave 23."""

_LEVELS = (0.0, 5.0, 10.0)
"""Added to the SQNR below which a layer is wrong: so many layers are made float, until the outputs are right, dB."""


@dataclass(frozen=True)
class RunComparison:
    """SQNR in dB over all feeds, of each float output and of each part of those that join several.

    Attributes:
        run: of the run against the float model.
        exact: of the exact computation of the file against the float model.
        against_exact: of the run against the exact computation.
        worst: number of the feed in which the run is furthest from the exact computation.
        computed: the outputs of the exact computation for each feed, and their parts.
        parts: part of an output -> the output.
        misshapen: output -> the shape that the run gives it, where the file declares another, which the exact
            computation gives it. These outputs have no SQNR.
    """

    run: Mapping[str, float]
    exact: Mapping[str, float]
    against_exact: Mapping[str, float]
    worst: int = 0
    computed: Sequence[NamedArrays] = field(default=(), repr=False)
    misshapen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)

    def whole(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return values of outputs without those of parts."""
        return {name: value for name, value in values.items() if name not in self.parts}


@dataclass(frozen=True)
class Fault:
    """A run that is wrong.

    Attributes:
        output: the output, or the part of one, with the most noise.
        sqnr: of this output in the run against the exact computation, dB.
        layers: the layers that are wrong by themselves, the worst first.
        saturates: sums of products saturate in 16 bits.
        remedy: layers that are to stay float; empty if nothing was found that helps.
        restored: SQNR of the output against the exact computation with the remedy, dB.
    """

    output: str
    sqnr: float
    layers: tuple[str, ...]
    saturates: bool
    remedy: tuple[str, ...] = ()
    restored: float = math.nan


class Check:
    """Compares runs of a model on some feeds.

    Args:
        feeds: the inputs.
        expected: the outputs of the float model for each of them.
        accept: called with the outputs of every run; raises if they are unusable.
        joined: outputs that join several, and how they are cut.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        expected: Sequence[NamedArrays],
        accept: Callable[[NamedArrays], None] = lambda outputs: None,
        joined: Mapping[str, Parts] = MappingProxyType({}),
    ) -> None:
        self._feeds = feeds
        self._accept = accept
        self._joined = joined
        self._expected = [with_parts(outputs, joined) for outputs in expected]

    def compare(self, proto: onnx.ModelProto, opened: Runtime) -> RunComparison:
        """Return how a model runs.

        Args:
            proto: the model, which is computed exactly.
            opened: the same model in a runtime.

        Raises:
            ModelError: it cannot be run.
        """
        exact = self._computed(proto)
        running, simulated, between = SqnrMeter(), SqnrMeter(), SqnrMeter()
        worst: tuple[float, int] = (math.inf, 0)
        misshapen: dict[str, tuple[int, ...]] = {}
        for number, (feed, expected, computed) in enumerate(zip(self._feeds, self._expected, exact, strict=True)):
            found = self._accepted(opened.run(feed))
            running.add(expected, found)
            simulated.add(expected, computed)
            alone = SqnrMeter()
            alone.add(computed, found)
            between.merge(alone)
            worst = min(worst, (min(alone.decibels().values(), default=math.inf), number))
            misshapen |= _misshapen(proto, computed, found)
        parts = {part: output for output, cut in self._joined.items() for part, _ in cut.named(output)}
        run, simulation, against = running.decibels(), simulated.decibels(), between.decibels()
        return RunComparison(run, simulation, against, worst[1], exact, misshapen, parts)

    def _computed(self, proto: onnx.ModelProto) -> Sequence[NamedArrays]:
        """Return the outputs of the exact computation of a model for each feed."""
        session = open_session(proto, optimized=False, brief=True)
        return [self._accepted(run_named(session, feed)) for feed in self._feeds]

    def _accepted(self, outputs: NamedArrays) -> NamedArrays:
        """Return the outputs of a run with their parts."""
        self._accept(outputs)
        return with_parts(outputs, self._joined)

    def find_fault(
        self,
        proto: onnx.ModelProto,
        runtime: type[Runtime],
        layers: Sequence[str],
        compared: RunComparison,
        *,
        remedy: bool = True,
    ) -> Fault | None:
        """Return the fault of a run, with a remedy if one helps, or None if it is only rounded differently.

        Args:
            proto: the model.
            runtime: the runtime.
            layers: names of its layers with quantized weights.
            compared: the result of `compare`.
            remedy: look for one.

        Raises:
            ModelError: a part of the model cannot be loaded or run.
        """
        doubtful = self._doubtful(proto, runtime, compared)
        if not doubtful:
            return None
        output = min(doubtful, key=lambda name: compared.against_exact[name])
        before = dict.fromkeys(compared.parts.get(name, name) for name in doubtful)
        feed, candidates = self._feeds[compared.worst], layers_before(proto, list(before), layers)
        errors = layer_errors(proto, candidates, runtime, feed)
        limit, is_far = WRONG, any(_lead(compared, name) < -_INDEPENDENT for name in doubtful)
        if is_far and not _below(errors, WRONG):
            limit, errors = _WRONG_TOGETHER, layer_errors(proto, candidates, runtime, feed, depth=1)
        wrong = _below(errors, limit)
        if not wrong and all(_lead(compared, name) > -_NEARER for name in doubtful):
            return None
        by_itself = [error.saturates for error in errors if error.layer in wrong]
        gain = doubtful[output] - compared.against_exact[output]
        fault = Fault(output, compared.against_exact[output], wrong, any(by_itself) if wrong else gain > _INDEPENDENT)
        return self._with_remedy(fault, proto, runtime, errors, feed, limit) if remedy else fault

    def _doubtful(self, proto: onnx.ModelProto, runtime: type[Runtime], compared: RunComparison) -> dict[str, float]:
        """Return the outputs that may be wrong, with their SQNR against exact if no sum can saturate, dB."""
        suspected = [name for name in compared.against_exact if _is_suspected(compared, name)]
        if not suspected:
            return {}
        other, opened = runtime.without_saturation(proto)
        between = SqnrMeter()
        for feed, computed in zip(
            self._feeds, compared.computed if other is proto else self._computed(other), strict=True
        ):
            between.add(computed, with_parts(opened.run(feed), self._joined))
        best, gain = between.decibels(), _GAIN if other is proto else _INDEPENDENT
        return {
            name: best[name]
            for name in suspected
            if _lead(compared, name) < -_INDEPENDENT or best[name] > compared.against_exact[name] + gain
        }

    def _with_remedy(
        self,
        fault: Fault,
        proto: onnx.ModelProto,
        runtime: type[Runtime],
        errors: Sequence[LayerError],
        feed: Feed,
        limit: float,
    ) -> Fault:
        """Return the fault with the fewest of the worst layers that restore the outputs if they are float."""
        tried: tuple[str, ...] = ()
        for level in _LEVELS:
            layers = _below(errors, limit + level)
            if layers == tried or len(layers) == len(errors):
                continue  # without any integer layer it is no quantized model
            tried, changed = layers, made_float(proto, layers)
            try:
                compared = self.compare(changed, runtime(changed))
                others = [error.layer for error in errors if error.layer not in layers]
                if self._is_right(changed, runtime, compared, altered(proto, changed, others), feed):
                    restored = compared.against_exact[fault.output]
                    return Fault(fault.output, fault.sqnr, fault.layers, fault.saturates, layers, restored)
            except ModelError:
                continue
        return fault

    def _is_right(
        self,
        proto: onnx.ModelProto,
        runtime: type[Runtime],
        compared: RunComparison,
        layers: Sequence[str],
        feed: Feed,
    ) -> bool:
        """Return whether a run is right: beyond doubt, or no layer is wrong and the roundings are independent."""
        if not self._doubtful(proto, runtime, compared):
            return True
        if any(_lead(compared, name) < -_INDEPENDENT for name in compared.against_exact):
            return False
        return not _below(layer_errors(proto, layers, runtime, feed), WRONG)


def _misshapen(proto: onnx.ModelProto, computed: NamedArrays, found: NamedArrays) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the outputs that contradict the file's. A size that the file leaves open depends on data."""
    declared = {output.name: output.type.tensor_type.shape.dim for output in proto.graph.output}

    def fits(name: str, shape: tuple[int, ...]) -> bool:
        sizes = [dim.dim_value for dim in declared[name]]
        return len(sizes) == len(shape) and all(not a or a == b for a, b in zip(sizes, shape, strict=True))

    return {
        name: found[name].shape
        for name in declared
        if fits(name, computed[name].shape) and not fits(name, found[name].shape)
    }


def _below(errors: Sequence[LayerError], level: float) -> tuple[str, ...]:
    return tuple(error.layer for error in errors if error.sqnr < level)


def _lead(compared: RunComparison, output: str) -> float:
    """Return how much nearer to the exact computation than the float model the run is, dB."""
    return compared.against_exact[output] - min(compared.exact.get(output, math.inf), _HARMLESS)


def _is_suspected(compared: RunComparison, output: str) -> bool:
    return _lead(compared, output) < _NEARER and compared.against_exact[output] < _HARMLESS
