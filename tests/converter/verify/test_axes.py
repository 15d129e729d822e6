"""Sizes that a model takes, and sizes that an exporter writes down."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from converter.export.exporters import by_scripting, by_tracing
from converter.program.programs import onnx_program, torch_program
from converter.verify.axes import FreeAxis, Probe, baked_axes, free_axes
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import AxisRange, TensorSpec
from tests.converter.models import exported_by, source_of, vector

SIGNAL = vector(3, "time", name="x")


class Baked(nn.Module):
    """A convolution behind something that is computed from the length of the signal."""

    def __init__(self, begin: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.begin, self.conv = begin, nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.begin(x)).mean(2)


def centred(x: torch.Tensor, n: int) -> torch.Tensor:
    return x - x[..., : max(1, n)].mean(-1, keepdim=True)


def ramp(x: torch.Tensor, n: int) -> torch.Tensor:
    return x * torch.linspace(0.5, 2.0, n)


WRITTEN_DOWN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "//": lambda x: centred(x, int(x.shape[-1]) // 2),
    "a far //": lambda x: centred(x, int(x.shape[-1]) // 20),
    "%": lambda x: functional.pad(x, (0, int(x.shape[-1]) % 4 + 1)),
    "ceil": lambda x: centred(x, math.ceil(float(x.shape[-1]) / 3)),
    "round": lambda x: centred(x, round(float(x.shape[-1]) * 0.4)),
    "sqrt": lambda x: centred(x, int(math.sqrt(x.shape[-1]))),
    "log": lambda x: centred(x, int(math.log2(x.shape[-1]))),
    "min": lambda x: x[..., : min(int(x.shape[-1]), 50)],
    "a far min": lambda x: x[..., : min(int(x.shape[-1]), 400)],
    "max": lambda x: centred(x, max(int(x.shape[-1]) - 25, 1)),
    "if": lambda x: x * 2 if x.shape[-1] > 20 else x,
    "a far if": lambda x: x * 2 if x.shape[-1] > 300 else x,
    "a near if": lambda x: x * 2 if x.shape[-1] < 4 else x,
    "linspace": lambda x: ramp(x, int(x.shape[-1])),
    "interpolate": lambda x: functional.interpolate(x, size=int(x.shape[-1] * 0.5) + 1),
    "reshape": lambda x: x.reshape(len(x), 3, int(x.shape[-1]), 1).sum(3),
    "range": lambda x: torch.stack([x[..., i] * i for i in range(int(x.shape[-1]))], -1),
    "numpy": lambda x: x * torch.from_numpy(np.hanning(int(x.shape[-1]) + 2)[1:-1].astype(np.float32)),
}
KEPT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "//": lambda x: x - x[..., : x.shape[-1] // 2 + 1].mean(-1, keepdim=True),
    "%": lambda x: functional.pad(x, (0, (-x.shape[-1]) % 4)),
    "arange": lambda x: x * torch.arange(x.shape[-1]),
    "round": lambda x: functional.interpolate(x, size=round(x.shape[-1] * 0.375) + 1),
    "ceil": lambda x: x - x[..., : math.ceil(x.shape[-1] / 3)].mean(-1, keepdim=True),
}


def probed(model: nn.Module, *specs: TensorSpec) -> tuple[Probe, tuple[FreeAxis, ...]]:
    source = source_of(model, *specs)
    sizes = {"batch": 1, "time": 16}
    shapes = {spec.name: [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape] for spec in specs}
    example = {name: np.random.default_rng(0).random(shape, np.float32) for name, shape in shapes.items()}
    probe = Probe(run=torch_program(model.eval(), specs), inputs=source.inputs, example=example)
    return probe, free_axes(probe, {})


@pytest.mark.filterwarnings("ignore")
def test_a_size_that_tracing_writes_down_is_found_however_it_is_computed() -> None:
    for name, begin in WRITTEN_DOWN.items():
        model = Baked(begin).eval()
        probe, axes = probed(model, SIGNAL)
        made = exported_by(by_tracing, source_of(model, SIGNAL))
        found = baked_axes(onnx_program(made.model, name), probe, axes)
        assert list(found) == ["time"], name
        assert (made.decides, made.sizes is None) == (None, False), name
    for name, begin in KEPT.items():
        model = Baked(begin).eval()
        probe, axes = probed(model, SIGNAL)
        assert axes[0].range == AxisRange(), name
        made = exported_by(by_tracing, source_of(model, SIGNAL))
        assert baked_axes(onnx_program(made.model, name), probe, axes) == {}, name


class Halved(nn.Module):
    """Floor division in code that can be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = int(x.shape[-1]) // 2
        return self.conv(x - x[..., :n].mean(-1, keepdim=True)).mean(2)


