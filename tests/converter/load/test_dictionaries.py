"""Models that take one dictionary of tensors: each entry that they look at is an input."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
from torch import nn

import converter
from converter.arguments import one_input
from converter.plan import Constant
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import convert, plan

FILE = "from tests.converter.load.test_dictionaries import *\n"
Tensors = dict[str, torch.Tensor]


class Batch(TypedDict):
    first: torch.Tensor
    second: torch.Tensor


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 3)

    def both(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.a(first) - 2 * self.b(second)))  # type: ignore[no-any-return]


class Usual(Two):
    """As training loops have it: no types, a mask that need not be there, a loss where there are labels."""

    def forward(self, batch):  # type: ignore[no-untyped-def]
        found = self.both(batch["first"], batch["second"])
        if batch.get("mask") is not None:
            found = found * batch["mask"][:, None]
        if "labels" in batch:
            return {"loss": nn.functional.cross_entropy(found, batch["labels"])}
        return {"logits": found}


class Typed(Two):
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.both(batch["first"], batch["second"])


class OfOnes(Two):
    def forward(self, batch: Batch) -> torch.Tensor:
        return self.both(batch["first"], batch["second"])


class ByName(Two):
    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        return self.both(**batch)


def samples() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = {name: rng.standard_normal((60, size)).astype(np.float32) for name, size in (("second", 3), ("first", 4))}
    return {**x, "mask": rng.random(60).astype(np.float32), "labels": np.arange(60) % 3, "id": np.arange(60)}


def converted(source: Path, **options: Any) -> OnnxSession:
    convert(plan(source, quantize="none", trainable="none", torchscript=False, **options))
    return OnnxSession(Bundle.open(source.with_suffix(".edge")))


def from_weights(folder: Path, kind: type[nn.Module], **options: Any) -> OnnxSession:
    (folder / "net.py").write_text(FILE)
    torch.save(kind().state_dict(), folder / "m.pth")
    return converted(folder / "m.pth", arch=f"{folder / 'net.py'}:{kind.__name__}", **options)


def check(session: OnnxSession, names: list[str], mask: bool = False) -> None:
    """It takes these, and gives what the model gives of them."""
    assert [spec.name for spec in session.manifest.inputs] == names
    given = {name: array for name, array in samples().items() if name in names}
    (found,) = session.run(given).values()
    wanted = Two().both(torch.from_numpy(given["first"]), torch.from_numpy(given["second"])).detach().numpy()
    np.testing.assert_allclose(found, wanted * given["mask"][:, None] if mask else wanted, atol=1e-5)


def test_entries_that_are_looked_at_are_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **samples())
    session = from_weights(tmp_path, Usual, calibration=str(tmp_path / "data.npz"))
    check(session, ["second", "first", "mask"], mask=True)
    assert [spec.name for spec in session.manifest.outputs] == ["logits"]


@pytest.mark.parametrize("kind", [Usual, Typed, OfOnes, ByName])
def test_entries_may_be_named(tmp_path: Path, kind: type[nn.Module]) -> None:
    inputs = tuple(map(one_input, ("second=batch,3", "first=batch,4")))
    check(from_weights(tmp_path, kind, inputs=inputs), ["second", "first"])


def test_an_entry_may_be_constant(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **{name: array for name, array in samples().items() if name != "mask"})
    mask = {"mask": Constant(value=[0.5], dtype="float32")}
    session = from_weights(tmp_path, Usual, example=str(tmp_path / "data.npz"), constants=mask)
    given = {name: array for name, array in samples().items() if name in ("first", "second")}
    found = session.run(given)["logits"]
    wanted = Two().both(torch.from_numpy(given["first"]), torch.from_numpy(given["second"])).detach().numpy()
    np.testing.assert_allclose(found, wanted / 2, atol=1e-5)


def test_torchscript_may_take_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **samples())
    torch.jit.script(Typed().eval()).save(tmp_path / "m.pt")
    check(converted(tmp_path / "m.pt", calibration=str(tmp_path / "data.npz")), ["second", "first"])


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="takes a dictionary of tensors: give --calibrate"):
        from_weights(tmp_path, Typed)
    np.savez(tmp_path / "data.npz", first=samples()["first"])
    with pytest.raises(ConversionError, match=r"does not run on a batch of first .*KeyError: 'second'"):
        from_weights(tmp_path, Typed, calibration=str(tmp_path / "data.npz"))
    with pytest.raises(ConversionError, match="takes a dictionary of tensors: save the state_dict"):
        converter.save_checkpoint(Typed(), tmp_path / "c.pth", example_input=torch.zeros(1, 4))
