"""What a differentiation rule is given, and where it is registered.

A rule is given the node, the name of the gradient of its output, and a `Tape` to append nodes to; it returns one
gradient name per input, or None where the input gets none. Notation: ``y = f(x)``, ``dy`` is the gradient of the loss
with respect to y. Formulas are the usual vector-Jacobian products (Griewank and Walther, *Evaluating Derivatives*,
2008, chapter 3); each is checked against float64 finite differences and torch autograd in
``tests/converter/head/gradient``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from converter.graph.build import GraphBuilder
from edge.contract.errors import ConversionError

Shape = tuple[int | str, ...]
Gradients = Sequence[str | None]
Rule = Callable[["Tape", onnx.NodeProto, str], Gradients]


RULES: dict[str, Rule] = {}


class _Piece(NamedTuple):
    """The part from `start` to `stop` of a gradient along an axis; the rest is zero."""

    axis: int
    start: int
    stop: int
    size: int
    value: str


@dataclass(frozen=True, kw_only=True)
class Tape:
    """What a rule may use.

    Attributes:
        builder: Gets the new nodes.
        shapes: Of the forward values.
        active: Values that need a gradient.
        constants: Initializers of the forward graph.
    """

    builder: GraphBuilder
    shapes: Mapping[str, Shape]
    active: frozenset[str]
    constants: Mapping[str, onnx.TensorProto]
    _pieces: dict[str, _Piece] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        """Shape of a forward value.

        Raises:
            ConversionError: It cannot be known from the graph.
        """
        if name not in self.shapes:
            raise ConversionError(f"the shape of {name!r} in the head is not known; export the model with fixed axes")
        return self.shapes[name]

    def sizes(self, name: str, axes: Sequence[int]) -> tuple[int, ...]:
        """Sizes of some axes of a forward value, which must be fixed.

        Raises:
            ConversionError: One is free or not known.
        """
        shape = self.shape(name)
        found = [shape[axis] for axis in axes]
        if not all(isinstance(size, int) for size in found):
            raise ConversionError(f"{name!r} in the head has the shape {shape}; here only the batch axis may be free")
        return tuple(int(size) for size in found)

    def value(self, name: str) -> npt.NDArray[Any]:
        """A constant of the forward graph.

        Raises:
            ConversionError: It is computed.
        """
        if name not in self.constants:
            raise ConversionError(f"{name!r} in the head must be a constant, and is computed")
        return numpy_helper.to_array(self.constants[name])

    def unbroadcast(self, gradient: str, name: str, full: Shape) -> str:
        """Sum a gradient of shape `full` over the axes along which `name` was broadcast."""
        shape = self.shape(name)
        missing = len(full) - len(shape)
        axes = list(range(missing))
        axes += [missing + i for i, size in enumerate(shape) if size == 1 and full[missing + i] != 1]
        if not axes:
            return gradient
        if len(axes) == missing:
            return self.builder.op("ReduceSum", gradient, self.builder.ints(*axes), keepdims=0)
        total = self.builder.op("ReduceSum", gradient, self.builder.ints(*axes), keepdims=1)
        if missing:
            total = self.builder.op("Squeeze", total, self.builder.ints(*range(missing)))
        return total

    def placed(self, gradient: str, name: str, axis: int, start: int, length: int) -> str:
        """The gradient of `name` where only `length` entries of an axis, from `start` on, were read.

        Returns:
            A name that only `total` knows; where all of the axis was read, the gradient itself.
        """
        (size,) = self.sizes(name, [axis])
        if length == size:
            return gradient
        key = self.builder.fresh("piece")
        self._pieces[key] = _Piece(axis, start, start + length, size, gradient)
        return key

    def total(self, gradients: Sequence[str]) -> str:
        """The sum of some gradients of one value. Pieces that lie side by side are joined, not padded and added."""
        b = self.builder
        runs: list[list[_Piece]] = []
        for piece in sorted(self._pieces[name] for name in gradients if name in self._pieces):
            if runs and (runs[-1][-1].axis, runs[-1][-1].stop) == (piece.axis, piece.start):
                runs[-1].append(piece)
            else:
                runs.append([piece])
        parts = [name for name in gradients if name not in self._pieces]
        for run in runs:
            axis, start, stop, size = run[0].axis, run[0].start, run[-1].stop, run[0].size
            value = run[0].value if len(run) == 1 else b.op("Concat", *(piece.value for piece in run), axis=axis)
            if stop - start < size:
                value = b.op("Pad", value, b.ints(start, size - stop), "", b.ints(axis))
            parts.append(value)
        while len(parts) > 1:
            parts = [b.op("Add", parts[0], parts[1]), *parts[2:]]
        return parts[0]


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Register a rule for some operators."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = function
        return function

    return register