def test_sizes_at_which_the_model_gives_no_finite_number_do_not_count() -> None:
    model = Halved().eval()
    probe, (axis,) = probed(model, SIGNAL)
    assert (axis.range, axis.tried[0]) == (AxisRange(least=2), 2)  # the mean of nothing is not a number
    traced, scripted = (exported_by(exporter, source_of(model, SIGNAL)) for exporter in (by_tracing, by_scripting))
    assert list(baked_axes(onnx_program(traced.model, "it"), probe, (axis,))) == ["time"]
    assert baked_axes(onnx_program(scripted.model, "it"), probe, (axis,)) == {}


class Strided(nn.Module):
    """As a detector: halves its input and adds it up again, so that it must be a multiple of 2 ** depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(1, 1, 3, 2, 1) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [x]
        for layer in self.down:
            kept.append(layer(kept[-1]))
        y = kept[-1]
        for small in reversed(kept[:-1]):
            y = small + functional.interpolate(y, scale_factor=2)
        return y


class Positions(nn.Module):
    """A table of positions of 40 entries, and a window of 5."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Parameter(torch.randn(1, 3, 40)), nn.Conv1d(3, 2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x + self.table[..., : x.shape[-1]]).mean(2)


def test_multiples_and_limits_are_found_by_trying() -> None:
    image = TensorSpec(name="x", dtype="float32", shape=("batch", 1, "height", "width"))
    model = Strided(5).eval()
    run = torch_program(model, [image])
    example = {"x": np.ones((1, 1, 96, 64), np.float32)}
    axes = free_axes(Probe(run=run, inputs=(image,), example=example), {})
    assert [(axis.name, axis.range) for axis in axes] == [
        ("height", AxisRange(least=32, step=32)),
        ("width", AxisRange(least=32, step=32)),
    ]
    assert all(size % 32 == 0 for axis in axes for size in axis.tried)
    assert all(len(axis.tried) > 5 for axis in axes)
    stated = free_axes(Probe(run=run, inputs=(image,), example=example), {"width": 64})
    assert [axis.range.step for axis in stated] == [32, 64]
    (axis,) = probed(Positions(), SIGNAL)[1]
    assert axis.range == AxisRange(least=5, most=40)
    assert (axis.tried[0], axis.tried[-1]) == (5, 40)
    (axis,) = probed(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), SIGNAL)[1]
    assert axis.range == AxisRange(least=16, most=16)
    assert axis.tried == (16,)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x * mask[..., None], lengths, batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[1][0]


def test_axes_of_one_name_vary_together_and_lengths_with_them() -> None:
    specs = (
        TensorSpec(name="x", dtype="float32", shape=("batch", "time", 4)),
        TensorSpec(name="lengths", dtype="int64", shape=("batch",)),
        TensorSpec(name="mask", dtype="float32", shape=("batch", "time")),
    )
    model = Packed().eval()
    example = {"x": np.ones((1, 9, 4), np.float32), "lengths": np.array([9]), "mask": np.ones((1, 9), np.float32)}
    probe = Probe(run=torch_program(model, specs), inputs=specs, example=example)
    (axis,) = free_axes(probe, {})
    assert (axis.name, axis.range) == ("time", AxisRange())
    sample = probe.at({"time": 4})
    assert sample is not None
    assert [array.shape for array in sample[0].values()] == [(1, 4, 4), (1,), (1, 4)]
    assert sample[0]["lengths"].tolist() == [4]
    with pytest.raises(ConversionError):
        probe.run({**sample[0], "lengths": np.array([9])})
