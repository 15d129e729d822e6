"""Padding channels and equalizing layers change no function; ranges hold zero and what they should."""

from __future__ import annotations

import resource
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from converter.quantization.align import align_channels
from converter.quantization.equalize import equalize
from converter.quantization.layers import optimize, quantizable_layers
from converter.quantization.observe import observe
from converter.quantization.ranges import BINS, Histogram, activation_range
from converter.quantization.static import quantize_static
from edge.contract.errors import ResourceError
from tests.converter.models import rng
from tests.converter.quantization.conftest import Net, convolutions, net, profile


def weights(graph: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    layers = {layer.weight: layer.name for layer in quantizable_layers(graph)}
    return {layers[t.name]: tuple(t.dims) for t in graph.graph.initializer if t.name in layers}


def test_padded_channels_change_nothing_but_the_shapes(conv_net: Net) -> None:
    aligned = align_channels(conv_net.graph)
    np.testing.assert_allclose(conv_net.run(aligned), conv_net.run(), atol=1e-6)
    shapes = weights(aligned)
    assert shapes["/stem/stem.0/Conv"] == (16, 3, 3, 3)
    assert shapes["/depthwise/depthwise.0/Conv"] == (16, 1, 3, 3)
    assert shapes["/project/Conv"] == (16, 16, 1, 1)  # it is added to the stem: both or none
    assert shapes["/last/Conv"] == (20, 16, 3, 3)  # what comes out of the graph keeps its size
    quantized = quantize_static(aligned, observe(aligned, [conv_net.x]), profile())
    assert conv_net.sqnr_db(quantized) > 25


class Mixed(nn.Module):
    """Channels that meet a concatenation, a reshape, groups and a broadcast: these must stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(24, 24, 1, groups=4)
        self.scale = nn.Conv2d(24, 1, 1)
        self.free = nn.Sequential(nn.Conv2d(24, 10, 1), nn.PReLU(10), nn.Conv2d(10, 9, 1), nn.Sigmoid())
        self.last = nn.Conv2d(9, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.one(x), self.two(x)], 1)
        x = self.grouped(x)
        x = x * torch.sigmoid(self.scale(x))
        return self.last(self.free(x)).flatten(2)


def test_channels_that_anything_else_counts_on_are_left_alone() -> None:
    torch.manual_seed(0)
    made = net(Mixed(), (3, 5, 5))
    aligned = align_channels(made.graph)
    np.testing.assert_allclose(made.run(aligned), made.run(), atol=1e-6)
    before, after = weights(made.graph), weights(aligned)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"/free/free.2/Conv", "/last/Conv"}  # PReLU's slope fixes the ten before it
    assert after["/free/free.2/Conv"] == (16, 10, 1, 1)


def test_a_network_of_whole_blocks_is_left_as_it_is() -> None:
    made = net(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten()), (3, 6, 6))
    assert align_channels(made.graph) == made.graph


def test_weights_that_two_layers_share_are_not_padded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.same = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.same(self.same(self.first(x))).flatten(1)

    made = net(Shared(), (3, 4, 4))
    np.testing.assert_allclose(made.run(align_channels(made.graph)), made.run(), atol=1e-6)


def unbalanced() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        factor = torch.logspace(-3, 0, 16)
        model[0].weight *= factor.reshape(-1, 1, 1, 1)
        model[0].bias *= factor
        model[2].weight /= factor.reshape(1, -1, 1, 1)
    return model.eval()


def test_equalization_keeps_the_function_and_helps_one_scale_for_all_channels() -> None:
    made = net(unbalanced(), (3, 8, 8))
    level = equalize(made.graph)
    np.testing.assert_allclose(made.run(level), made.run(), rtol=1e-4, atol=1e-5)
    by_tensor = replace(profile(), per_channel=False)
    before = made.sqnr_db(quantize_static(made.graph, made.seen, by_tensor))
    after = made.sqnr_db(quantize_static(level, observe(level, [made.x]), by_tensor))
    assert after > before + 10


def test_equalization_leaves_a_network_without_such_pairs_alone() -> None:
    made = net(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.Sigmoid(), nn.Flatten()), (3, 8, 8))
    assert equalize(made.graph) == made.graph


def test_a_range_holds_zero_and_the_methods_cut_outliers() -> None:
    seen = Histogram()
    values = rng().normal(size=100_000).astype(np.float32)
    values[0] = 40.0
    for chunk in np.split(values, 10):
        seen.add(chunk)
    low, high = activation_range(seen, "minmax")
    assert (low, high) == (values.min(), 40.0)
    for method, below in (("percentile", 10.0), ("mse", 39.0), ("entropy", 39.0)):
        least, most = activation_range(seen, method)
        assert least <= 0.0 < most < below, method
    positive = Histogram()
    positive.add(np.abs(values[1:]))
    for method in ("minmax", "percentile", "mse", "entropy"):
        assert activation_range(positive, method)[0] == 0.0


def test_a_histogram_does_not_grow_with_what_it_sees_and_counts_all_of_it() -> None:
    one, many = Histogram(), Histogram()
    values = np.concatenate([rng(1).normal(size=4000), rng(2).normal(size=4000) * 50]).astype(np.float32)
    one.add(values)
    for chunk in np.split(values, 80):
        many.add(chunk)
    assert one.counts.shape == many.counts.shape == (BINS,)
    assert one.counts.sum() == many.counts.sum() == 8000
    assert (many.low, many.high) == (one.low, one.high)
    for method in ("percentile", "mse"):
        np.testing.assert_allclose(activation_range(many, method), activation_range(one, method), rtol=0.06)


def test_values_that_are_not_numbers_do_not_spoil_a_histogram() -> None:
    seen = Histogram()
    seen.add(np.zeros(0, np.float32))
    seen.add(np.zeros(5, np.float32))
    assert activation_range(seen, "mse") == (0.0, 0.0)


@pytest.mark.parametrize(("method", "least_db"), [("minmax", 25), ("percentile", 25), ("mse", 25), ("entropy", 10)])
def test_every_method_gives_a_usable_network(conv_net: Net, method: str, least_db: float) -> None:
    assert conv_net.sqnr_db(quantize_static(conv_net.graph, conv_net.seen, profile(), method=method)) > least_db


def test_a_bias_that_is_huge_beside_its_weights_does_not_overflow() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight *= 1e-6
        model[0].bias.fill_(1000.0)
    made = net(model, (6,))
    quantized = quantize_static(made.graph, made.seen, profile())
    np.testing.assert_allclose(made.run(quantized), made.run(), rtol=0.01)
    assert all(np.isfinite(numpy_helper.to_array(t)).all() for t in quantized.graph.initializer)


def test_the_network_of_the_fixtures_has_what_it_says() -> None:
    kinds = {node.op_type for node in net(convolutions(), (3, 12, 12)).graph.graph.node}
    assert {"Conv", "Clip", "Relu", "Add", "GlobalAveragePool"} <= kinds


def test_a_scratch_file_that_cannot_be_written_is_not_the_models_fault(conv_net: Net) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"could not be written: the disk is full, or .*ulimit|File too large"):
            optimize(conv_net.graph)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
