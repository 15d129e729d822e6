"""Programs of torch.export as people export them: with an example of any size, nested inputs, the wrong mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converter.load.exported_program import ExportedProgram, read_exported_program
from converter.load.inputs import Given
from converter.load.torch_file import read_torchscript
from converter.load.training_mode import in_onnx
from converter.plan import ModelOptions
from converter.program.programs import torch_program
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import BATCH
from tests.converter.load.test_carried import graph, node

Tensor = torch.Tensor


class Views(nn.Sequential):
    """Its view has the number of samples written down."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4 * 36, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self[2](self[1](self[0](x)).view(x.size(0), -1))
        return found


class Recurs(nn.Module):
    """Its LSTM begins with zeros for so many samples."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.lstm(x)[0][:, -1])
        return found


class Remembers(nn.Module):
    """The samples of its state lie along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 6)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        out, last = self.gru(x.transpose(0, 1), h)
        return out[-1], last


class Over(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.last, self.how = nn.Linear(8, 3), how

    def forward(self, x: Tensor) -> Tensor:
        x = x / x.max().clamp(min=50.0) if self.how == "peak" else x - x.mean(0)
        found: Tensor = self.last(x)
        return found


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)

    def forward(self, d: Mapping[str, Any], mask: None = None, k: float = 2.0, *, e: Tensor) -> dict[str, Any]:
        return {"a": self.last(d["u"] + d["v"][0]) * k, "b": [e * 2]}


def exported(path: Path, model: nn.Module, *inputs: Any, **named: Any) -> ExportedProgram:
    torch.export.save(torch.export.export(model, inputs, named), path)
    return read_exported_program(path, Given(options=ModelOptions(source=path)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return tmp_path / "m.pt2"


@pytest.mark.filterwarnings("ignore")
def test_a_batch_of_any_number_is_made_free_also_where_it_is_written_down(path: Path) -> None:
    for make, shape in ((Views, (1, 8, 8)), (Recurs, (5, 8))):
        for size in (1, 4):
            model = make().eval()
            found = exported(path, model, torch.randn(size, *shape))
            assert found.inputs[0].shape == (BATCH, *shape)
            assert any(f"fixed at {size} in the file, was made free" in note for note in found.notes)
            x = torch.randn(7, *shape)
            (given,) = torch_program(found.module, found.inputs)({"input": x.numpy()}).values()
            np.testing.assert_allclose(given, model(x).detach().numpy(), atol=1e-5)
    for size in (1, 3):
        found = exported(path, Remembers().eval(), torch.randn(size, 5, 8), torch.zeros(1, size, 6))
        assert [spec.shape for spec in found.inputs] == [(BATCH, 5, 8), (1, BATCH, 6)]


@pytest.mark.filterwarnings("ignore")
def test_a_program_that_works_over_its_samples_is_refused_with_the_words_of_torch_export(path: Path) -> None:
    for how in ("peak", "mean"):
        for size in (1, 4):
            with pytest.raises(ConversionError, match=r"fixed shape input .* dynamic_shapes=") as caught:
                exported(path, Over(how).eval(), torch.randn(size, 8))
            assert "dynamic_axes" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_inputs_inside_of_dictionaries_and_lists_are_taken_by_their_names(path: Path) -> None:
    model = Nested().eval()
    for size in (1, 4):
        d = {"u": torch.randn(size, 8), "v": [torch.randn(size, 8)]}
        found = exported(path, model, d, None, 3.0, e=torch.randn(size, 4))
        assert [spec.name for spec in found.inputs] == ["d_u", "d_v_0", "e"]
        u, v, e = torch.randn(7, 8), torch.randn(7, 8), torch.randn(7, 4)
        feeds = {"d_u": u.numpy(), "d_v_0": v.numpy(), "e": e.numpy()}
        given = torch_program(found.module, found.inputs)(feeds)
        wanted = model({"u": u, "v": [v]}, None, 3.0, e=e)
        assert list(given) == ["a", "b_0"]
        np.testing.assert_allclose(given["a"], wanted["a"].detach().numpy(), atol=1e-6)
        np.testing.assert_array_equal(given["b_0"], wanted["b"][0].numpy())


@pytest.mark.filterwarnings("ignore")
def test_what_was_written_in_training_mode_is_told_so(path: Path) -> None:
    x = torch.randn(4, 8)
    for layer, word in ((nn.BatchNorm1d(8), "batch normalization"), (nn.Dropout(0.5), "dropout")):
        model = nn.Sequential(nn.Linear(8, 8), layer).train()
        with pytest.raises(ConversionError, match=rf"in training mode \({word}.*model.eval\(\) before torch.export"):
            exported(path, model, x)
        torch.jit.save(torch.jit.trace(model, x, check_trace=False), path)
        with pytest.raises(ConversionError, match=rf"in training mode \({word}.*model.eval\(\) before torch.jit.trace"):
            read_torchscript(path, "it")
        torch.jit.save(torch.jit.script(model), path)
        assert not read_torchscript(path, "it").training  # it asks for its mode
    assert exported(path, nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.0)).train(), x).notes
    assert exported(path, nn.InstanceNorm1d(8).train(), torch.randn(4, 8, 5)).notes
    ones = {name: np.ones(8, np.float32) for name in "sbmv"}
    for mode in (0, 1):
        normal = node("BatchNormalization", "x s b m v", "y m2 v2" if mode else "y", training_mode=mode)
        assert bool(in_onnx(graph([normal], {"x": ["n", 8]}, {"y": ["n", 8]}, ones))) == bool(mode)
