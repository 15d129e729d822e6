"""What `converter.save_checkpoint` stores is the model at every size that the bundle takes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import converter
from converter.plan import InputOption
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError, EdgeError
from edge.inference.onnx_session import OnnxSession
from edge.inference.session import sqnr_db
from tests.converter.models import convert, plan

EXAMPLE = torch.linspace(-1, 1, 80).reshape(1, 20, 4)


class Between(nn.Module):
    """Something that depends on the length of the signal, between two layers."""

    def __init__(self, middle: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.middle, self.first, self.last = middle, nn.Linear(4, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.middle(torch.tanh(self.first(x))).mean(1))
        return y


class Newest(nn.Module):
    """Keeps the newest of many; TorchScript compiles it."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        if y.shape[1] > self.most:
            y = y[:, -self.most :] * 0.5
        return y


class Positions(nn.Module):
    """A table of 40 positions, stretched where it is too short."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 16, 40))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        n = y.shape[1]
        table = functional.interpolate(self.table, size=n, mode="linear") if n > 40 else self.table[..., :n]
        return torch.tanh(y + table.transpose(1, 2))


def uncompiled(y: torch.Tensor, *, most: int) -> torch.Tensor:
    """As `Newest`, by way of numpy, which TorchScript does not know."""
    return y[:, -most:] * float(np.float32(0.5)) if int(np.int64(y.shape[1])) > most else y


# By name: what stands between the layers, and the longest signal up to which the bundle must be of use.
MIDDLES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], int]] = {
    "if 60": (Newest(60), 300),
    "if 200": (Newest(200), 300),
    "positions": (Positions(), 20),
    "if 60, not compiled": (lambda y: uncompiled(y, most=60), 20),
    "if 200, not compiled": (lambda y: uncompiled(y, most=200), 100),
    "floor division": (lambda y: y[:, : int(y.shape[1]) // 4 + 1], 20),
    "floor division of the size itself": (lambda y: y[:, : y.shape[1] // 4 + 1], 300),
    "round": (lambda y: y[:, : round(y.shape[1] * 0.375)], 1200),
    "ceil": (lambda y: y[:, : math.ceil(y.shape[1] * 0.1)], 1200),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MIDDLES)
def test_a_size_in_python_gives_a_bundle_that_is_right_or_refuses(tmp_path: Path, name: str) -> None:
    middle, useful = MIDDLES[name]
    model = Between(middle).eval()
    path = tmp_path / "m.pth"
    converter.save_checkpoint(model, path, example_input=EXAMPLE, axes={"input": ("batch", "time", 4)})
    convert(plan(path, quantize="none", trainable="none"))
    session = OnnxSession(Bundle.open(path.with_suffix(".edge")))
    ran = []
    for size in (20, 61, 100, 300, 1200):
        x = torch.randn(3, size, 4)
        try:
            found = session.run({"input": x.numpy()})["output"]
        except EdgeError:
            continue
        with torch.no_grad():
            assert sqnr_db(model(x).numpy(), found) > 60, size
        ran.append(size)
    assert ran[0] == 20
    assert ran[-1] >= useful


def test_a_narrowed_axis_is_said_and_kept_to_under_any_name_and_size(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    model = Between(lambda y: uncompiled(y, most=60))
    with pytest.warns(UserWarning, match="gives another output than the model where time is 101.*time: 1 to 60"):
        converter.save_checkpoint(model, path, example_input=EXAMPLE, axes={"input": ("batch", "time", 4)})
    assert model.training
    options: dict[str, Any] = {"quantize": "none", "trainable": "none"}
    report = convert(plan(path, inputs=(InputOption(name="input", shape=("batch", "frames", 4)),), **options)).report
    assert report["axes"]["frames"]["most"] == 60
    larger = InputOption(name="input", shape=("batch", "frames", 4), sizes={"frames": 100})
    with pytest.raises(ConversionError, match="input has 100 along axis 1; edgeloop checkpoint is right at 1 to 60"):
        convert(plan(path, inputs=(larger,), **options))


def test_a_trace_that_decides_by_the_number_of_samples_is_refused(tmp_path: Path) -> None:
    model = Between(lambda y: y * 2 if int(np.int64(y.shape[0])) > 2 else y)
    with pytest.raises(ConversionError, match="another number of samples"):
        converter.save_checkpoint(model, tmp_path / "m.pth", example_input=EXAMPLE)
    assert not list(tmp_path.iterdir())


def test_what_only_the_tracer_cannot_do_is_not_blamed_on_the_model(tmp_path: Path) -> None:
    model = Between(lambda y: y[:, : y.shape[1].bit_length()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConversionError, match=r"the model runs on .*jit\.trace cannot follow it.*bit_length"):
            converter.save_checkpoint(
                model, tmp_path / "m.pth", example_input=EXAMPLE, axes={"input": ("batch", "time", 4)}
            )


class Guarded(nn.Module):
    """Saturates, and only where an output is out of range."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        if torch.any(y > 10):
            y = torch.clamp(y, max=10.0)
        return y


class GuardedByPython(Guarded):
    """The same with what the compiler does not take."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)
        return y.clamp(max=10.0) if any(v > 10 for v in np.asarray(y.detach().tolist()).flat) else y


def test_a_branch_on_values_is_kept_or_said_not_to_be_in_the_bundle(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    example, far = torch.randn(2, 4), 100 * torch.randn(20, 4)
    options: dict[str, Any] = {"quantize": "none", "trainable": "none"}
    for model in (Guarded().eval(), GuardedByPython().eval()):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            converter.save_checkpoint(model, path, example_input=example)
        notes = " ".join(convert(plan(path, **options)).report["notes"])
        session = OnnxSession(Bundle.open(path.with_suffix(".edge")))
        right = [
            np.allclose(session.run({"input": one[None].numpy()})["output"], model(one[None]).detach()) for one in far
        ]
        is_told = "decided by values in Python (test_checkpoint_sizes.py" in notes
        assert is_told == any("decides by values" in str(warning.message) for warning in said)
        assert all(right) != is_told, type(model).__name__
        assert is_told == isinstance(model, GuardedByPython)


def test_chance_is_called_chance(tmp_path: Path) -> None:
    model = Between(lambda y: nn.functional.dropout(y, training=True))
    with pytest.raises(ConversionError, match="draws random numbers"):
        converter.save_checkpoint(model, tmp_path / "m.pth", example_input=EXAMPLE)
