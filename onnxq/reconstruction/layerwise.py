"""One walk through a graph with many samples at once, so that later layers can be changed by what earlier ones give."""

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ConfigError
from onnxq.ir import ProtoIndex, names_read
from onnxq.runtime.session import Feed, run_named
from onnxq.runtime.streaming import open_worker_session, workers

Array = NDArray[np.generic]

_FREE = "DequantizeLinear"
"""Made anew wherever it is read, so that what is kept are its integers."""

_HALF = "_kept"
"""Ends the names of tensors in the form in which they are kept."""

_IN_MEMORY = 1_500_000_000
"""Bytes of kept tensors; more of them go to a temporary file."""


class LayerwiseRunner:
    """The tensors of a graph, computed on demand for all samples, and forgotten when nobody will read them.

    Between two demands the constants of the nodes that have not run yet can be replaced. Floats are kept as float16,
    integers as they are. Each piece of the graph that a demand needs becomes a session of its own, which all samples
    run through, several at once.

    Args:
        model: an ONNX model; not changed.
        wanted: tensors that will be demanded, each as often as it stands here.
    """

    def __init__(self, model: onnx.ModelProto, wanted: Iterable[str]) -> None:
        self._model = model
        index = ProtoIndex(model.graph)
        self._constants = dict(index.initializers)
        self._floats = {n for n, v in index.declared.items() if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._index = ProtoIndex(onnx.GraphProto(node=model.graph.node))
        self._nodes = self._index.nodes
        self._by_name = {node.name: node for node in self._nodes}
        self._done: set[int] = set()
        demands = list(wanted)
        self._demands = Counter(map(self._stored, demands))
        self._needed = self._index.ancestors(demands)
        self._readers: dict[str, set[int]] = {}
        for k in self._needed:
            for name in names_read(self._nodes[k]):
                self._readers.setdefault(name, set()).add(k)
        self._kept: dict[str, list[Array]] = {}
        self._asked = ""
        self._samples = 0

    def start(self, feeds: Sequence[Feed]) -> None:
        """Take the samples, each with one array for each input of the model."""
        self._samples = len(feeds)
        for name in feeds[0] if feeds else ():
            if self._readers.get(name):
                half = name in self._floats
                self._keep(name, [feed[name].astype(np.float16, copy=False) if half else feed[name] for feed in feeds])

    def set_constant(self, node: str, index: int, values: NDArray[np.generic]) -> None:
        """Let a node that has not run yet read other values; inputs that it lacks up to there are left out."""
        taken = self._by_name[node].input
        while len(taken) <= index:
            taken.append("")
        taken[index] = f"{node}_input{index}_set"
        self._constants[taken[index]] = numpy_helper.from_array(values, taken[index])

    def compute(self, tensor: str, sink: Callable[[int, Array], None] | None = None) -> None:
        """Compute a tensor for all samples.

        Args:
            tensor: its name; one of those that are wanted.
            sink: called with the number of a sample and the tensor's values, float32 where it is of floats; from
                several threads.
        """
        self._demands[self._stored(tensor)] -= 1
        self._asked = self._stored(tensor) if sink is None else ""
        segment = sorted(self._index.ancestors([tensor], self._kept))
        self._done.update(k for k in segment if self._nodes[k].op_type != _FREE)
        made = {name for k in segment if self._nodes[k].op_type != _FREE for name in self._nodes[k].output if name}
        self._run(segment, sorted(filter(self._is_kept, made)), tensor, sink)
        for name in [name for name in self._kept if not self._is_kept(name)]:
            del self._kept[name]

    def read(self, tensor: str, sample: int) -> Array:
        """A tensor that is kept, as the one computed last without a sink is; float32 where it is of floats."""
        kept = self._kept[self._stored(tensor)][sample]
        if self._stored(tensor) == tensor:
            return kept.astype(np.float32) if tensor in self._floats else kept
        scale, zero_point = map(self._constant, self._index.producers[tensor].input[1:3])
        return (kept.astype(np.float32) - zero_point) * scale

    def _constant(self, name: str) -> NDArray[np.float32]:
        return numpy_helper.to_array(self._constants[name]).astype(np.float32)

    def _stored(self, tensor: str) -> str:
        """The tensor itself, or the integers that it is made of wherever it is read."""
        node = self._index.producers.get(tensor)
        return node.input[0] if node is not None and node.op_type == _FREE else tensor

    def _is_kept(self, name: str) -> bool:
        return name == self._asked or self._demands[name] > 0 or self._is_read(name)

    def _is_read(self, name: str) -> bool:
        """Whether a needed node that has not run reads it, or reads what is made of it."""
        for k in self._readers.get(name, ()):
            node = self._nodes[k]
            if node.op_type == _FREE and any(self._is_read(made) for made in node.output):
                return True
            if node.op_type != _FREE and k not in self._done:
                return True
        return False

    def _run(
        self, segment: Sequence[int], keep: Sequence[str], tensor: str, sink: Callable[[int, Array], None] | None
    ) -> None:
        if sink is not None and not segment:
            for sample in range(self._samples):
                sink(sample, self.read(tensor, sample))
            return
        if not keep and sink is None:
            return
        proto, inputs = self._piece(segment, keep, tensor if sink is not None else None)
        at_once = workers(proto)
        session = open_worker_session(proto, at_once)

        def one(sample: int) -> list[Array]:
            feed = {self._kept_name(name): self._kept[name][sample] for name in inputs}
            values = run_named(session, feed)
            if sink is not None:
                sink(sample, values[tensor])
            return [values[self._kept_name(name)] for name in keep]

        with ThreadPoolExecutor(at_once) as pool:
            results = pool.map(one, range(self._samples))
            memory = self._memory()
            stores = [_Store(self._samples, memory) for _ in keep]
            for arrays in results:
                for store, array in zip(stores, arrays, strict=True):
                    store.append(array)
        for name, store in zip(keep, stores, strict=True):
            self._kept[name] = store.arrays

    def _piece(
        self, segment: Sequence[int], keep: Sequence[str], asked: str | None
    ) -> tuple[onnx.ModelProto, list[str]]:
        """The nodes as a model, and which kept tensors are its inputs."""
        nodes = [self._nodes[k] for k in segment]
        made = {name for node in nodes for name in node.output}
        read = list(dict.fromkeys(name for node in nodes for name in names_read(node) if name and name not in made))
        inputs = [name for name in read if name in self._kept]
        before = [_cast(name + _HALF, name, TensorProto.FLOAT) for name in inputs if name in self._floats]
        behind = [_cast(name, name + _HALF, TensorProto.FLOAT16) for name in keep if name in self._floats]
        outputs = [*map(self._kept_name, keep), *([asked] if asked is not None else [])]
        graph = helper.make_graph(
            [*before, *nodes, *behind],
            "piece",
            [helper.make_tensor_value_info(self._kept_name(n), _type(self._kept[n][0]), self._kept[n][0].shape)
             for n in inputs],
            [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs)],
            [self._constants[name] for name in read if name in self._constants],
        )  # fmt: skip
        opsets = self._model.opset_import
        return helper.make_model(graph, opset_imports=opsets, ir_version=self._model.ir_version), inputs

    def _kept_name(self, name: str) -> str:
        return name + _HALF if name in self._floats else name

    def _keep(self, name: str, arrays: list[Array]) -> None:
        store = _Store(len(arrays), self._memory())
        for array in arrays:
            store.append(array)
        self._kept[name] = store.arrays

    def _memory(self) -> "_Memory":
        return _Memory(sum(array.nbytes for arrays in self._kept.values() for array in arrays))


