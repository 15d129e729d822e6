"""int8 that is right at the samples' size and for one step, and wrong at other sizes or in a stream, is not shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from converter.plan import InputOption
from converter.program.programs import onnx_file_program
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.contract.manifest import StatePair
from edge.contract.tensorspec import TensorSpec
from edge.inference.onnx_session import OnnxSession
from edge.inference.streams import Stream
from tests.converter.models import convert, plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
]

Array = npt.NDArray[Any]
Axes = Mapping[str, Mapping[int, str]]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Energy(nn.Module):
    """Sound of any length to three sums over all of it: longer is more."""

    def __init__(self) -> None:
        super().__init__()
        self.bands, self.mixed, self.out = nn.Conv1d(1, 8, 9, stride=4), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        energy = torch.relu(self.bands(sound[:, None])).sum(2)
        return self.out(torch.tanh(self.mixed(energy) / 20))


class Places(nn.Module):
    """Two maps that know how far to the right they are, as keypoints and boxes in pixels do."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.seen = nn.Conv2d(2, 8, 3, padding=1, stride=2)
        self.placed, self.out, self.end = nn.Conv2d(9, 8, 3, padding=1), nn.Conv2d(8, 2, 1), end

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.seen(image))
        right = torch.cumsum(torch.ones_like(seen[:, :1]), 3) / 8
        return self.end(self.out(torch.relu(self.placed(torch.cat([seen, right], 1)))))


class Counter(nn.Module):
    """A word at each step, and what was counted until there."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.counted, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.counted(torch.cumsum(torch.relu(self.word(words)), 1) / 10)))


class Steady(nn.Module):
    """The same at each place, whatever the length."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 16, 5, padding=2), nn.Conv1d(16, 4, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(series)))


def exported(folder: Path, model: nn.Module, inputs: Mapping[str, Array], outputs: Axes, axes: Axes) -> Path:
    """An ONNX file with free axes."""
    file = folder / f"{type(model).__name__}.onnx"
    torch.onnx.export(
        model.eval(),
        tuple(torch.from_numpy(array[:1]) for array in inputs.values()),
        str(file),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={**axes, **outputs},
        dynamo=False,
    )
    np.savez(folder / "samples.npz", **inputs)  # type: ignore[arg-type]
    return file


def converted(file: Path, **options: Any) -> tuple[dict[str, Any], OnnxSession]:
    given = {"calibration": str(file.parent / "samples.npz"), "trainable": "none", **options}
    report = convert(plan(file, **given)).report
    return report, OnnxSession(Bundle.open(file.with_suffix(".edge")))


def row(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in report["candidates"] if c["name"].startswith(name))
    return found


def noise(wanted: Array, found: Array) -> float:
    """Share of the variance."""
    return float(np.square(wanted - found).sum() / np.square(wanted - wanted.mean()).sum())


WIDE = {0: "batch", 2: "height", 3: "width"}
SIZES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Mapping[int, str], Mapping[int, str], int]] = {
    "sums over a length": (Energy, (100, 100), {0: "batch", 1: "time"}, {0: "batch"}, 1),
    "maps": (lambda: Places(nn.Identity()), (64, 2, 16, 16), WIDE, {0: "batch", 2: "high", 3: "wide"}, 3),
    "segments": (lambda: Places(nn.Sigmoid()), (64, 2, 16, 16), WIDE, {0: "batch", 2: "high", 3: "wide"}, 3),
    "a longer sequence": (Counter, (100, 12, 4), {0: "batch", 1: "time"}, {0: "batch", 1: "time"}, 1),
}


@pytest.mark.parametrize("kind", SIZES)
def test_int8_that_is_wrong_at_other_sizes_is_not_shipped(tmp_path: Path, kind: str) -> None:
    make, shape, free, answers, axis = SIZES[kind]
    torch.manual_seed(0)
    x = normal(*shape)
    file = exported(tmp_path, make(), {"x": x}, {"y": answers}, {"x": free})
    report, session = converted(file)
    found = row(report, "int8 static, minmax")
    assert (found["status"], found["quality"]["at"][:3]) == ("refused", "at ")
    assert found["quality"]["of"] in found["why"]
    assert found["sqnr_db"] > 25  # on the samples themselves all is well
    model = onnx_file_program(file)
    for times in (2, 3):
        large = np.concatenate([normal(*shape, seed=i) for i in range(times)], axis=axis)[:20]
        assert noise(model({"x": large})["y"], session.run({"x": large})["y"]) < 0.02
    assert any(one["at"].startswith("at ") for one in report["elsewhere"])
    if kind == "maps":
        with pytest.raises(ConversionError, match=r" of y\[1\] at height \d+, width \d+: .*fix it with --input"):
            converted(file, quantize="int8")
        fixed = InputOption(name="x", shape=("batch", 2, 16, 16))
        assert converted(file, quantize="int8", inputs=(fixed,))[0]["elsewhere"] == []


