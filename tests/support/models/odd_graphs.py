"""Sound models with odd parts, each by its seed, through which rewrites must not change what is computed."""

import random
from collections.abc import Callable

import numpy as np
import onnx
from graphs import csp, leaky_net, pan, relu_net, silu_chain, sppf, v8
from onnx import helper, numpy_helper, shape_inference

BASES = (csp, silu_chain, relu_net, leaky_net, sppf, pan, v8)


class Odd:
    """A model to which odd parts are added.

    Args:
        model: is changed.
        rng: decides everything.
    """

    def __init__(self, model: onnx.ModelProto, rng: random.Random) -> None:
        self.graph, self.rng = model.graph, rng
        values = shape_inference.infer_shapes(model).graph
        self.shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*values.value_info, *values.input, *values.output)
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        }
        self._made = sum(len(node.output) for node in self.graph.node) + len(self.graph.initializer)

    def name(self) -> str:
        """Return a new name."""
        self._made += 1
        return f"odd{self._made}"

    def constant(self, values: object, kind: type = np.float32) -> str:
        """Add a constant and return its name."""
        name = self.name()
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def output(self, name: str, shape: list[int]) -> None:
        """Add an output, unless it is one already."""
        if name not in {value.name for value in (*self.graph.output, *self.graph.input)}:
            self.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))

    def tensor(self) -> str:
        """Return a tensor of four dimensions that some node reads."""
        read = {name for node in self.graph.node for name in node.input}
        return self.rng.choice([name for name, shape in self.shapes.items() if len(shape) == 4 and name in read])

    def weights(self) -> list[onnx.TensorProto]:
        """Return the float constants."""
        return [tensor for tensor in self.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]

    def insert(self, before: str, made: str, *nodes: tuple[str, list[str], list[str], dict[str, object]]) -> None:
        """Put nodes behind a tensor; all or some of its readers read what they make instead."""
        readers = [(node, k) for node in self.graph.node for k, name in enumerate(node.input) if name == before]
        if len(readers) > 1 and self.rng.random() < 0.3:
            readers = self.rng.sample(readers, self.rng.randrange(1, len(readers)))
        place = max((k for k, node in enumerate(self.graph.node) if before in node.output), default=-1) + 1
        for node, k in readers:
            node.input[k] = made
        for op, inputs, outputs, attributes in reversed(nodes):
            self.graph.node.insert(place, helper.make_node(op, inputs, outputs, self.name(), **attributes))


def arithmetic(odd: Odd) -> None:
    """Add, subtract, multiply or divide by a constant that is broadcast in one of many ways."""
    before, made = odd.tensor(), odd.name()
    n, c, h, w = odd.shapes[before]
    shape = odd.rng.choice(
        [(), (1,), (c, 1, 1), (1, c, 1, 1), (1, 1, 1), (w,), (h, w), (n, c, h, w), (c, h, 1), (1, 1, h, 1)]
    )
    values = np.random.default_rng(odd.rng.randrange(10**6)).uniform(-1.5, 1.5, shape)
    op = odd.rng.choice(("Mul", "Mul", "Add", "Add", "Sub", "Div"))
    inputs = [before, odd.constant(values + 3 if op == "Div" else values)]
    if op != "Div" and odd.rng.random() < 0.3:
        inputs.reverse()
    odd.insert(before, made, (op, inputs, [made], {}))


