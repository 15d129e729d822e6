"""Rules of matrix products."""

from __future__ import annotations

import onnx

from converter.graph.nodes import attribute
from converter.head.gradient.tape import Gradients, Tape, rule
from edge.contract.errors import ConversionError


@rule("Gemm")
def _gemm(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``Y = alpha A' B' + beta C`` where ``'`` is an optional transposition."""
    b = tape.builder
    left, right = node.input[0], node.input[1]
    alpha, beta = attribute(node, "alpha"), attribute(node, "beta")
    trans_a, trans_b = attribute(node, "transA"), attribute(node, "transB")
    gradients: list[str | None] = [None, None]
    if left in tape.active:
        if trans_a:
            gradients[0] = b.op("Gemm", right, dy, transA=trans_b, transB=1, alpha=alpha)
        else:
            gradients[0] = b.op("Gemm", dy, right, transB=1 - trans_b, alpha=alpha)
    if right in tape.active:
        if trans_b:
            gradients[1] = b.op("Gemm", dy, left, transA=1, transB=trans_a, alpha=alpha)
        else:
            gradients[1] = b.op("Gemm", left, dy, transA=1 - trans_a, alpha=alpha)
    if len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
        if bias in tape.active:
            scaled = dy if beta == 1.0 else b.op("Mul", dy, b.constant(beta))
            gradients.append(tape.unbroadcast(scaled, bias, tape.shape(node.output[0])))
        else:
            gradients.append(None)
    return gradients


@rule("MatMul")
def _matmul(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``Y = A B`` over the last two axes: ``dA = dY Bᵀ``, ``dB = Aᵀ dY``, summed over broadcast batch axes."""
    b = tape.builder
    left, right = node.input
    left_shape, right_shape = tape.shape(left), tape.shape(right)
    if len(left_shape) < 2 or len(right_shape) < 2:
        raise ConversionError(f"MatMul {node.name!r} with a one-dimensional operand cannot be trained; use two axes")

    def transposed(name: str, rank: int) -> str:
        return b.op("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])

    def reduced(gradient: str, name: str) -> str:
        batch = tape.shape(node.output[0])[:-2]
        return tape.unbroadcast(gradient, name, (*batch, *tape.shape(name)[-2:]))

    gradients: list[str | None] = [None, None]
    if left in tape.active:
        gradients[0] = reduced(b.op("MatMul", dy, transposed(right, len(right_shape))), left)
    if right in tape.active:
        if len(right_shape) == 2 and len(left_shape) > 2:
            # A shared matrix: fold the batch axes into the rows, so that one product sums over them.
            rows, columns = (
                b.op("Reshape", name, b.ints(-1, size))
                for name, size in zip((left, dy), tape.sizes(right, [0, 1]), strict=True)
            )
            gradients[1] = b.op("Gemm", rows, columns, transA=1)
        else:
            gradients[1] = reduced(b.op("MatMul", transposed(left, len(left_shape)), dy), right)
    return gradients
