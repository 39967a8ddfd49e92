"""What layers must reproduce: their float outputs at some positions of each image."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import onnx

from onnxq.calibration.feeds import Loader
from onnxq.ir import Node, ending_at
from onnxq.numerics.arrays import AnyArray, Float32Array
from onnxq.reconstruction.im2col import Im2col, Positions
from onnxq.reconstruction.sample_arrays import SampleArrays
from onnxq.runtime.session import iter_outputs
from onnxq.runtime.streaming import Sessions
from onnxq.yolo.detected_objects import DetectedObjects, read_objects, tensors_read
from onnxq.yolo.detector import Detector

_POSITIONS = 300
"""Output positions per image that a layer is fitted on."""

_LEVELS = 127
"""Greatest magnitude of the integers that outputs are kept as. Their rounding errors are small beside those of the
layer, and cancel over many positions."""


class Places(NamedTuple):
    """Output positions of a layer in a field: on an image, or in all rows of a sample.

    Attributes:
        positions: rows and columns, each pair once.
        roots: square roots of how often each was drawn, float32 (n,).
    """

    positions: Positions
    roots: Float32Array

    def thinned(self, every: int) -> "Places":
        """Return every n-th of them."""
        return Places(self.positions[:, ::every], self.roots[::every])


@dataclass(frozen=True)
class LayerTargets:
    """Output positions of a layer, and the float outputs there.

    Attributes:
        layer: the node, in the float graph.
        im2col: of the layer.
        places: of each field of each sample.
        outputs: of each sample, int8 (groups, outputs of a group, n), its fields one after the other.
        scales: of the outputs of each sample, float32 (groups, outputs of a group, 1).
    """

    layer: Node
    im2col: Im2col
    places: tuple[Sequence[Places], ...]
    outputs: tuple[AnyArray, ...]
    scales: tuple[Float32Array, ...]

    def floats(self, sample: int) -> Float32Array:
        """Return the outputs of a sample, (groups, outputs of a group, n)."""
        return self.outputs[sample].astype(np.float32) * self.scales[sample]


@dataclass(frozen=True)
class FloatTargets:
    """The targets of all layers.

    Attributes:
        samples: numbers of the samples that could be read.
        of_layer: layer -> its targets.
    """

    samples: tuple[int, ...]
    of_layer: dict[str, LayerTargets]


def collect_targets(
    model: onnx.ModelProto, layers: Sequence[tuple[Node, Im2col]], loaders: Sequence[Loader], detector: Detector | None
) -> FloatTargets:
    """Run the float graph once over all samples, and return the outputs of layers at drawn positions.

    Half of the positions are on objects that the model detects. Layers whose outputs have the same height and width
    have the same positions.

    Args:
        model: the float graph.
        layers: of it, and the product that each computes.
        loaders: of the samples.
        detector: reads the objects; if None, or of no known family, positions are drawn anywhere.

    Raises:
        ModelError: onnxruntime cannot run the model, or its tensors do not fit into memory.
    """
    by_tensor = {node.outputs[0].name: im2col for node, im2col in layers}
    detecting = tensors_read(detector)
    # Objects come first: they decide on the positions.
    sessions = Sessions(ending_at(model, [*detecting, *by_tensor]))
    names = [output.name for output in sessions.model.graph.output]

    def run(number: int) -> _Drawn | None:
        sample = loaders[number]()
        if sample is None:
            return None
        with sessions.one(sample.feed) as session:
            values = iter_outputs(session, sample.feed, names)
            outputs = dict(islice(values, len(detecting)))
            drawn = _Drawn(number, sample.valid, read_objects(outputs, detector))
            for name, array in chain(outputs.items(), values):
                if name in by_tensor:
                    taken = drawn.take(name, by_tensor[name], array)
                    stores[name].put(number, taken, room=taken.shape[0] * taken.shape[1] * _POSITIONS * sample.valid)
        return drawn

    stores = {tensor: SampleArrays(len(loaders)) for tensor in by_tensor}
    with ThreadPoolExecutor(sessions.at_once) as pool:
        found = [drawn for drawn in pool.map(run, range(len(loaders))) if drawn is not None]
    return FloatTargets(
        tuple(drawn.number for drawn in found),
        {
            node.name: LayerTargets(
                node,
                im2col,
                tuple(drawn.places_of[tensor] for drawn in found),
                tuple(stores[tensor].arrays[drawn.number] for drawn in found),
                tuple(drawn.scales[tensor] for drawn in found),
            )
            for tensor, (node, im2col) in zip(by_tensor, layers, strict=True)
        },
    )


class _Drawn:
    """Positions and outputs of a sample.

    Attributes:
        number: of the sample; seeds the draws.
        places_of: tensor -> places in each field.
        scales: tensor -> those of its integers.

    Args:
        number: as in the attributes.
        valid: number of its images.
        objects: on each image of its batch; none if they are not known.
    """

    def __init__(self, number: int, valid: int, objects: Sequence[DetectedObjects]) -> None:
        self.number = number
        self.places_of: dict[str, list[Places]] = {}
        self.scales: dict[str, Float32Array] = {}
        self._objects = [objects[k] if k < len(objects) else None for k in range(valid)]
        self._places: dict[tuple[tuple[int, int], bool], list[Places]] = {}

    def take(self, tensor: str, im2col: Im2col, y: AnyArray) -> AnyArray:
        """Return the outputs of a layer at places in all fields of the sample, as integers; note places and scales."""
        self.places_of[tensor] = places = self._drawn(im2col.size(y.shape), im2col.rows)
        outputs = [im2col.outputs(field, each.positions) for field, each in zip(im2col.fields(y), places, strict=False)]
        values = np.concatenate(outputs, axis=2, dtype=np.float32)
        greatest = np.abs(values).max(axis=2, initial=0, keepdims=True)
        self.scales[tensor] = scale = np.where(greatest > 0, greatest / np.float32(_LEVELS), np.float32(1))
        return np.rint(values / scale).astype(np.int8)

    def _drawn(self, size: tuple[int, int], rows: bool) -> list[Places]:
        """Return places on each image, or in the rows of all, those of the same size each time."""
        if (size, rows) not in self._places:
            rng = np.random.default_rng((*size, self.number))
            self._places[size, rows] = [draw_places(rng, size, each) for each in ([None] if rows else self._objects)]
        return self._places[size, rows]


def draw_places(rng: np.random.Generator, size: tuple[int, int], objects: DetectedObjects | None) -> Places:
    """Draw places on an image of this height and width; half of the draws are on its objects."""
    count = min(size[0] * size[1], _POSITIONS)
    on_objects = np.zeros(0, np.int64) if objects is None else objects.draw(rng, size, count // 2)
    anywhere = rng.choice(size[0] * size[1], count - len(on_objects), replace=False)
    places, times = np.unique(np.concatenate([on_objects, anywhere]), return_counts=True)
    return Places(np.stack(np.divmod(places, size[1])), np.sqrt(times, dtype=np.float32))