def one_input(odd: Odd) -> None:
    """Put an operator with one input behind a tensor: f(s x) = s f(x) for some of them only."""
    before, made, between = odd.tensor(), odd.name(), odd.name()
    channels = odd.shapes[before][1]
    window = {"kernel_shape": [3, 3], "pads": [1] * 4}
    ends = [odd.constant([each], np.int64) for each in (channels // 2, channels // 2 + channels, 1)]
    around = odd.constant([0, 0, 1, 1, 0, 0, -1, -1], np.int64)
    slopes = odd.constant(np.random.default_rng(1).uniform(0, 1, (channels, 1, 1)))
    swapped = {"perm": [0, 1, 3, 2]}
    choices = (
        [("Relu", [before], [made], {})],
        [("LeakyRelu", [before], [made], {"alpha": 0.1})],
        [("Clip", [before, odd.constant(0.0), odd.constant(0.5)], [made], {})],
        [("MaxPool", [before], [made], window)],
        [("AveragePool", [before], [made], window)],
        [("Pad", [before, around, *odd.rng.choice(([], [odd.constant(0.7)]))], [made], {})],
        [("PRelu", [before, slopes], [made], {})],
        [("Neg", [before], [made], {})],
        [("Identity", [before], [made], {})],
        [("Sigmoid", [before], [made], {})],
        [("Transpose", [before], [between], swapped), ("Transpose", [between], [made], swapped)],
        [
            ("Concat", [before, before], [between], {"axis": 1}),
            ("Slice", [between, ends[0], ends[1], ends[2]], [made], {}),
        ],
    )  # fmt: skip
    odd.insert(before, made, *odd.rng.choice(choices))


def an_output_inside(odd: Odd) -> None:
    """Make a tensor an output."""
    name = odd.tensor()
    odd.output(name, odd.shapes[name])


def a_shared_constant(odd: Odd) -> None:
    """Let a node read the constant of another one."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in odd.weights()}
    places = [(node, k) for node in odd.graph.node for k, name in enumerate(node.input) if k and name in shapes]
    node, k = odd.rng.choice(places)
    node.input[k] = odd.rng.choice([name for name, shape in shapes.items() if shape == shapes[node.input[k]]])


def a_weight_that_is_read(odd: Odd) -> None:
    """Let another node read a weight, or make it an output."""
    tensor = odd.rng.choice(odd.weights())
    name = odd.rng.choice((tensor.name, odd.name()))
    if name != tensor.name:
        odd.graph.node.insert(0, helper.make_node("Neg", [tensor.name], [name], odd.name()))
    odd.output(name, list(tensor.dims))


def a_branch(odd: Odd) -> None:
    """Let a subgraph read a tensor or a weight."""
    tensor = odd.rng.choice(odd.weights())
    read, shape = odd.rng.choice(((tensor.name, list(tensor.dims)), (name := odd.tensor(), odd.shapes[name])))

    def branch(op: str) -> onnx.GraphProto:
        made = odd.name()
        result = helper.make_tensor_value_info(made, onnx.TensorProto.FLOAT, shape)
        return helper.make_graph([helper.make_node(op, [read], [made], odd.name())], odd.name(), [], [result])

    branches = {"then_branch": branch("Neg"), "else_branch": branch("Abs")}
    made = odd.name()
    odd.graph.node.append(helper.make_node("If", [odd.constant(True, np.bool_)], [made], odd.name(), **branches))
    odd.output(made, shape)


def groups(odd: Odd) -> None:
    """Cut a Conv into groups."""
    weights = {tensor.name: tensor for tensor in odd.weights()}
    read = [name for node in odd.graph.node for name in node.input]
    convs = [
        node for node in odd.graph.node
        if node.op_type == "Conv" and node.input[1] in weights and read.count(node.input[1]) == 1
        and not any(each.name == "group" for each in node.attribute)
    ]  # fmt: skip
    node = odd.rng.choice(convs)
    tensor = weights[node.input[1]]
    values = numpy_helper.to_array(tensor)
    fits = [count for count in (2, 3, 4, 8, 16) if not values.shape[0] % count and not values.shape[1] % count]
    count = odd.rng.choice(fits or [1])
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[:, : values.shape[1] // count]), tensor.name))
    node.attribute.append(helper.make_attribute("group", count))


def a_constant_node(odd: Odd) -> None:
    """Let a Constant, or a Cast from float16, give a weight."""
    tensor = odd.rng.choice(odd.weights())
    name = tensor.name
    if odd.rng.random() < 0.5:
        odd.graph.node.insert(0, helper.make_node("Constant", [], [name], odd.name(), value=tensor))
        odd.graph.initializer.remove(tensor)
    else:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), odd.name()))
        odd.graph.node.insert(0, helper.make_node("Cast", [tensor.name], [name], odd.name(), to=1))


PARTS: tuple[Callable[[Odd], None], ...] = (
    arithmetic, arithmetic, arithmetic, one_input, one_input, an_output_inside, a_shared_constant, a_shared_constant,
    a_weight_that_is_read, a_branch, groups, a_constant_node,
)  # fmt: skip


def odd_graph(seed: int) -> onnx.ModelProto:
    """Return a valid model with one to five odd parts."""
    rng = random.Random(seed)
    model = rng.choice(BASES)()
    for _ in range(rng.choice((1, 2, 3, 5))):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        try:
            rng.choice(PARTS)(Odd(changed, rng))
            onnx.checker.check_model(changed, full_check=True)
        except (IndexError, onnx.checker.ValidationError, shape_inference.InferenceError):
            continue  # nothing fits, or an earlier part hinders it
        model = changed
    return model
