"""TorchScript run operator by operator gives what TorchScript gives, and a trace of it knows every shape."""

from __future__ import annotations

import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from converter.export.replay import Replay
from converter.program.programs import Flat


def script_of(model: nn.Module, example: torch.Tensor) -> torch.jit.ScriptModule:
    """What comes back from a file that torch.jit.trace and torch.jit.save made."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model.eval(), example, check_trace=False), file)
    file.seek(0)
    return torch.jit.load(file).eval()


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.offset = nn.Parameter(torch.ones(4))
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self.layer(x).split(2, dim=1)
        return first * second, torch.cat([first, second], 1) * self.scale + self.offset


MODELS = {
    "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    "convolution": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten()), (1, 6, 6)),
    "two outputs": (TwoOutputs(), (6,)),
    "recurrent": (nn.LSTM(6, 5, batch_first=True), (7, 6)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_the_same_as_torchscript(name: str) -> None:
    torch.manual_seed(0)
    model, shape = MODELS[name]
    script = script_of(model, torch.randn(2, *shape))
    replay = Replay(script)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        wanted, found = Flat(script)(x), replay(x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_of_it_takes_batches_of_any_size() -> None:
    """torch's exporter takes the attention of a saved archive in no other way."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        script = script_of(model, torch.randn(2, 5, 8))
        file = io.BytesIO()
        torch.onnx.export(
            Replay(script).eval(), (torch.randn(2, 5, 8),), file, dynamo=False, opset_version=18, input_names=["x"],
            output_names=["y"], dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    x = torch.randn(7, 5, 8)
    (found,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {"x": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), atol=1e-5)


def test_branches_are_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if bool(x.sum() > 0) else -x

    with pytest.raises(ValueError, match="prim::If, which a trace cannot follow"):
        Replay(torch.jit.script(Branching()).eval())
