"""Weights in 4 bits, for size: products whose weights are unpacked block by block as they are used."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from converter.graph.build import make_model, used_initializers
from converter.graph.links import Links
from converter.graph.names import FreshNames, named
from converter.quantization.layers import quantizable_layers


def quantize_int4(model: onnx.ModelProto, *, block_size: int = 32, exclude: Collection[str] = ()) -> onnx.ModelProto:
    """Rewrite MatMul and Gemm as com.microsoft.MatMulNBits (and an addition for the bias).

    Args:
        model: Float, optimized.
        block_size: Weights that share a scale and a zero point; a power of two, 16 at least.
        exclude: Names of layers to leave in float.
    """
    model = named(model)
    fresh = FreshNames(model.graph)
    layers = {x.name: x for x in quantizable_layers(model) if x.op_type != "Conv" and x.name not in exclude}
    links = Links(model.graph)
    nodes: list[onnx.NodeProto] = []
    made: list[onnx.TensorProto] = []
    for node in model.graph.node:
        if (layer := layers.get(node.name)) is None:
            nodes.append(node)
            continue
        weight = links.array(layer.weight) if layer.out_axis == 0 else links.array(layer.weight).T
        name, output = node.name, node.output[0]
        packed: dict[str, npt.NDArray[Any]] = dict(
            zip(("codes", "scales", "zeros"), pack_blocks(weight, block_size), strict=True)
        )
        made += [numpy_helper.from_array(array, fresh(f"{name}.{key}")) for key, array in packed.items()]
        product = output if layer.bias is None else fresh(f"{name}.product")
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], *(fresh(f"{name}.{key}") for key in packed)],
                [product],
                f"{name}.nbits",
                domain="com.microsoft",
                K=weight.shape[1],
                N=weight.shape[0],
                bits=4,
                block_size=block_size,
            )
        )
        if layer.bias is not None:
            nodes.append(helper.make_node("Add", [product, layer.bias], [output], f"{name}.biased"))
    graph = model.graph
    return make_model(
        graph.name or "model",
        nodes,
        list(graph.input),
        list(graph.output),
        [*used_initializers(nodes, graph.initializer, graph.output), *made],
    )


def pack_blocks(
    weight: npt.NDArray[np.float32], block_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Codes, scales and zero points in the layout of MatMulNBits.

    Each block of a row is ``w ~ scale (code - zero)`` with codes 0 to 15; two codes in a byte, the first in the low
    half.

    Args:
        weight: ``(N, K)``.
        block_size: Along K; the last block is filled up with zeros.

    Returns:
        ``(N, blocks, block_size / 2)`` uint8, ``(N * blocks,)`` float32, ``(N * ceil(blocks / 2),)`` uint8.
    """
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    padded = np.zeros((rows, blocks * block_size), np.float32)
    padded[:, :columns] = weight
    grouped = padded.reshape(rows, blocks, block_size)
    low, high = np.minimum(grouped.min(axis=2), 0.0), np.maximum(grouped.max(axis=2), 0.0)
    scale = np.where(high > low, (high - low) / 15, 1.0).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, 15).astype(np.uint8)
    codes = np.clip(np.rint(grouped / scale[..., None]) + zero[..., None], 0, 15).astype(np.uint8)
    bytes_ = codes[..., 0::2] | (codes[..., 1::2] << 4)
    even = np.zeros((rows, blocks + blocks % 2), np.uint8)
    even[:, :blocks] = zero
    return bytes_, scale.reshape(-1), (even[:, 0::2] | (even[:, 1::2] << 4)).reshape(-1)
