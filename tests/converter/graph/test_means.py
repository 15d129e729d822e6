"""Convolutions of one pixel behind the mean of what they see: the same outputs, and a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from converter.graph.canonical import canonical
from converter.head.split import split
from converter.program.programs import onnx_program
from tests.converter.models import export, rng

Ending = Callable[[torch.Tensor], Any]


class Fully(nn.Module):
    def __init__(self, last: nn.Module, ending: Ending) -> None:
        super().__init__()
        conv = nn.Conv1d if isinstance(last, nn.Conv1d) else nn.Conv2d
        self.first, self.last, self.ending = conv(2, 6, 3, padding=1), last, ending

    def forward(self, x: torch.Tensor) -> Any:
        return self.ending(self.last(torch.relu(self.first(x))))


def converted(last: nn.Module, ending: Ending) -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(0)
    model = Fully(last, ending).eval()
    shape = (2, 9) if isinstance(last, nn.Conv1d) else (2, 6, 5)
    found = canonical(export(model, shape))
    onnx.checker.check_model(found)
    x = rng().normal(size=(3, *shape)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x))
    outputs = onnx_program(found, "the test")({"input": x}).values()
    for one, other in zip(outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-5)
    return model, found


@pytest.mark.parametrize(
    ("last", "ending"),
    [
        (nn.Conv2d(6, 4, 1), lambda x: x.mean((2, 3))),
        (nn.Conv2d(6, 4, 1), lambda x: x.mean([-1, -2], keepdim=True).flatten(1)),
        (nn.Conv2d(6, 4, 1, bias=False), lambda x: nn.functional.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1)),
        (nn.Conv2d(6, 4, 1), lambda x: nn.functional.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]),
        (nn.Conv2d(6, 4, 1), lambda x: nn.functional.adaptive_avg_pool2d(x, (1, 1)).squeeze(3).squeeze(2)),
        (nn.Conv1d(6, 4, 1), lambda x: nn.functional.adaptive_avg_pool1d(x, 1).squeeze(-1)),
        (nn.Conv1d(6, 4, 1), lambda x: torch.sigmoid(x.mean(2))),
    ],
)
def test_a_mean_of_scores_is_a_linear_layer_of_the_mean(last: nn.Module, ending: Ending) -> None:
    model, found = converted(last, ending)
    names = [name for name, _ in model.named_parameters() if name.startswith("last")]
    head = split(found, names, "sigmoid").head
    assert head is not None
    assert head.is_linear
    assert head.parameters["last.weight"].shape == (4, 6)


@pytest.mark.parametrize(
    ("last", "ending"),
    [
        (nn.Conv2d(6, 4, 1, stride=2), lambda x: x.mean((2, 3))),
        (nn.Conv2d(6, 4, 1, padding=1), lambda x: x.mean((2, 3))),
        (nn.Conv2d(6, 4, 1, groups=2), lambda x: x.mean((2, 3))),
        (nn.Conv2d(6, 4, 3), lambda x: x.mean((2, 3))),
        (nn.Conv2d(6, 4, 1), lambda x: x.mean(2).flatten(1)),
        (nn.Conv2d(6, 4, 1), lambda x: x.mean((1, 2, 3))[:, None]),
        (nn.Conv2d(6, 4, 1), lambda x: torch.relu(x).mean((2, 3))),
        (nn.Conv2d(6, 4, 1), lambda x: (x, x.mean((2, 3)))),
        (nn.Conv2d(6, 4, 1), lambda x: x.mean((2, 3), keepdim=True).reshape(-1, 2)),
        (nn.Conv2d(6, 4, 1), lambda x: x.mean((2, 3), keepdim=True)[:, [3, 1, 0, 2]].flatten(1)),
        (nn.Conv2d(6, 4, 1), lambda x: x.mean((2, 3), keepdim=True) + x),
        (nn.Sequential(layer := nn.Conv2d(6, 6, 1), layer), lambda x: x.mean((2, 3))),
    ],
)  # fmt: skip
def test_other_means_stay_behind(last: nn.Module, ending: Ending) -> None:
    _, found = converted(last, ending)
    assert "Gemm" not in [node.op_type for node in found.graph.node]
