"""Kinds of models that people have, trained here in a second: from a plain file to a running bundle, commands only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

import converter
from edge.cli.bundle import bundle as edge_bundle
from edge.contract.bundle import Bundle
from tests.converter.command import run

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1:UserWarning"),
]

RATE = 8000
Arrays = Mapping[str, npt.NDArray[Any]]


def convert(folder: Path, *arguments: object) -> dict[str, Any]:
    """Run edge-convert; the report."""
    done = run(folder, *arguments, "--json", folder / "report.json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def run_bundle(folder: Path, bundle: Path, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """``edge-bundle run``."""
    np.savez(folder / "in.npz", **inputs)
    line = ["run", bundle, folder / "in.npz", "--output", folder / "out.npz"]
    done = CliRunner().invoke(edge_bundle, [str(part) for part in line])
    assert done.exit_code == 0, done.output
    with np.load(folder / "out.npz") as stored:
        return dict(stored)


def original(model: Path, inputs: Arrays) -> list[npt.NDArray[Any]]:
    """The ONNX file on stock onnxruntime."""
    found: list[npt.NDArray[Any]] = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(
        None, dict(inputs)
    )
    return found


def trained(model: nn.Module, loss: Any, steps: int = 60) -> nn.Module:
    """A few steps of Adam on batches that `loss` draws."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, torch.Generator().manual_seed(step)).backward()
        optimizer.step()
    return model.eval()


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.min(np.sum(a * b, axis=-1) / lengths))


# --- a voice detector: audio, recurrent state, a constant rate -------------------------------------------------------


