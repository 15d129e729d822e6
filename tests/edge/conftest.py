"""Further kinds of bundles: one that is easily at fault, and one that remembers and learns."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fragile_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a head; roots of four numbers and words of a vocabulary of 8: what is below 0, or no word, it cannot."""
    import torch
    from torch import nn

    import converter
    from tests.converter.models import convert, plan

    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(8, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
            return self.out(torch.sqrt(x) + self.words(word))

    folder = tmp_path_factory.mktemp("fragile")
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    given = {"x": torch.rand(60, 4, generator=rng), "word": torch.randint(0, 8, (60,), generator=rng)}
    example = {name: array[:1] for name, array in given.items()}
    names = ["a", "b", "c"]
    converter.save_checkpoint(
        Fragile().eval(), folder / "f.pth", example_input=example, class_names=names, calibration=given
    )
    convert(plan(folder / "f.pth", trainable="none", quantize="none"))
    return folder / "f.edge"


@pytest.fixture(scope="session")
def spotter_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A keyword spotter: frames and a recurrent state to one of three words, and the last layer learns."""
    import torch
    from torch import nn

    import converter
    from tests.converter.models import convert, plan

    class Spotter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.word = nn.GRUCell(6, 12), nn.Linear(12, 3)

        def forward(self, frame: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            state = self.cell(frame, state)
            return self.word(state), state

    folder = tmp_path_factory.mktemp("spotter")
    torch.manual_seed(0)
    model, rng = Spotter().eval(), torch.Generator().manual_seed(1)
    frame, state = torch.randn(90, 6, generator=rng), 0.5 * torch.randn(90, 12, generator=rng)
    with torch.no_grad():
        y = model(frame, state)[0].argmax(1)
    given = {"frame": frame, "state": state}
    converter.save_checkpoint(
        model,
        folder / "s.pth",
        example_input={name: array[:1] for name, array in given.items()},
        class_names=["on", "off", "nothing"],
        calibration=(given, y),
    )
    convert(plan(folder / "s.pth", quantize="none", states=(("state", "output_1"),)))
    return folder / "s.edge"
