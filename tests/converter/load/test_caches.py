"""Decoders that are given what came before: nothing at the first step, and more at each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import converter
from converter.arguments import one_input
from edge.agent.model.serving import Serving
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, LearningError
from edge.contract.manifest import Manifest
from edge.contract.tensorspec import AxisRange
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import convert, plan

FILE = "from tests.converter.load.test_caches import *\n"


class Decoder(nn.Module):
    """One step of attention with a cache of keys and values, of two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(
        self, x: torch.Tensor, past_k: torch.Tensor, past_v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, steps, _ = x.shape
        q, k, v = self.qkv(x).view(batch, steps, 3, 2, 4).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        shares = (q @ k.transpose(2, 3) / 2).softmax(-1)
        return self.out((shares @ v).transpose(1, 2).reshape(batch, steps, 8)), k, v


class Masked(Decoder):
    """With a mask that is as long as what came before and what comes; whose names are those of known exports."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, attention_mask: torch.Tensor, past_k: torch.Tensor, past_v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, steps, _ = x.shape
        q, k, v = self.qkv(x).view(batch, steps, 3, 2, 4).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        scores = q @ k.transpose(2, 3) / 2 + (1 - attention_mask[:, None, None].float()) * -1e4
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, steps, 8)), k, v


INPUTS = ("x=batch,1,8", "past_k=batch,2,past@0,4", "past_v=batch,2,past@0,4")


def samples(count: int = 40) -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((count, 1, 8)).astype(np.float32)
    return {"x": x, "past_k": np.zeros((count, 2, 0, 4), np.float32), "past_v": np.zeros((count, 2, 0, 4), np.float32)}


def source(folder: Path, kind: str) -> dict[str, Any]:
    """A file of this kind, and the options that go with it."""
    model = Decoder().eval()
    np.savez(folder / "data.npz", **samples())
    example = tuple(torch.randn(2, *shape) for shape in ((1, 8), (2, 3, 4), (2, 3, 4)))
    if kind == "state_dict":
        (folder / "net.py").write_text(FILE)
        torch.save(model.state_dict(), folder / "m.pth")
        return {"arch": f"{folder / 'net.py'}:Decoder", "calibration": str(folder / "data.npz")}
    if kind == "without data":
        return {**source(folder, "state_dict"), "calibration": None, "inputs": tuple(map(one_input, INPUTS))}
    if kind == "checkpoint":
        given = {name: torch.from_numpy(array[:1]) for name, array in samples().items()}
        axes = {name: ["batch", 2, "past", 4] for name in ("past_k", "past_v")}
        converter.save_checkpoint(model, folder / "m.pth", example_input=given, axes=axes)
    elif kind == "TorchScript":
        torch.jit.trace(model, example).save(str(folder / "m.pth"))  # type: ignore[no-untyped-call]
        return {"example": str(folder / "data.npz")}
    else:
        names = ["x", "past_k", "past_v"]
        free = {name: {0: "batch", **({2: "past"} if name != "x" else {})} for name in names}
        torch.onnx.export(
            model, example, folder / "m.pth", dynamo=False, input_names=names, dynamic_axes=free,
            output_names=["logits", "present_k", "present_v"],
        )  # fmt: skip
        return {"example": str(folder / "data.npz")}
    return {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["state_dict", "without data", "checkpoint", "TorchScript", "ONNX"])
def test_what_came_before_may_be_nothing_and_grows(tmp_path: Path, kind: str) -> None:
    options = source(tmp_path, kind)
    convert(plan(tmp_path / "m.pth", quantize="none", trainable="none", torchscript=False, **options))
    session = OnnxSession(Bundle.open(tmp_path / "m.edge"))
    manifest = session.manifest
    assert {spec.name: spec.shape[2] for spec in manifest.inputs[1:]} == {"past_k": "past", "past_v": "past"}
    assert manifest.axes == {"past": AxisRange(least=0)}
    assert Manifest.decode(manifest.encode()) == manifest
    serving, model = Serving(Bundle.open(tmp_path / "m.edge")), Decoder().eval()
    given = {name: array[:1] for name, array in samples().items()}
    for step in range(5):
        with torch.no_grad():
            wanted = model(*map(torch.from_numpy, given.values()))
        found = serving.run(serving.one(given))
        for one, other in zip(found.values(), wanted, strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=1e-5)
        given |= dict(zip(("past_k", "past_v"), [*found.values()][1:], strict=True))
        assert given["past_k"].shape == (1, 2, step + 1, 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("before", [0, 5])
def test_a_mask_grows_along(tmp_path: Path, before: int) -> None:
    model, rng = Masked().eval(), np.random.default_rng(0)
    cache = rng.standard_normal((2, 20, 2, before, 4)).astype(np.float32)
    given = {"x": samples(20)["x"].repeat(3, axis=1), "attention_mask": np.ones((20, before + 3), np.int64)}
    np.savez(tmp_path / "data.npz", past_k=cache[0], past_v=cache[1], **given)
    (tmp_path / "net.py").write_text(FILE)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    inputs = ("x=batch,steps,8", "attention_mask=batch,total:int64", *(one.replace("@0", "") for one in INPUTS[1:]))
    options: dict[str, Any] = {"inputs": tuple(map(one_input, inputs)), "calibration": str(tmp_path / "data.npz")}
    options |= {"arch": f"{tmp_path / 'net.py'}:Masked", "quantize": "none", "trainable": "none", "torchscript": False}
    convert(plan(tmp_path / "m.pth", **options))
    session = OnnxSession(Bundle.open(tmp_path / "m.edge"))
    k = v = np.zeros((2, 2, 0, 4), np.float32)
    for steps in (3, 1, 4, 1):
        x = rng.standard_normal((2, steps, 8)).astype(np.float32)
        mask = np.ones((2, k.shape[2] + steps), np.int64)
        mask[1, :2] = 0
        with torch.no_grad():
            wanted = model(*map(torch.from_numpy, (x, mask, k, v)))
        found = [*session.run({"x": x, "attention_mask": mask, "past_k": k, "past_v": v}).values()]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=1e-5)
        k, v = found[1:]


@pytest.mark.filterwarnings("ignore")
def test_other_axes_are_never_empty(tmp_path: Path) -> None:
    options = source(tmp_path, "state_dict")
    inputs = ("x=batch,steps,8", *INPUTS[1:])
    options |= {"inputs": tuple(map(one_input, inputs))}
    convert(plan(tmp_path / "m.pth", quantize="none", trainable="none", torchscript=False, **options))
    session = OnnxSession(Bundle.open(tmp_path / "m.edge"))
    given = {name: array[:1] for name, array in samples().items()}
    empty = {**given, "x": given["x"][:, :0]}
    with pytest.raises(ConfigError, match="axis steps has 0 entries, the model takes 1 or more"):
        session.run(empty)
    serving = Serving(Bundle.open(tmp_path / "m.edge"))
    with pytest.raises(LearningError, match="axis steps has 0 entries"):
        serving.run(serving.one(empty))
    with pytest.raises(ConfigError, match=r"past_k: expected shape"):
        session.run({**given, "past_k": given["past_k"][:0], "past_v": given["past_v"][:0]})