class VoiceDetector(nn.Module):
    """Frames of 128 samples; a GRU cell whose state goes in and out; a rate that chooses how the frame is read."""

    def __init__(self) -> None:
        super().__init__()
        self.bands = nn.Conv1d(1, 8, 32, stride=16)
        self.cell = nn.GRUCell(8, 16)
        self.score = nn.Linear(16, 1)

    def forward(self, audio: torch.Tensor, state: torch.Tensor, sr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = audio * torch.where(sr == RATE, 4.0, 1.0)
        heard = self.bands(scaled.unsqueeze(1)).abs().mean(dim=2)
        after = self.cell(heard, state[0])
        return torch.sigmoid(self.score(after)), after.unsqueeze(0)


def voice(generator: torch.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Harmonic tones in noise, and noise alone."""
    label = torch.randint(0, 2, (n, 1), generator=generator).float()
    pitch = 100 + 150 * torch.rand(n, 1, generator=generator)
    time = torch.arange(128) / RATE
    tone = sum(torch.sin(2 * torch.pi * pitch * k * time) / k for k in range(1, 5))
    noise = 0.05 * torch.randn(n, 128, generator=generator)
    return 0.3 * label * tone + noise, label


def test_voice_detector_carries_its_state_from_frame_to_frame(tmp_path: Path) -> None:
    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        x, y = voice(generator, 64)
        return functional.binary_cross_entropy(model(x, torch.zeros(1, 64, 16), torch.tensor(RATE))[0], y)

    torch.manual_seed(0)
    model = trained(VoiceDetector(), loss)
    file = tmp_path / "voice.onnx"
    torch.onnx.export(
        model,
        (torch.zeros(1, 128), torch.zeros(1, 1, 16), torch.tensor(RATE)),
        str(file),
        input_names=["audio", "state", "sr"],
        output_names=["speech", "stateN"],
        dynamic_axes={"audio": {0: "batch"}, "state": {1: "batch"}, "speech": {0: "batch"}, "stateN": {1: "batch"}},
        dynamo=False,
    )
    frames, _ = voice(torch.Generator().manual_seed(99), 120)
    states = np.random.default_rng(0).normal(0, 0.4, (120, 1, 16)).astype(np.float32)
    np.savez(tmp_path / "frames.npz", audio=frames.numpy(), state=states)
    report = convert(tmp_path, file, "--calibrate", tmp_path / "frames.npz", "--constant", f"sr={RATE}")
    assert [spec["name"] for spec in report["inputs"]] == ["audio", "state"]
    assert Bundle.open(tmp_path / "voice.edge").manifest.constants == {"sr": RATE}

    heard, label = voice(torch.Generator().manual_seed(5), 12)
    ours = theirs = np.zeros((1, 1, 16), np.float32)
    for frame in heard.numpy():
        expected, theirs = original(file, {"audio": frame[None], "state": theirs, "sr": np.array(RATE, np.int64)})
        found = run_bundle(tmp_path, tmp_path / "voice.edge", {"audio": frame[None], "state": ours})
        ours = found["stateN"]
        assert abs(found["speech"] - expected).max() < 0.05
    assert np.abs(ours - theirs).max() < 0.1
    assert len(set(label.ravel().tolist())) == 2


# --- a detector: boxes and scores, pictures of any multiple of 8 -----------------------------------------------------


class Detector(nn.Module):
    """A bright square: in each cell of 8 x 8 pixels a box in pixels, and scores of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.box = nn.Conv2d(16, 4, 1)
        self.kind = nn.Conv2d(16, 3, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.body(images)
        boxes = 32 * self.box(seen).flatten(2).transpose(1, 2)
        return boxes, torch.sigmoid(self.kind(seen).flatten(2).transpose(1, 2))


def squares(generator: torch.Generator, n: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures; what each cell holds (0: nothing); and its box."""
    pictures = 0.1 * torch.rand(n, 3, size, size, generator=generator)
    cells = size // 8
    kinds, boxes = torch.zeros(n, cells, cells, dtype=torch.long), torch.zeros(n, cells, cells, 4)
    for i in range(n):
        row, column, kind = (int(torch.randint(0, k, (), generator=generator)) for k in (cells, cells, 3))
        pictures[i, kind, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1.0
        kinds[i, row, column] = kind + 1
        boxes[i, row, column] = torch.tensor([8.0 * column, 8.0 * row, 8.0, 8.0])
    return pictures, kinds.flatten(1), boxes.flatten(1, 2)


def test_detector_keeps_boxes_and_scores_at_other_sizes(tmp_path: Path) -> None:
    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        x, kinds, boxes = squares(generator, 16)
        found, scores = model(x)
        wanted = functional.one_hot(kinds, 4)[..., 1:].float()
        there = (kinds > 0)[..., None]
        return functional.binary_cross_entropy(scores, wanted) + 1e-3 * ((found - boxes) ** 2 * there).mean()

    torch.manual_seed(0)
    model = trained(Detector(), loss, 120)
    file = tmp_path / "detector.onnx"
    axes = {0: "batch", 2: "height", 3: "width"}
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, 32, 32),),
        str(file),
        input_names=["images"],
        output_names=["boxes", "scores"],
        dynamic_axes={"images": axes, "boxes": {0: "batch", 1: "cells"}, "scores": {0: "batch", 1: "cells"}},
        dynamo=False,
    )
    samples, _, _ = squares(torch.Generator().manual_seed(99), 64)
    np.savez(tmp_path / "pictures.npz", samples.numpy())
    convert(tmp_path, file, "--calibrate", tmp_path / "pictures.npz")
    for size in (32, 48):
        pictures, _, _ = squares(torch.Generator().manual_seed(size), 8, size)
        boxes, scores = original(file, {"images": pictures.numpy()})
        found = run_bundle(tmp_path, tmp_path / "detector.edge", {"images": pictures.numpy()})
        sure = scores.max(axis=2) > 0.5
        assert 6 <= sure.sum() <= 12  # it has learned to see the squares
        assert np.abs(found["scores"] - scores).max() < 0.1
        assert np.abs(found["boxes"] - boxes)[sure].max() < 1.5  # pixels


# --- a sentence encoder: tokens of any number and their mask, as TorchScript -----------------------------------------


class SentenceEncoder(nn.Module):
    """Tokens to a direction: an embedding, one layer of attention that is masked, the mean of what counts."""

    def __init__(self, words: int = 50, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, 8)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        weight = self.query(x) @ self.key(x).transpose(1, 2) / 4.0
        weight = torch.softmax(weight.masked_fill((mask == 0).unsqueeze(1), -1e4), dim=2)
        x = x + weight @ self.value(x)
        counted = mask.unsqueeze(2).to(x.dtype)
        return functional.normalize(self.out((x * counted).sum(1) / counted.sum(1)), dim=1)


def sentences(generator: torch.Generator, n: int, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of one of two topics, padded."""
    topic = torch.randint(0, 2, (n, 1), generator=generator)
    tokens = 1 + 24 * topic + torch.randint(0, 24, (n, length), generator=generator)
    lengths = torch.randint(max(1, length // 3), length + 1, (n, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    return tokens * mask, mask


def test_sentence_encoder_ignores_what_its_mask_hides(tmp_path: Path) -> None:
    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        tokens, mask = sentences(generator, 32)
        found = model(tokens, mask)
        same = ((tokens[:, :1] > 24) == (tokens[:, :1] > 24).T).float()
        return functional.mse_loss(found @ found.T, 2 * same - 1)

    torch.manual_seed(0)
    model = trained(SentenceEncoder(), loss)
    file = tmp_path / "encoder.pt"
    torch.jit.save(torch.jit.trace(model, sentences(torch.Generator().manual_seed(1), 2)), file)
    tokens, mask = sentences(torch.Generator().manual_seed(99), 80)
    np.savez(tmp_path / "sentences.npz", tokens=tokens.numpy(), mask=mask.numpy())
    inputs = [f"--input={name}=batch,time@12:int64" for name in ("tokens", "mask")]
    convert(tmp_path, file, "--calibrate", tmp_path / "sentences.npz", *inputs)
    for length in (5, 12, 21):
        tokens, mask = sentences(torch.Generator().manual_seed(length), 9, length)
        with torch.no_grad():
            expected = model(tokens, mask).numpy()
        hidden = torch.where(mask == 0, 7, tokens)
        for given in (tokens, hidden):
            arrays = {"tokens": given.numpy(), "mask": mask.numpy()}
            (found,) = run_bundle(tmp_path, tmp_path / "encoder.edge", arrays).values()
            assert cosine(found, expected) > 0.97


# --- an OCR recogniser: one line at a time, of any width -------------------------------------------------------------


class Recogniser(nn.Module):
    """Four letters, as stripes; a class at every fourth column, and one for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.read = nn.LSTM(32, 12, batch_first=True, bidirectional=True)
        self.letter = nn.Linear(24, 5)

    def forward(self, line: torch.Tensor) -> torch.Tensor:
        seen = self.seen(line)
        steps = seen.flatten(1, 2).transpose(1, 2)
        return torch.softmax(self.letter(self.read(steps)[0]), dim=2)


def text(generator: torch.Generator, n: int, letters: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of 8 x (4 * letters); the letter of each place."""
    written = torch.randint(0, 5, (n, letters), generator=generator)
    glyphs = torch.zeros(5, 8, 4)
    for letter in range(1, 5):
        glyphs[letter, 2 * letter - 2 : 2 * letter] = 1.0
    lines = glyphs[written].permute(0, 2, 1, 3).reshape(n, 1, 8, 4 * letters)
    return lines + 0.05 * torch.randn(lines.shape, generator=generator), written


@pytest.mark.parametrize("batch", ["fixed", "free"])
def test_recogniser_reads_lines_of_any_width(tmp_path: Path, batch: str) -> None:
    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        x, y = text(generator, 32)
        return functional.nll_loss(torch.log(model(x)).flatten(0, 1), y.flatten())

    torch.manual_seed(0)
    model = trained(Recogniser(), loss)
    file = tmp_path / "recogniser.onnx"
    free = {} if batch == "fixed" else {0: "batch"}  # fixed at 1 is what an exporter does if nobody asks
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 8, 32),),
        str(file),
        input_names=["line"],
        output_names=["letters"],
        dynamic_axes={"line": {3: "width", **free}, "letters": {1: "steps", **free}},
        dynamo=False,
    )
    lines, _ = text(torch.Generator().manual_seed(99), 64)
    np.savez(tmp_path / "lines.npz", line=lines.numpy())
    convert(tmp_path, file, "--calibrate", tmp_path / "lines.npz")
    for letters in (5, 8, 20):
        lines, written = text(torch.Generator().manual_seed(letters), 1, letters)
        (expected,) = original(file, {"line": lines.numpy()})
        found = run_bundle(tmp_path, tmp_path / "recogniser.edge", {"line": lines.numpy()})["letters"]
        assert (expected.argmax(2) == written.numpy()).mean() > 0.9  # it has learned to read
        assert (found.argmax(2) == expected.argmax(2)).all()
        assert np.abs(found - expected).max() < 0.1


# --- a pitch estimator: a Lightning checkpoint with the network inside another module --------------------------------

PITCH = '''
import torch
from torch import nn


class Pitch(nn.Module):
    """Frames of 256 samples to 36 bins of pitch."""

    def __init__(self, bins: int = 36, width: int = 16):
        super().__init__()
        self.filters = nn.utils.parametrizations.weight_norm(nn.Conv1d(1, width, 64, stride=8))
        self.norm = nn.BatchNorm1d(width)
        self.bins = nn.Linear(width * 6, bins)

    def forward(self, frame):
        heard = torch.relu(self.norm(self.filters(frame.unsqueeze(1))))
        return torch.sigmoid(self.bins(nn.functional.avg_pool1d(heard, 4).flatten(1)))
'''


def tones(generator: torch.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tones of 36 pitches, a quarter of an octave to each twelve bins."""
    bins = torch.randint(0, 36, (n,), generator=generator)
    pitch = 120 * 2 ** (bins[:, None] / 12)
    phase = 6.28 * torch.rand(n, 1, generator=generator)
    return torch.sin(2 * torch.pi * pitch * torch.arange(256) / RATE + phase), bins


def test_pitch_estimator_comes_out_of_a_lightning_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "pitch.py").write_text(PITCH)
    names: dict[str, Any] = {}
    exec(PITCH, names)

    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        x, y = tones(generator, 64)
        return functional.binary_cross_entropy(model(x), functional.one_hot(y, 36).float())

    torch.manual_seed(0)
    model = trained(names["Pitch"](width=20), loss, 150)
    stored = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save(
        {
            "epoch": 3,
            "global_step": 150,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {**stored, "loss.weight": torch.ones(36), "ema.decay": torch.tensor(0.99)},
            "hyper_parameters": {"bins": 36, "width": 20, "learning_rate": 0.01, "data": {"rate": RATE}},
            "optimizer_states": [{"state": {}, "param_groups": []}],
            "callbacks": {},
            "lr_schedulers": [],
        },
        tmp_path / "last.ckpt",
    )
    frames, _ = tones(torch.Generator().manual_seed(99), 120)
    np.save(tmp_path / "tones.npy", frames.numpy())
    line = [tmp_path / "last.ckpt", "--arch", "pitch.py:Pitch", "--calibrate", tmp_path / "tones.npy"]
    convert(tmp_path, *line, "--allow-unexpected")
    frames, bins = tones(torch.Generator().manual_seed(5), 64)
    with torch.no_grad():
        expected = model(frames).numpy()
    (found,) = run_bundle(tmp_path, tmp_path / "last.edge", {"frame": frames.numpy()}).values()
    assert np.mean(np.abs(expected.argmax(1) - bins.numpy()) <= 1) > 0.8  # it has learned to hear
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.95
    assert np.mean(np.abs(found - expected)) < 0.02


def test_a_head_on_quantities_beside_an_output_of_classes_is_no_contradiction(tmp_path: Path) -> None:
    """Its class names would be another output's: a device refused such a bundle."""

    class Refiner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.boxes, self.faces = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = torch.relu(self.hidden(x))
            return self.boxes(hidden), functional.softmax(self.faces(hidden), dim=1)

    torch.manual_seed(0)
    model, x = Refiner().eval(), torch.randn(96, 6)
    converter.save_checkpoint(model, tmp_path / "refiner.pth", example_input=x[:1], calibration=(x, None))
    convert(tmp_path, tmp_path / "refiner.pth", "--output", tmp_path / "refiner.edge", "--quantize", "none")
    found = run_bundle(tmp_path, tmp_path / "refiner.edge", {"x": x[:3].numpy()})
    with torch.no_grad():
        for name, wanted in zip(found, model(x[:3]), strict=True):
            np.testing.assert_allclose(found[name], wanted.numpy(), atol=1e-5)
    manifest = Bundle.open(tmp_path / "refiner.edge").manifest
    assert manifest.head is None or len(manifest.class_names) in (0, manifest.output(manifest.head.output).shape[1])
