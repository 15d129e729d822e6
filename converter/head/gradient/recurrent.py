"""LSTM and GRU as products and activations of each time step, which have rules of their own.

The values between the steps are needed to go back through them, and the LSTM and GRU operators do not give them. So
the training graph computes these layers step by step instead: backpropagation through time is then nothing else than
the rules of the steps. The number of steps must be fixed.

The formulas are those of the ONNX operators. The products with the input are one product for all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import onnx
from onnx import helper

from converter.graph.build import GraphBuilder, infer_shapes, make_model, reads, type_of
from converter.graph.nodes import attribute
from converter.head.gradient.differentiate import UnsupportedOperatorError
from converter.head.gradient.tape import Shape
from edge.contract.errors import ConversionError

_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}
_N_GATES = {"LSTM": 4, "GRU": 3}
_N_STATES = {"LSTM": 2, "GRU": 1}
_RECURRENT, _LENGTHS, _INITIAL, _PEEPHOLES = 2, 4, 5, 7  # positions among the inputs
_DIRECTIONS: dict[str, tuple[bool, ...]] = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}

_State = tuple[str, ...]
"""Names of what goes from one step to the next, each (batch, hidden): the output, and the cell state of an LSTM."""


def expanded(head: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with every LSTM and GRU unrolled over time; a head without them as it is.

    Args:
        head: Opset 18. Its inputs and outputs, and the names of all values that somebody reads, stay.

    Raises:
        UnsupportedOperatorError: A layer has peepholes, ``sequence_lens``, ``clip``, ``input_forget``, ``layout`` 1 or
            activations other than sigmoid and tanh.
        ConversionError: The number of time steps is free or not known.
    """
    graph = head.graph
    if not any(node.op_type in _N_GATES for node in graph.node):
        return head
    shapes = infer_shapes(head)
    read = {name for node in graph.node for name in reads(node)} | {info.name for info in graph.output}
    known = {*shapes, *read, *(name for node in graph.node for name in node.output)}
    prefix = next(prefix for prefix in _prefixes() if not any(name.startswith(prefix) for name in known))
    builder = GraphBuilder(prefix, type_of(graph.output[0]))
    for node in graph.node:
        if node.op_type in _N_GATES:
            _unroll(builder, node, shapes, read)
        else:
            builder.nodes.append(node)
    initializers = [*graph.initializer, *builder.initializers]
    return make_model(graph.name, builder.nodes, graph.input, graph.output, initializers)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One direction of a layer.

    Attributes:
        builder: Gets the nodes.
        hidden: Size of the output of a step.
        weight: Of the input, (gates * hidden, n_in).
        recurrent: Of the output of the step before, (gates * hidden, hidden).
        bias: Of both, (2 * gates * hidden); None without one.
        reset_after: Whether a GRU's reset gate scales the recurrent product and not what it is taken of.
    """

    builder: GraphBuilder
    hidden: int
    weight: str
    recurrent: str
    bias: str | None
    reset_after: bool


def _prefixes() -> Iterator[str]:
    return (f"unrolled{i or ''}." for i in count())


def _unroll(builder: GraphBuilder, node: onnx.NodeProto, shapes: Mapping[str, Shape], read: set[str]) -> None:
    """Append the nodes that compute what somebody reads of the outputs of one LSTM or GRU."""
    b = builder
    directions = _checked(node)
    x, weight, recurrent, bias = [*node.input, ""][:4]
    outputs = [name if name in read else "" for name in node.output]
    if not any(outputs):
        return
    steps, hidden = _sizes(node, shapes)
    n_gates = _N_GATES[node.op_type]
    by_batch = b.op("Transpose", x, perm=[1, 0, 2])
    parts = [_each(b, name, len(directions)) for name in (weight, recurrent)]
    biases: Sequence[str | None] = _each(b, bias, len(directions)) if bias else [None] * len(directions)
    states = _first_states(node, b, steps, hidden, by_batch)
    sequences, last = [], []
    for i, backward in enumerate(directions):
        layer = _Layer(
            builder=b,
            hidden=hidden,
            weight=parts[0][i],
            recurrent=parts[1][i],
            bias=biases[i],
            reset_after=bool(attribute(node, "linear_before_reset")),
        )
        step, input_bias = (_lstm if node.op_type == "LSTM" else _gru)(layer)
        inputs = b.op("MatMul", by_batch, b.op("Transpose", layer.weight, perm=[1, 0]))
        if input_bias is not None:
            inputs = b.op("Add", inputs, input_bias)
        flat = b.op("Reshape", inputs, b.ints(0, steps * n_gates * hidden))
        each = _columns(b, flat, steps, n_gates * hidden)
        state, seen = states[i], []
        for gates in each[::-1] if backward else each:
            state = step(gates, state)
            seen.append(state[0])
        sequences.append(seen[::-1] if backward else seen)
        last.append(state)
    if outputs[0]:
        _append_sequence(b, sequences, steps, hidden, outputs[0])
    for i, output in enumerate(outputs[1:]):
        if output:
            values = [b.op("Unsqueeze", state[i], b.ints(0)) for state in last if state is not None]
            b.op("Concat", *values, output=output, axis=0)


def _lstm(layer: _Layer) -> tuple[Callable[[str, _State | None], _State], str | None]:
    """``i, o, f = sigmoid(..)``, ``c' = tanh(..)``; ``c = f c_before + i c'``, ``h = o tanh(c)``."""
    b, n = layer.builder, layer.hidden
    bias = b.op("Add", *_split(b, layer.bias, [4 * n, 4 * n], 0)) if layer.bias is not None else None

    def step(gates: str, state: _State | None) -> _State:
        if state is not None:
            gates = b.op("Gemm", state[0], layer.recurrent, gates, transB=1)
        opened, proposed = _split(b, gates, [3 * n, n])
        write, show, keep = _split(b, b.op("Sigmoid", opened), [n, n, n])
        cell = b.op("Mul", write, b.op("Tanh", proposed))
        if state is not None:
            cell = b.op("Add", b.op("Mul", keep, state[1]), cell)
        return b.op("Mul", show, b.op("Tanh", cell)), cell

    return step, bias


def _gru(layer: _Layer) -> tuple[Callable[[str, _State | None], _State], str | None]:
    """``z, r = sigmoid(..)``; ``h = (1 - z) n + z h_before``.

    ``n = tanh(x W + (r h_before) R + b)``, or ``tanh(x W + b + r (h_before R + b'))`` with the reset after the product.
    """
    b, n = layer.builder, layer.hidden
    of_gates, of_new = _split(b, layer.recurrent, [2 * n, n], 0)
    bias, inner_bias = None, None
    if layer.bias is not None and layer.reset_after:
        gates, new, recurrent_gates, inner_bias = _split(b, layer.bias, [2 * n, n, 2 * n, n], 0)
        bias = b.op("Concat", b.op("Add", gates, recurrent_gates), new, axis=0)
    elif layer.bias is not None:
        bias = b.op("Add", *_split(b, layer.bias, [3 * n, 3 * n], 0))

    def step(gates: str, state: _State | None) -> _State:
        opened, proposed = _split(b, gates, [2 * n, n])
        if state is not None:
            opened = b.op("Gemm", state[0], of_gates, opened, transB=1)
        update, reset = _split(b, b.op("Sigmoid", opened), [n, n])
        if layer.reset_after:
            inner = inner_bias
            if state is not None:
                inner = b.op("Gemm", state[0], of_new, *([inner_bias] if inner_bias else []), transB=1)
            if inner is not None:
                proposed = b.op("Add", proposed, b.op("Mul", reset, inner))
        elif state is not None:
            proposed = b.op("Gemm", b.op("Mul", reset, state[0]), of_new, proposed, transB=1)
        new = b.op("Tanh", proposed)
        if state is None:
            return (b.op("Sub", new, b.op("Mul", update, new)),)
        return (b.op("Add", new, b.op("Mul", update, b.op("Sub", state[0], new))),)

    return step, bias


def _checked(node: onnx.NodeProto) -> tuple[bool, ...]:
    """Whether each direction of a layer goes backward in time.

    Raises:
        UnsupportedOperatorError: It is one that is not unrolled.
    """
    direction = attribute(node, "direction")
    inputs = [*node.input, *[""] * 8]
    activations = attribute(node, "activations", [])
    directions = _DIRECTIONS.get(direction, ())
    known = [*_ACTIVATIONS[node.op_type]] * len(directions)
    other = [name for name in ("clip", "input_forget", "layout") if attribute(node, name, 0)]
    other += [name for name in ("activation_alpha", "activation_beta") if attribute(node, name, ())]
    if not directions:
        other.append(f"the direction {direction}")
    elif activations and [name.lower() for name in activations] != known:
        other.append(f"the activations {' '.join(activations)}")
    if inputs[_LENGTHS]:
        other.append("sequence_lens")
    if node.op_type == "LSTM" and inputs[_PEEPHOLES]:
        other.append("peepholes")
    if other:
        raise UnsupportedOperatorError([f"{node.op_type} with {' and '.join(other)}"])
    return directions


def _sizes(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Number of time steps, and size of the output of one.

    Raises:
        ConversionError: They are free or not known.
    """
    steps, hidden = shapes.get(node.input[0], ("?",))[0], shapes.get(node.input[_RECURRENT], ("?",))[-1]
    hidden = attribute(node, "hidden_size", hidden)
    name = f"{node.op_type} {node.name or node.output[0]!r}"
    if not isinstance(steps, int) or steps < 1:
        raise ConversionError(
            f"{name} over a number of time steps that is not fixed cannot be trained; export the model with a fixed "
            f"length, or choose a smaller head (--trainable last:K with a smaller K)"
        )
    if not isinstance(hidden, int):
        raise ConversionError(f"{name} cannot be trained: the shape of its weights is not known")
    return steps, hidden


def _first_states(node: onnx.NodeProto, b: GraphBuilder, steps: int, hidden: int, by_batch: str) -> list[_State | None]:
    """The state of each direction before its first step; None if it is zero.

    A single step gets the zeros as a value, so that the weight of the step before, of gradient zero, has a gradient.
    """
    n_directions = len(_checked(node))
    given = [*node.input[_INITIAL : _INITIAL + _N_STATES[node.op_type]], "", ""][: _N_STATES[node.op_type]]
    if steps > 1 and not any(given):
        return [None] * n_directions
    zeros = ""
    if not all(given):
        size = b.op("Concat", b.op("Shape", by_batch, start=0, end=1), b.ints(hidden), axis=0)
        zeros = b.op("Expand", b.constant(0.0), size)
    values = [_each(b, name, n_directions) if name else [zeros] * n_directions for name in given]
    return list(zip(*values, strict=True))


def _append_sequence(b: GraphBuilder, sequences: Sequence[Sequence[str]], steps: int, hidden: int, output: str) -> None:
    """The outputs of all steps as (steps, directions, batch, hidden)."""
    flat = b.op("Concat", *(name for sequence in sequences for name in sequence), axis=1)
    apart = b.op("Reshape", flat, b.ints(0, len(sequences), steps, hidden))
    b.op("Transpose", apart, output=output, perm=[2, 1, 0, 3])


def _each(b: GraphBuilder, name: str, n_directions: int) -> list[str]:
    """The parts of a value whose first axis is the direction."""
    parts = [name] if n_directions == 1 else _split(b, name, [1] * n_directions, 0)
    return [b.op("Squeeze", part, b.ints(0)) for part in parts]


def _columns(b: GraphBuilder, value: str, n: int, width: int) -> list[str]:
    """The columns of a matrix in n parts, each of the same width.

    It is halved again and again: the gradient of a part has the size of what it was taken from, and n times the whole
    would make long sequences slow.
    """
    if n == 1:
        return [value]
    left, right = _split(b, value, [n // 2 * width, (n - n // 2) * width])
    return [*_columns(b, left, n // 2, width), *_columns(b, right, n - n // 2, width)]


def _split(b: GraphBuilder, value: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
    names = [b.fresh("Split") for _ in sizes]
    b.nodes.append(helper.make_node("Split", [value, b.ints(*sizes)], names, name=names[0], axis=axis))
    return names