class _Memory:
    """How many bytes are kept in memory, and whether there may be more."""

    def __init__(self, taken: int) -> None:
        self._taken = taken

    def take(self, more: int) -> bool:
        if self._taken + more > _IN_MEMORY:
            return False
        self._taken += more
        return True


class _Store:
    """Arrays of one tensor, in memory, or in a temporary file where there is too much in memory already."""

    def __init__(self, count: int, memory: _Memory) -> None:
        self.arrays: list[Array] = []
        self._count = count
        self._memory = memory
        self._file: Array | None = None

    def append(self, array: Array) -> None:
        if not self.arrays and not self._memory.take(array.nbytes * self._count):
            self._file = _on_disk((self._count, *array.shape), array.dtype)
        if self._file is None or self._file.shape[1:] != array.shape:
            self.arrays.append(array)
            return
        place = self._file[len(self.arrays)]
        place[...] = array
        self.arrays.append(place)


def _on_disk(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
    """An array in a temporary file that has its room from the start: one that fills up later ends the process."""
    size = math.prod(shape) * dtype.itemsize
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        raise ConfigError(
            f"{tempfile.gettempdir()}: cannot take {size / 1e6:.0f} MB that reconstruction sets aside "
            f"({error.strerror}); point TMPDIR to a folder with more room, or give fewer images (--count)"
        ) from None


def _cast(source: str, made: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [made], to=to)


def _type(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
