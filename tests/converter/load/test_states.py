"""Recurrent state: found by name and shape where that is plain, carried over the data, the manifest and the stream."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from converter.load.states import answer_of, find_states
from converter.plan import InputOption
from edge.cli.bundle import bundle as edge_bundle
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError
from edge.contract.manifest import StatePair
from edge.contract.tensorspec import TensorSpec
from tests.converter.models import convert, plan, rng

STATE = (2, "batch", 64)


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


X, Y = spec("x", "batch", 10), spec("y", "batch", 1)


def found(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> dict[str, str]:
    return {pair.input: pair.output for pair in find_states(None, inputs, outputs, None)}


NAMES = (
    "state=stateN state=output_state state_in=state_out stateIn=stateOut h=hn h0=hn h_0=h_n h=h_out h_prev=h_next "
    "hidden=new_hidden past_state=present_state cache.0=cache_out.0 rnn1_h=rnn1_hN mem=mem_out hx=output_1"
)


def test_names_that_people_give_a_state_are_known() -> None:
    for pair in NAMES.split():
        one, _, other = pair.partition("=")
        assert found([X, spec(one, *STATE)], [Y, spec(other, *STATE)]) == {one: other}


def test_several_states_are_told_apart_by_name_or_by_their_order() -> None:
    h, c = spec("h0", *STATE), spec("c0", *STATE)
    assert found([X, h, c], [Y, spec("cn", *STATE), spec("hn", *STATE)]) == {"h0": "hn", "c0": "cn"}
    unnamed = [spec("output", "batch", 1), spec("output_1", *STATE), spec("output_2", *STATE)]
    assert found([X, h, c], unnamed) == {"h0": "output_1", "c0": "output_2"}


def test_what_is_not_plain_is_no_state() -> None:
    nothing: dict[str, str] = {}
    assert found([spec("audio_in", *STATE)], [spec("audio_out", *STATE)]) == nothing
    assert found([X, spec("h", *STATE)], [Y, spec("logits", *STATE)]) == nothing  # it has another name
    assert found([X, spec("h", *STATE)], [Y, spec("hn", 1, "batch", 64)]) == nothing  # another shape
    assert found([X, spec("context", *STATE)], [Y, spec("output_1", *STATE)]) == nothing  # what a decoder attends to
    assert found([spec("h", "batch", 4)], [spec("hn", "batch", 4)]) == nothing  # no sample could come in
    noisy, h = spec("noisy", "batch", 10), spec("h", "batch", 10)
    assert found([noisy, h], [spec("output", "batch", 10), spec("output_1", "batch", 10)]) == nothing  # which of them?
    growing = spec("past_key", "batch", "past", 8)
    assert found([X, growing], [Y, spec("present_key", "batch", "past", 8)]) == nothing  # zeros of which size?


@pytest.mark.parametrize(
    ("asked", "answer", "words"),
    [
        ([("state", "other")], None, "--state: states: other is no output; expected one of y, stateN"),
        ([("stat", "stateN")], None, "stat is no input"),
        ([("x", "stateN")], None, "a state goes from sample to sample as it is"),
        ([("state", "stateN"), ("state", "stateN")], None, "stands in two pairs"),
        ([("state", "stateN")], "stateN", "--answer: answer 'stateN' is a state"),
        ([], "z", "not one of the outputs y, stateN"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(asked: list[tuple[str, str]], answer: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_states(asked, [X, spec("state", *STATE)], [Y, spec("stateN", *STATE)], answer)


def test_the_answer_is_never_a_state() -> None:
    outputs, states = [spec("stateN", *STATE), Y], [StatePair(input="state", output="stateN")]
    assert answer_of(None, None, None, outputs, states) == "y"
    assert answer_of(None, None, "stateN", outputs, states) == "y"
    assert answer_of(None, "y", None, [*outputs, X], states) == "y"
    assert answer_of("x", "y", None, [*outputs, X], states) == "x"


class Detector(nn.Module):
    """A voice detector in small: a window and a state to a probability and the next state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.front = nn.Linear(16, 24)
        self.cell = nn.GRUCell(24, 32)
        self.out = nn.Linear(32, 1)

    def forward(self, window: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.cell(torch.relu(self.front(window)), state[0])
        return torch.sigmoid(self.out(state)), state[None]


def rolled(model: nn.Module, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the network itself gives for windows in their order."""
    state, scores = torch.zeros(1, 1, 32), []
    with torch.no_grad():
        for window in torch.from_numpy(windows):
            score, state = model(window[None], state)
            scores.append(score.numpy()[0])
    return np.stack(scores), state.numpy()


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, converted on windows without a state; beside it the windows."""
    folder = tmp_path_factory.mktemp("detector")
    (folder / "net.py").write_text("from tests.converter.load.test_states import Detector\n")
    torch.save(Detector().state_dict(), folder / "vad.pth")
    np.savez(folder / "windows.npz", window=rng().standard_normal((80, 16), np.float32))
    model = folder / "vad.pth"
    inputs = (
        InputOption(name="window", shape=("batch", 16)),
        InputOption(name="state", shape=(1, "batch", 32)),
    )
    done = convert(
        plan(
            model, arch=f"{folder / 'net.py'}:Detector", inputs=inputs, calibration=str(folder / "windows.npz"),
            quantize="none", trainable="none",
        )
    )  # fmt: skip
    assert any("state is a state: output_1 of each sample" in note for note in done.report["notes"])
    assert "one stream in its order" in done.report["data"]
    return folder


def test_a_model_that_remembers_is_converted_from_windows_alone(detector: Path) -> None:
    found = Bundle.open(detector / "vad.edge")
    assert found.manifest.states == (StatePair(input="state", output="output_1"),)
    assert found.manifest.answer == "output_0"
    assert not found.has("model.torchscript.pt")
    golden = found.tensors("golden.safetensors")
    windows = np.load(detector / "windows.npz")["window"]
    place = next(i for i, window in enumerate(windows) if np.array_equal(window, golden["input.window"][1]))
    _, before = rolled(Detector().eval(), windows[:place])
    np.testing.assert_allclose(golden["input.state"][:, 1], before[:, 0], atol=1e-5)  # not zeros: what came before left
    assert np.abs(before).max() > 0.01


def test_a_bundle_that_remembers_is_run_as_a_stream(detector: Path, tmp_path: Path) -> None:
    windows = np.load(detector / "windows.npz")["window"][:20]
    scores, last = rolled(Detector().eval(), windows)
    np.savez(tmp_path / "in.npz", window=windows)
    np.savez(tmp_path / "rest.npz", window=windows[10:], state=rolled(Detector().eval(), windows[:10])[1])
    call = CliRunner().invoke
    bundle, out = str(detector / "vad.edge"), str(tmp_path / "out.npz")
    for given, wanted in (("in.npz", scores), ("rest.npz", scores[10:])):
        done = call(edge_bundle, ["run", bundle, str(tmp_path / given), "--output", out])
        assert done.exit_code == 0, done.output
        with np.load(out) as got:
            np.testing.assert_allclose(got["output_0"], wanted, atol=1e-4)
            np.testing.assert_allclose(got["output_1"], last, atol=1e-4)
    np.savez(tmp_path / "two.npz", window=windows, state=np.zeros((1, 2, 32), np.float32))
    done = call(edge_bundle, ["run", bundle, str(tmp_path / "two.npz"), "--output", out])
    assert isinstance(done.exception, ConfigError)
    assert "state: expected the state of one stream, got those of 2" in str(done.exception)
    said = call(edge_bundle, ["inspect", bundle]).output
    assert "state (1, batch, 32) float32, state: output_1 of the sample before, at first zeros" in said
    assert "output_0 (batch, 1) float32, the answer" in said


def test_a_file_whose_batch_is_fixed_at_one_remembers_too(tmp_path: Path) -> None:
    """As exporters write it by default: the graph takes one window at once."""
    names = {"input_names": ["window", "state"], "output_names": ["score", "stateN"]}
    example = (torch.zeros(1, 16), torch.zeros(1, 1, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(Detector().eval(), example, tmp_path / "vad.onnx", dynamo=False, opset_version=17, **names)
    windows = rng().standard_normal((30, 16), np.float32)
    np.savez(tmp_path / "windows.npz", window=windows)
    data = tmp_path / "windows.npz"
    report = convert(plan(tmp_path / "vad.onnx", calibration=str(data), quantize="none", trainable="none")).report
    assert any("state is a state" in note for note in report["notes"])
    out = tmp_path / "out.npz"
    done = CliRunner().invoke(edge_bundle, ["run", str(tmp_path / "vad.edge"), str(data), "--output", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    scores, last = rolled(Detector().eval(), windows)
    with np.load(out) as got:
        np.testing.assert_allclose(got["score"], scores, atol=1e-4)
        np.testing.assert_allclose(got["stateN"], last, atol=1e-4)


class World(nn.Module):
    """What comes of a state and an action; nobody remembers anything."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 4)

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> dict[str, torch.Tensor]:
        moved = torch.tanh(self.linear(torch.cat([state, action], 1)))
        return {"next_state": moved, "reward": moved.sum(1, keepdim=True)}


def test_what_each_sample_has_of_its_own_is_no_state(tmp_path: Path) -> None:
    model = World().eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    (tmp_path / "net.py").write_text("from tests.converter.load.test_states import World\n")
    alone, action = (rng(0).normal(size=(60, n)).astype(np.float32) for n in (4, 2))
    followed = alone.copy()
    for i in range(1, 60):
        with torch.no_grad():
            made = model(torch.from_numpy(followed[i - 1 : i]), torch.from_numpy(action[i - 1 : i]))
        followed[i] = made["next_state"].numpy()
    for name, state, n_states in (
        ("alone", alone, 0), ("followed", followed, 1), ("none", np.zeros_like(alone), 1), ("noise", alone / 100, 1)
    ):  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", state=state, action=action)
        given = {"arch": f"{tmp_path / 'net.py'}:World", "calibration": str(tmp_path / f"{name}.npz")}
        report = convert(plan(tmp_path / "w.pth", quantize="none", trainable="none", **given)).report
        assert len(Bundle.open(tmp_path / "w.edge").manifest.states) == n_states, name
        assert any("is no state" in note for note in report["notes"]) == (n_states == 0)
