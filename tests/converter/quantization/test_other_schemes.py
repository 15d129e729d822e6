"""Dynamic int8, int4 weights and float16: what each may touch, and what it keeps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from converter.quantization.dynamic import quantize_dynamic
from converter.quantization.float16 import to_float16
from converter.quantization.int4 import pack_blocks, quantize_int4
from converter.quantization.layers import running_in_int8
from tests.converter.models import rng
from tests.converter.quantization.conftest import Net, net, profile


def kinds(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


def test_dynamic_int8_never_touches_a_convolution(conv_net: Net) -> None:
    assert quantize_dynamic(conv_net.graph, profile()).graph.node == conv_net.graph.graph.node
    torch.manual_seed(0)
    mixed = net(nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)), (2, 8))
    found = kinds(quantize_dynamic(mixed.graph, profile()))
    assert found["Conv"] == 1
    assert found["ConvInteger"] == 0
    assert found["MatMulInteger"] == 1


def test_dynamic_int8_runs_products_and_lstms_in_int8(mlp_net: Net) -> None:
    quantized = quantize_dynamic(mlp_net.graph, profile())
    assert running_in_int8(quantized) == (3, 3)
    assert mlp_net.sqnr_db(quantized) > 30

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 16, num_layers=2, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0][:, -1]

    torch.manual_seed(0)
    recurrent = net(Recurrent(), (9, 6))
    quantized = quantize_dynamic(recurrent.graph, profile())
    assert kinds(quantized)["DynamicQuantizeLSTM"] == 2
    assert kinds(quantized)["LSTM"] == 0
    assert recurrent.sqnr_db(quantized) > 30


def test_the_seven_bits_of_a_target_hold_for_dynamic_weights_too(mlp_net: Net) -> None:
    for target, largest in (("generic-x86_64", 64), ("x86_64-vnni", 127)):
        codes = [
            onnx.numpy_helper.to_array(t).astype(int)
            for t in quantize_dynamic(mlp_net.graph, profile(target)).graph.initializer
            if t.name.endswith(".weight.codes")
        ]
        assert max(np.abs(array).max() for array in codes) == largest


def test_int4_takes_gemm_as_well_as_matmul(mlp_net: Net) -> None:
    """The stock quantizer silently leaves every Gemm as it is, which is all of a torch MLP."""
    assert kinds(mlp_net.graph)["Gemm"] == 3
    quantized = quantize_int4(mlp_net.graph)
    assert kinds(quantized)["MatMulNBits"] == 3
    assert kinds(quantized)["Gemm"] == 0
    assert running_in_int8(quantized) == (3, 3)
    assert mlp_net.sqnr_db(quantized) > 15
    assert quantized.ByteSize() < mlp_net.graph.ByteSize() / 2

    tokens = net(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)), (5, 64))
    assert kinds(tokens.graph)["MatMul"] == 2
    assert kinds(quantize_int4(tokens.graph))["MatMulNBits"] == 2


@pytest.mark.parametrize("shape", [(3, 32), (5, 33), (2, 100), (1, 16)])
@pytest.mark.parametrize("block_size", [16, 32])
def test_packed_blocks_unpack_to_the_weights(shape: tuple[int, int], block_size: int) -> None:
    weight = rng().normal(size=shape).astype(np.float32)
    codes, scales, zeros = pack_blocks(weight, block_size)
    rows, blocks = shape[0], -(-shape[1] // block_size)
    assert codes.shape == (rows, blocks, block_size // 2)
    unpacked = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, blocks, block_size).astype(np.float32)
    zero = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1)[:, :blocks].astype(np.float32)
    found = (unpacked - zero[..., None]) * scales.reshape(rows, blocks)[..., None]
    step = scales.reshape(rows, blocks).repeat(block_size, axis=1)[:, : shape[1]]
    assert (np.abs(found.reshape(rows, -1)[:, : shape[1]] - weight) <= step * 1.01).all()


def test_float16_keeps_float32_at_both_ends(conv_net: Net) -> None:
    found = to_float16(conv_net.graph)
    for info in [*found.graph.input, *found.graph.output]:
        assert info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    sizes = {t.data_type for t in found.graph.initializer if len(t.dims) == 4}
    assert sizes == {onnx.TensorProto.FLOAT16}
    assert conv_net.sqnr_db(found) > 50
    assert found.ByteSize() < 0.7 * conv_net.graph.ByteSize()