def test_int8_that_is_right_at_all_sizes_is_not_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    axes = {"x": {0: "batch", 2: "time"}}
    file = exported(tmp_path, Steady(), {"x": normal(80, 3, 40)}, {"y": {0: "batch", 2: "time"}}, axes)
    report, session = converted(file, quantize="int8")
    assert report["chosen"] == "int8 static, minmax"
    assert {one["at"].split()[1] for one in report["elsewhere"]} == {"time"}
    assert len(report["elsewhere"]) >= 3
    long = normal(10, 3, 200, seed=5)
    assert noise(onnx_file_program(file)({"x": long})["y"], session.run({"x": long})["y"]) < 0.01


# --- streams ---------------------------------------------------------------------------------------------------------


class Leaking(nn.Module):
    """Keeps nearly all of what it has, and adds a little: an error of a step stays for a thousand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = 0.999 * state + 0.05 * self.b(torch.relu(self.a(x)))
        return self.out(state), state


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell, self.out = nn.Linear(8, 16), nn.GRUCell(16, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.cell(torch.relu(self.a(x)), state)
        return self.out(state), state


STATES = [StatePair(input="state", output="stateN")]


def recurrent(folder: Path, model: nn.Module, width: int, **given: Array) -> Path:
    free = {0: "batch"}
    axes = {"x": free, "state": free}
    inputs = {"x": normal(200, 8), "state": np.zeros((200, width), np.float32)}
    file = exported(folder, model, inputs, {"y": free, "stateN": free}, axes)
    np.savez(folder / "samples.npz", **({"x": inputs["x"]} | given))  # type: ignore[arg-type]
    return file


def streamed(session: OnnxSession, file: Path, width: int, steps: int = 600) -> float:
    """Noise in the last half of a stream of new samples, as a share of the variance there."""
    specs = [TensorSpec(name="state", dtype="float32", shape=("batch", width))]
    x = normal(steps, 1, 8, seed=9)
    streams = [Stream(run, specs, STATES) for run in (onnx_file_program(file), lambda given: session.run(dict(given)))]
    both = [np.stack([stream.step({"x": one})["y"] for one in x])[steps // 2 :] for stream in streams]
    return noise(*both)


def test_what_drifts_in_a_stream_is_not_shipped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = recurrent(tmp_path, Leaking(), 4)
    report, session = converted(file)
    found = row(report, "int8 static, minmax")
    assert found["status"] == "refused"
    assert found["quality"]["at"] == "in steps 501 to 1000 of a stream"
    assert found["quality"]["of"] in found["why"]
    assert found["column_db"] > 20  # one step shows nothing of it
    assert streamed(session, file, 4) < 0.02
    assert any(one["at"].endswith("of a stream") for one in report["elsewhere"])
    with pytest.raises(ConversionError, match=r"in steps 501 to 1000 of a stream"):
        converted(file, quantize="int4")


def test_what_was_calibrated_on_states_of_zeros_is_seen_in_a_stream(tmp_path: Path) -> None:
    """Data that hold a state for each sample, which none ever leaves behind: ranges are those of zeros."""
    torch.manual_seed(0)
    file = recurrent(tmp_path, Leaking(), 4, state=0.01 * normal(200, 4, seed=3))
    report, session = converted(file)
    assert row(report, "int8 static, minmax")["quality"]["at"].endswith("of a stream")
    assert streamed(session, file, 4) < 0.02


def test_what_forgets_does_not_drift_and_is_shipped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = recurrent(tmp_path, Gated(), 16)
    report, session = converted(file, quantize="int8")
    assert report["chosen"].startswith("int8 static")
    assert [one["at"] for one in report["elsewhere"]] == ["in steps 501 to 1000 of a stream"]
    assert streamed(session, file, 16) < 0.02
