"""Executes a graph layer by layer over all calibration samples and caches activations.

A layer can therefore be replaced before it runs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxq.ir import ProtoIndex, names_read, values_of
from onnxq.numerics.arrays import AnyArray, Float32Array
from onnxq.reconstruction.sample_arrays import Memory, SampleArrays, is_in_file
from onnxq.runtime.session import Feed, run_named
from onnxq.runtime.streaming import open_worker_session, workers

_RECOMPUTED = "DequantizeLinear"
"""Recomputed at each use; only its integer input is cached."""

_CACHED = "_cached"
"""Suffix of the names of tensors in the form in which they are cached."""

_MEMORY_LIMIT = 1_500_000_000
"""Bytes of cached tensors; further ones go to temporary files."""


class LayerwiseRunner:
    """Computes tensors of a graph on demand, for all samples, and caches them until their last use.

    Between two demands the constants of nodes that have not run can be replaced. Floats are cached as float16, integers
    as they are. Inputs of the model are loaded whenever they are read. The part of the graph that a demand needs
    becomes a session of its own, which runs all samples, several at once.

    Args:
        model: an ONNX model; it is not changed.
        wanted: tensors that will be computed, each as often as it is listed here.
        memory_limit: bytes of cached tensors; further ones go to temporary files.
    """

    def __init__(self, model: onnx.ModelProto, wanted: Iterable[str], memory_limit: int = _MEMORY_LIMIT) -> None:
        self._memory_limit = memory_limit
        self._model = model
        index = ProtoIndex(model.graph)
        self._constants = dict(index.initializers)
        self._floats = {n for n, v in index.declared.items() if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._index = ProtoIndex(onnx.GraphProto(node=model.graph.node))  # of copies, which `set_constant` edits
        self._nodes = self._index.nodes
        self._by_name = {node.name: node for node in self._nodes}
        self._numbers = {node.name: k for k, node in enumerate(self._nodes)}
        self._done: set[int] = set()
        demands = list(wanted)
        self._demands = Counter(map(self._cached_form, demands))
        self._needed = self._index.ancestors(demands)
        self._readers: dict[str, set[int]] = {}
        for k in self._needed:
            for name in names_read(self._nodes[k]):
                self._readers.setdefault(name, set()).add(k)
        self._inputs = {value.name: value for value in index.inputs}
        self._cache: dict[str, list[AnyArray]] = {}
        self._requested = ""
        self._loads: Sequence[Callable[[], Feed]] = ()

    def start(self, loads: Sequence[Callable[[], Feed]]) -> None:
        """Set what loads the samples, in several threads, each time that an input of the model is read."""
        self._loads = loads

    def has_run(self, node: str) -> bool:
        """Return whether a node has run, so that its constants can no longer be replaced."""
        return self._numbers[node] in self._done

    def set_constant(self, node: str, index: int, values: AnyArray) -> None:
        """Replace a constant input of a node that has not run.

        Args:
            node: its name.
            index: of the input; optional inputs before it that the node lacks stay absent.
            values: of any dtype that the operator takes.

        Raises:
            ValueError: the node has run.
        """
        inputs = self._by_name[node].input
        if self.has_run(node):
            raise ValueError(f"{node} has run on its constants; replace them before anything that reads it is computed")
        while len(inputs) <= index:
            inputs.append("")
        inputs[index] = f"{node}_input{index}_set"
        self._constants[inputs[index]] = numpy_helper.from_array(values, inputs[index])

    def compute(self, tensor: str, sink: Callable[[int, AnyArray], None] | None = None) -> None:
        """Compute a tensor for all samples.

        Args:
            tensor: its name, one of those in `wanted`.
            sink: called with the number of a sample and the tensor's values, floats as float32; from several threads.
                None: the tensor is cached, and `read` returns it until the next call of `compute`.
        """
        self._demands[self._cached_form(tensor)] -= 1
        self._requested = self._cached_form(tensor) if sink is None else ""
        segment = sorted(self._index.ancestors([tensor], self._cache))
        self._done.update(k for k in segment if self._nodes[k].op_type != _RECOMPUTED)
        outputs = {
            name for k in segment if self._nodes[k].op_type != _RECOMPUTED for name in self._nodes[k].output if name
        }
        self._run(segment, sorted(filter(self._is_needed, outputs)), tensor, sink)
        for name in [name for name in self._cache if not self._is_needed(name)]:
            del self._cache[name]

    def read(self, tensor: str, sample: int) -> AnyArray:
        """Return a cached tensor of a sample, floats as float32: the last one that was computed without a sink."""
        return self.decoded(tensor, self.stored(tensor, sample))

    def stored(self, tensor: str, sample: int) -> AnyArray:
        """Return a tensor that `read` returns in the form in which it is cached."""
        if tensor in self._inputs:
            return self._loads[sample]()[tensor]
        return self._cache[self._cached_form(tensor)][sample]

    def decoded(self, tensor: str, stored: AnyArray) -> AnyArray:
        """Return values of a tensor in the form in which they are cached, of any shape, as `read` returns them."""
        if self._cached_form(tensor) == tensor:
            return stored.astype(np.float32) if tensor in self._floats else stored
        scale, zero_point = map(self._constant, self._index.producers[tensor].input[1:3])
        values = np.asarray(stored.astype(np.float32))
        values -= zero_point
        values *= scale
        return values

    def zero(self, tensor: str) -> float:
        """Return what stands for zero in the form in which a tensor is cached."""
        is_recomputed = self._cached_form(tensor) != tensor
        return float(self._constant(self._index.producers[tensor].input[2])) if is_recomputed else 0.0

    def cached_bytes(self) -> tuple[int, int]:
        """Return the bytes of all cached tensors: in memory, and in temporary files."""
        arrays = [array for arrays in self._cache.values() for array in arrays]
        in_files = sum(array.nbytes for array in arrays if is_in_file(array))
        return sum(array.nbytes for array in arrays) - in_files, in_files

    def _constant(self, name: str) -> Float32Array:
        return values_of(self._constants[name]).astype(np.float32)

    def _cached_form(self, tensor: str) -> str:
        """Return the tensor itself, or the integers that it is recomputed from."""
        node = self._index.producers.get(tensor)
        return node.input[0] if node is not None and node.op_type == _RECOMPUTED else tensor

    def _is_needed(self, name: str) -> bool:
        return name == self._requested or self._demands[name] > 0 or self._is_read(name)

    def _is_read(self, name: str) -> bool:
        """Return whether a needed node that has not run reads the tensor, or reads a tensor recomputed from it."""
        for k in self._readers.get(name, ()):
            node = self._nodes[k]
            if node.op_type == _RECOMPUTED and any(self._is_read(output) for output in node.output):
                return True
            if node.op_type != _RECOMPUTED and k not in self._done:
                return True
        return False

    def _run(
        self, segment: Sequence[int], keep: Sequence[str], tensor: str, sink: Callable[[int, AnyArray], None] | None
    ) -> None:
        if sink is not None and not segment:
            for sample in range(len(self._loads)):
                sink(sample, self.read(tensor, sample))
            return
        if not keep and sink is None:
            return
        proto, inputs = self._piece(segment, keep, tensor if sink is not None else None)
        at_once = workers(proto)
        session = open_worker_session(proto, at_once)

        memory = Memory(self._memory_limit - self.cached_bytes()[0])
        stores = {name: SampleArrays(len(self._loads), memory) for name in keep}

        def run_sample(sample: int) -> None:
            feed = {self._cached_name(name): self._cache[name][sample] for name in inputs if name in self._cache}
            if len(feed) < len(inputs):
                loaded = self._loads[sample]()
                feed |= {name: loaded[name] for name in inputs if name in self._inputs}
            values = run_named(session, feed)
            if sink is not None:
                sink(sample, values[tensor])
            for name, store in stores.items():
                store.put(sample, values[self._cached_name(name)])

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(run_sample, range(len(self._loads))))
        self._cache.update((name, store.arrays) for name, store in stores.items())

    def _piece(
        self, segment: Sequence[int], keep: Sequence[str], requested: str | None
    ) -> tuple[onnx.ModelProto, list[str]]:
        """Return the nodes as a model, and the tensors that it reads: cached ones, and inputs of the model.

        Args:
            segment: numbers of the nodes.
            keep: outputs in the form in which they are cached.
            requested: output in its own type.
        """
        nodes = [self._nodes[k] for k in segment]
        computed = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in names_read(node) if name and name not in computed)
        inputs = [name for name in read if name in self._cache or name in self._inputs]
        casts = [_cast(name + _CACHED, name, TensorProto.FLOAT) for name in inputs if self._cached_name(name) != name]
        casts_back = [_cast(name, name + _CACHED, TensorProto.FLOAT16) for name in keep if name in self._floats]
        outputs = [*map(self._cached_name, keep), *([requested] if requested is not None else [])]
        graph = helper.make_graph(
            [*casts, *nodes, *casts_back],
            "piece",
            list(map(self._input_info, inputs)),
            [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs)],
            [self._constants[name] for name in read if name in self._constants],
        )
        opsets = self._model.opset_import
        return helper.make_model(graph, opset_imports=opsets, ir_version=self._model.ir_version), inputs

    def _input_info(self, name: str) -> onnx.ValueInfoProto:
        if name in self._inputs:
            return self._inputs[name]
        array = self._cache[name][0]
        return helper.make_tensor_value_info(self._cached_name(name), _type(array), array.shape)

    def _cached_name(self, name: str) -> str:
        return name + _CACHED if name in self._floats and name not in self._inputs else name


def _cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], to=to)


def _type(array: AnyArray) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
