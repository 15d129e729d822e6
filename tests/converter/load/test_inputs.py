"""Real samples before made-up ones, sizes before invented ones, constants: from plain files to running bundles."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from converter.arguments import one_input
from converter.export.exporters import Exported, by_tracing
from converter.plan import Constant
from converter.stages import exporting
from edge.agent.model.serving import Serving
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.tensorspec import AxisRange
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import convert, plan

FILE = "from tests.converter.load.test_inputs import *\n"
Arrays = dict[str, np.ndarray[Any, Any]]


def converted(
    folder: Path, model: nn.Module, data: Arrays | None, **options: Any
) -> tuple[OnnxSession, dict[str, Any]]:
    """A bundle from a state_dict and samples, and its report."""
    name = type(model).__name__
    torch.save(model.state_dict(), folder / f"{name}.pth")
    (folder / "net.py").write_text(FILE)
    given: dict[str, Any] = {"quantize": "none", "trainable": "none", "torchscript": False, **options}
    if data is not None:
        np.savez(folder / f"{name}.npz", **data)  # type: ignore[arg-type]
        given.setdefault("calibration", str(folder / f"{name}.npz"))
    given["inputs"] = tuple(map(one_input, given.get("inputs", ())))
    report = convert(plan(folder / f"{name}.pth", arch=f"{folder / 'net.py'}:{name}", **given)).report
    return OnnxSession(Bundle.open(folder / f"{name}.edge")), report


def check(session: OnnxSession, model: nn.Module, data: Arrays, fixed: dict[str, Any] | None = None) -> None:
    """The bundle gives what the model gives."""
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(array) for name, array in data.items()}, **(fixed or {}))
    found = session.run(data)
    for array, tensor in zip(found.values(), wanted if isinstance(wanted, tuple) else [wanted], strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-3, atol=1e-4)


class Recogniser(nn.Module):
    """OCR: lines of any width in whole steps of 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(
            nn.Conv2d(1, 8, 3, (2, 1), 1), nn.ReLU(), nn.Conv2d(8, 8, 3, (2, 1), 1), nn.ReLU(), nn.MaxPool2d((8, 1))
        )
        self.rnn, self.classes = nn.GRU(8, 8, bidirectional=True, batch_first=True), nn.Linear(16, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv(image.unflatten(-1, (-1, 4)).mean(-1))
        return self.classes(self.rnn(x.squeeze(2).transpose(1, 2))[0]).log_softmax(-1)


class Detector(nn.Module):
    """Boxes and scores of squares of 32 pixels; smaller images than 64 it does not take."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.ModuleList(nn.Conv2d(1 if i == 0 else 4, 4, 3, 2, 1) for i in range(5))
        self.boxes, self.scores = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = []
        for layer in self.down:
            x = layer(x).relu()
            kept.append(x)
        x = kept[-2] + nn.functional.interpolate(kept[-1], scale_factor=2)
        x = nn.functional.conv2d(x, torch.ones(4, 1, 3, 3), groups=4)
        return self.boxes(x).flatten(2), self.scores(x).flatten(2).sigmoid()


def test_sizes_come_from_the_data_and_multiples_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = rng.random((6, 1, 32, 100), np.float32)
    model = Recogniser().eval()
    session, report = converted(tmp_path, model, {"image": lines}, inputs=["image=batch,1,32,width"])
    assert session.manifest.axes == {"width": AxisRange(least=4, step=4)}
    assert session.manifest.outputs[0].shape == ("batch", "output_1", 7)
    for width in (4, 48, 324):
        check(session, model, {"image": rng.random((2, 1, 32, width), np.float32)})
    with pytest.raises(ConfigError, match="the axis width has 50 entries, the model takes multiples of 4"):
        session.run({"image": rng.random((1, 1, 32, 50), np.float32)})
    assert report["axes"]["width"]["step"] == 4
    assert not [note for note in report["notes"] if "decides by values" in note]

    detector = Detector().eval()
    images = {"x": rng.random((3, 1, 96, 128), np.float32)}
    for data in (images, None):  # from the data, else what the model takes of the sizes that are usual
        session, report = converted(tmp_path, detector, data, inputs=["x=batch,1,height,width"])
        assert session.manifest.axes == dict.fromkeys(("height", "width"), AxisRange(least=64, step=32))
        assert {96, 128} <= set(report["axes"]["height"]["tried"])
        check(session, detector, {"x": rng.random((2, 1, 160, 64), np.float32)})


class Encoder(nn.Module):
    """A sentence encoder: tokens, of which 0 stands for nothing, and a mask; the mask may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm = nn.Embedding(50, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: torch.Tensor, scale: float = 1.0, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is None:
            mask = tokens != 0
        x = self.words(tokens)
        x = self.norm(x + self.attention(x, x, x, key_padding_mask=mask == 0, need_weights=False)[0])
        return scale * (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Lengths(nn.Module):
    """Packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        steps, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=10)
        return self.out(steps.sum(1) / lengths[:, None])


class Missing(nn.Module):
    """Takes what is not a number for a value that is missing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.where(torch.isnan(x), torch.full_like(x, -1.0), x))


def test_samples_with_missing_values_are_those_of_a_model_that_takes_them(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    x[::3, 1] = np.nan
    session, _ = converted(tmp_path, model := Missing().eval(), {"x": x})
    (found,) = session.run({"input": x[:9]}).values()
    np.testing.assert_allclose(found, model(torch.from_numpy(x[:9])).detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(Serving(Bundle.open(tmp_path / "Missing.edge")).many(x[:9])["input"], x[:9])
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "m.pth")
    (tmp_path / "plain.py").write_text("from torch import nn\n\n\ndef build(): return nn.Linear(4, 3)\n")
    with pytest.raises(ConversionError, match=r"not finite on .* has some, too; remove those samples"):
        convert(
            plan(tmp_path / "m.pth", arch=f"{tmp_path / 'plain.py'}:build", calibration=str(tmp_path / "Missing.npz"))
        )
    for row in (0, 1):  # one of them is calibrated on, the other measured on
        x = np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)
        x[row, 2] = np.nan
        np.savez(tmp_path / "one.npz", x=x)
        with pytest.raises(ConversionError, match="remove those samples"):
            convert(
                plan(tmp_path / "m.pth", arch=f"{tmp_path / 'plain.py'}:build", calibration=str(tmp_path / "one.npz"))
            )


class LastState(nn.Module):
    """A classifier of packed sequences that uses nothing but the state in the end."""

    kind, layers, both, batch_first = "GRU", 2, True, True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = getattr(nn, self.kind)(
            4, 6, num_layers=self.layers, bidirectional=self.both, batch_first=self.batch_first
        )
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=self.batch_first, enforce_sorted=False)
        state = self.rnn(packed)[1]
        return self.out((state[0] if isinstance(state, tuple) else state)[-1])


class LastOfLSTM(LastState):
    kind, layers, both, batch_first = "LSTM", 1, False, False


class LastOfRNN(LastState):
    kind, layers, both, batch_first = "RNN", 1, True, True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [LastState, LastOfLSTM, LastOfRNN])
def test_of_packed_sequences_the_last_state_alone_may_be_used(tmp_path: Path, model: type[LastState]) -> None:
    forward = getattr(nn, model.kind).forward
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((20, 9, 4)).astype(np.float32), "lengths": rng.integers(1, 10, 20)}
    made = model().eval()
    session, _ = converted(tmp_path, made, data)
    others = {"x": rng.standard_normal((7, 9, 4)).astype(np.float32), "lengths": rng.integers(1, 10, 7)}
    check(session, made, others)
    assert getattr(nn, model.kind).forward is forward  # torch is left as it was


class Token(nn.Module):
    """A transformer with a token of its own in front, as often as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.out = nn.Linear(8, 3)

    def count(self, x: torch.Tensor) -> int:
        return len(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = self.body(torch.cat([self.token.expand(self.count(x), -1, -1), x], 1))
        return self.out(steps[:, 0])  # type: ignore[no-any-return]


class NumberOfTokens(Token):
    def count(self, x: torch.Tensor) -> int:
        return int(x.shape[0])


@pytest.mark.filterwarnings("ignore")
def test_a_token_is_there_for_each_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"x": np.random.default_rng(0).standard_normal((40, 5, 8)).astype(np.float32)}
    session, report = converted(tmp_path, Token().eval(), data)
    with torch.no_grad():
        wanted = Token().eval()(torch.from_numpy(data["x"]))
    np.testing.assert_allclose(session.run({"input": data["x"]})["output"], wanted.numpy(), atol=1e-4)
    assert report["exporter"] == "tracing"
    monkeypatch.setattr(exporting, "exporters", lambda _: (by_tracing,))  # the others take five seconds for the same
    with pytest.raises(
        ConversionError, match=r"^every graph is right for as many samples .* Compute with x.shape\[0\]"
    ):
        converted(tmp_path, NumberOfTokens().eval(), data)


class Inverse(nn.Module):
    """Of a matrix, which ONNX has no operator for; or its spectrum, which a bundle has no type for."""

    spectrum = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.linear(x)
        return torch.fft.fft(found) if self.spectrum else torch.linalg.inv(found.view(-1, 3, 3))


class Spectrum(Inverse):
    spectrum = True


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_written_is_told_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"x": np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)}

    def second(_source: object, _outputs: object) -> Exported:  # torch.export's words; it takes six seconds to say them
        raise ConversionError(
            "torch.export could not take the model: Error when translating node %linalg_inv_ex : [num_users=2] = "
            "call_function[target=torch.ops.aten.linalg_inv_ex.default](args = (%view,), kwargs = {})."
        )

    monkeypatch.setattr(exporting, "exporters", lambda _: (by_tracing, second))
    with pytest.raises(
        ConversionError, match=r"^torch's exporters cannot write linalg_inv and linalg_inv_ex in ONNX: "
    ):
        converted(tmp_path, Inverse().eval(), data)
    with pytest.raises(
        ConversionError, match=r"^the model returns complex numbers as output: return torch.view_as_real"
    ):
        converted(tmp_path, Spectrum().eval(), data)


class Brightened(nn.Module):
    """Takes pixels as floats only, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x: torch.Tensor, gain: float) -> torch.Tensor:
        return self.conv(x * gain).amax((2, 3))


def test_bytes_are_floats_beside_a_constant_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 6, 6), np.uint8)
    model = Brightened().eval()
    session, _ = converted(tmp_path, model, {"x": pixels}, constants={"gain": Constant(value=2.0)})
    found = session.run({"input": pixels.astype(np.float32)})["output"]
    wanted = model(torch.from_numpy(pixels).float(), 2.0).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_several_inputs_are_those_of_the_data_that_forward_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, (20, 9))
    tokens[:, 6:] = 0
    model = Encoder().eval()
    data = {"tokens": tokens, "mask": (tokens != 0).astype(np.int64)}
    session, report = converted(tmp_path, model, data)
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.manifest.inputs] == [
        ("tokens", "int64", ("batch", 9)),
        ("mask", "int64", ("batch", 9)),
    ]
    check(session, model, data)
    assert any("as in --calibrate" in note for note in report["notes"])
    free = ["mask=batch,time:int64", "tokens=batch,time:int64"]  # by name, in any order
    session, _ = converted(tmp_path, model, data, inputs=free, constants={"scale": Constant(value=2.0)})
    check(session, model, {name: array[:, :4] for name, array in data.items()}, {"scale": 2.0})

    with pytest.raises(ConversionError, match=r"(tokens|mask) as int64.*--calibrate.*--example"):
        converted(tmp_path, model, None, inputs=free)
    one = {name: array[:1] for name, array in data.items()}
    np.savez(tmp_path / "one.npz", **one)
    session, report = converted(tmp_path, model, None, inputs=free, example=str(tmp_path / "one.npz"))
    check(session, model, data)
    assert report["data"] == "256 random inputs"

    packed = Lengths().eval()
    sequences = {"x": rng.random((12, 10, 4), np.float32), "lengths": rng.integers(2, 11, 12)}
    sequences["lengths"][0] = 10
    session, _ = converted(tmp_path, packed, sequences, inputs=["x=batch,10,4", "lengths=batch:int64"])
    check(session, packed, sequences)
    check(session, packed, {"x": sequences["x"][:5], "lengths": np.array([7, 3, 2, 9, 1])})


class Amplified(nn.Module):
    """One input, and a number that is always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, gain: float) -> torch.Tensor:
        return self.out(x) * gain


class Voice(nn.Module):
    """A voice detector: two rates, a state that goes in and out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.wide = nn.Linear(32, 6), nn.Linear(32, 6)
        self.cell, self.out = nn.Linear(12, 6), nn.Linear(6, 1)

    def forward(self, audio: torch.Tensor, sr: int, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if sr not in (8000, 16000):
            raise ValueError("expected a rate of 8000 or 16000")
        x = self.wide(audio) if sr == 16000 else self.narrow(audio)
        state = self.cell(torch.cat([x, state], 1)).tanh()
        return self.out(state).sigmoid(), state


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, sr: torch.Tensor) -> torch.Tensor:
        return self.out(x) * (sr / 16000) + (sr > 8000)


def test_constants_become_part_of_the_graph_and_scalars_are_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = Voice().eval()
    inputs = ["audio=batch,32", "state=batch,6"]
    data = {"audio": rng.random((7, 32), np.float32), "state": rng.random((7, 6), np.float32)}
    for rate in (8000, 16000):
        session, _ = converted(tmp_path, model, None, inputs=inputs, constants={"sr": Constant(value=rate)})
        assert [spec.name for spec in session.manifest.inputs] == ["audio", "state"]
        assert session.manifest.constants == {"sr": rate}  # for people, who must know what the bundle takes for granted
        check(session, model, data, {"sr": rate})
    with pytest.raises(ConversionError, match="expected a rate of 8000 or 16000"):
        converted(tmp_path, model, None, inputs=inputs, constants={"sr": Constant(value=11025)})
    with pytest.raises(ConfigError, match=r"--constant rate: forward takes audio, sr, state"):
        converted(tmp_path, model, None, inputs=inputs, constants={"rate": Constant(value=8000)})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(str(tmp_path / "voice.pt"))
    options: dict[str, Any] = {"quantize": "none", "trainable": "none", "inputs": tuple(map(one_input, inputs))}
    convert(plan(tmp_path / "voice.pt", constants={"sr": Constant(value=8000)}, **options))
    check(OnnxSession(Bundle.open(tmp_path / "voice.edge")), model, data, {"sr": 8000})
    np.savez(tmp_path / "voice.npz", **data, sr=np.array(8000))  # data may hold it all the same
    options = {"quantize": "none", "trainable": "none", "calibration": str(tmp_path / "voice.npz")}
    convert(plan(tmp_path / "voice.pt", constants={"sr": Constant(value=8000)}, **options))
    check(OnnxSession(Bundle.open(tmp_path / "voice.edge")), model, data, {"sr": 8000})
    np.savez(tmp_path / "x.npz", x=rng.random((40, 6), np.float32), gain=np.array(2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Amplified()).save(str(tmp_path / "amplified.pt"))
    options["calibration"] = str(tmp_path / "x.npz")
    report = convert(plan(tmp_path / "amplified.pt", constants={"gain": Constant(value=2.0)}, **options)).report
    assert report["data"] == "20 samples of x.npz, held out of 40"

    scaled = Scaled().eval()
    rates = {"x": rng.random((9, 5), np.float32), "sr": np.array(16000)}
    session, _ = converted(tmp_path, scaled, rates, inputs=["x=batch,5", "sr=:int64"])
    assert session.manifest.inputs[1].shape == ()
    check(session, scaled, {**rates, "sr": np.array(8000)})
    eight = {"sr": Constant(value=8000, dtype="int64")}
    session, _ = converted(tmp_path, scaled, {"x": rates["x"]}, inputs=["x=batch,5"], constants=eight)
    check(session, scaled, {"x": rates["x"]}, {"sr": torch.tensor(8000)})


def onnx_file(path: Path, axes: list[Any]) -> None:
    """``y = reshape(x, to 4 columns) * rate``: the product of the last two axes must be a multiple of 4."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Shape", ["x"], ["batch"], end=1),
        helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Cast", ["rate"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["r", "f"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, axes), value("rate", TensorProto.INT64, [])],
        [value("y", TensorProto.FLOAT, None)], [helper.make_tensor("rest", TensorProto.INT64, [2], [-1, 20])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def test_inputs_of_files_are_named_fixed_and_bound_by_the_user(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx_file(path, ["?", "?", "?"])
    constants = {"rate": Constant(value=3)}
    options: dict[str, Any] = {"quantize": "none", "trainable": "none", "constants": constants}
    x = np.random.default_rng(0).random((3, 10, 8)).astype(np.float32)
    for axes, manifest in (
        ("batch,5,columns", ("batch", 5, "columns")),
        ("batch,rows@10,8", ("batch", "rows", 8)),
        ("batch,rows@10,columns@8", ("batch", "rows", "columns")),
    ):
        convert(plan(path, inputs=(one_input(f"x={axes}"),), **options))
        session = OnnxSession(Bundle.open(path.with_suffix(".edge")))
        assert session.manifest.inputs[0].shape == manifest
        given = x[:, : 5 if 5 in manifest else 10]
        np.testing.assert_allclose(session.run({"x": given})["y"], given.reshape(3, -1, 20) * 3, rtol=1e-6)
    assert set(session.manifest.axes) <= {"rows", "columns"}
    for axes, words in (("batch,5", "takes x"), ("batch,5,6:int64", "takes x"), ("batch,5,6", "does not run")):
        with pytest.raises((ConfigError, ConversionError), match=words):
            convert(plan(path, inputs=(one_input(f"x={axes}"),), **options))
    with pytest.raises(ConfigError, match="use these names"):
        convert(plan(path, inputs=(one_input("z=batch,5,4"),), **options))
    with pytest.raises(ConfigError, match=r"--constant rat: the file has the inputs x, rate; did you mean 'rate'"):
        convert(plan(path, **{**options, "constants": {"rat": Constant(value=3)}}))


class Hann(nn.Module):
    """A window that numpy makes, which no exporter follows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Conv1d(2, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x * torch.from_numpy(np.hanning(x.shape[-1] + 2)[1:-1].astype(np.float32))).mean(2)


@pytest.mark.filterwarnings("ignore")
def test_an_axis_of_which_every_exporter_writes_the_size_down_is_fixed_or_refused(tmp_path: Path) -> None:
    model = Hann().eval()
    x = np.random.default_rng(0).random((8, 2, 30), np.float32)
    session, report = converted(tmp_path, model, {"x": x}, inputs=["x=batch,2,time"])
    assert session.manifest.inputs[0].shape == ("batch", 2, 30)
    assert any("the axis time is fixed at 30: the graph exported by" in note for note in report["notes"])
    check(session, model, {"x": x})
    (tmp_path / "Hann.edge").unlink()
    with pytest.raises(ConversionError, match=r"kept time free.*--input x=batch,2,SIZE"):
        converted(tmp_path, model, None, inputs=["x=batch,2,time"])
    assert not (tmp_path / "Hann.edge").exists()


class Wrapping(nn.Module):
    """Bytes wrap around."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear((x + 200).float() / 255)
        return out


class Pixels(Wrapping):
    """Bytes and floats are the same to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x.float() / 255)
        return out


class Positioned(nn.Module):
    """Tokens, and a parameter of its own before the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(12, 8))
        self.embedding, self.linear = nn.Embedding(30, 8), nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear((self.embedding(tokens) + self.places).mean(1))
        return out


class Clock(nn.Module):
    """Seconds of a day, and two features made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        phase = t * (2 * torch.pi / 86_400)
        out: torch.Tensor = self.linear(torch.cat([torch.sin(phase), torch.cos(phase)], 1))
        return out


class Moments(nn.Module):
    """Seconds since 1970, of which single precision keeps two minutes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        phase = t.double() * (2 * torch.pi / 86_400)
        out: torch.Tensor = self.linear(torch.cat([torch.sin(phase), torch.cos(phase)], 1).float())
        return out


class Minutes(nn.Module):
    """Minutes since any time, of which the one of the hour counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 3)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        phase = (t % 60).float() * (2 * torch.pi / 60)
        out: torch.Tensor = self.linear(torch.cat([torch.sin(phase), torch.cos(phase)], 1))
        return out


def test_whole_numbers_stay_whole_where_others_than_the_samples_would_be_taken_otherwise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for model, dark, all_of_them in (
        (Wrapping(), rng.integers(0, 3, (32, 6), np.uint8), rng.integers(0, 256, (32, 6), np.uint8)),
        (Minutes(), rng.integers(0, 9_000, (32, 1)), rng.integers(1 << 30, 1 << 31, (32, 1))),
    ):
        session, report = converted(tmp_path, model.eval(), {"x": dark})
        (spec,) = session.manifest.inputs
        assert spec.dtype == str(dark.dtype)
        with torch.no_grad():
            wanted = model(torch.from_numpy(all_of_them)).numpy()
        (found,) = session.run({spec.name: all_of_them}).values()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    _, report = converted(tmp_path, Pixels().eval(), {"x": dark.astype(np.uint8).repeat(6, 1)})
    assert any("where it is uint8, with which the model computes the same" in note for note in report["notes"])


def test_a_single_input_is_as_the_samples_are_whatever_it_is_called(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 6)).astype(np.uint8)
    moments = 1.7e9 + rng.uniform(0, 86_400, (32, 1))
    for model, name, samples, dtype in (
        (Wrapping(), "x", pixels, "uint8"),
        (Moments(), "t", moments, "float64"),
        (Pixels(), "x", pixels, "float32"),
        (Positioned(), "tokens", rng.integers(0, 30, (32, 12)), "int64"),
        (Clock(), "t", rng.uniform(0, 86_400, (32, 1)).astype(np.float32), "float32"),
    ):
        session, _ = converted(tmp_path, model.eval(), {name: samples})
        (spec,) = session.manifest.inputs
        assert (spec.dtype, spec.shape[1:]) == (dtype, samples.shape[1:]), type(model).__name__
        with torch.no_grad():
            wanted = model(torch.from_numpy(samples)).numpy()
        (found,) = session.run({spec.name: samples.astype(dtype)}).values()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    session, _ = converted(tmp_path, Wrapping(), {"x": pixels}, inputs=("x=batch,6",))
    assert session.manifest.inputs[0].dtype == "uint8"  # of which only the shape was stated


class Cropped(nn.Module):
    """Takes a part of its input, whose size Python cuts off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(2, 4, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)[:, :, : int(x.shape[2] * 0.75)]
        return y.narrow(2, 0, int(y.shape[2] / 3) + 1).mean(2)


class Growing(nn.Module):
    """Its table of positions is made larger when a longer input comes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.table: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None or len(self.table) < x.shape[1]:
            self.table = torch.sin(torch.arange(x.shape[1]).float())[:, None]
        out: torch.Tensor = self.linear((x * self.table[: x.shape[1]]).mean(1))
        return out


@pytest.mark.filterwarnings("ignore")
def test_a_table_that_grows_ends_in_the_bundle_where_it_was_seen_to_hold(tmp_path: Path) -> None:
    session, report = converted(tmp_path, Growing().eval(), None, inputs=["x=batch,time@20,4"])
    most = report["axes"]["time"]["tried"][-1]
    rng = np.random.default_rng(0)
    check(session, Growing().eval(), {"x": rng.standard_normal((3, most, 4)).astype(np.float32)})
    assert session.manifest.axes["time"].most == most
    assert any("refuse sizes beyond" in note for note in report["notes"])


@pytest.mark.filterwarnings("ignore")
def test_sizes_that_python_cuts_off_stay_free(tmp_path: Path) -> None:
    model = Cropped().eval()
    session, report = converted(tmp_path, model, None, inputs=["x=batch,2,time@40"])
    assert report["axes"]["time"]["tried"][-1] > 100
    rng = np.random.default_rng(0)
    for size in (7, 40, 333):
        check(session, model, {"x": rng.standard_normal((3, 2, size)).astype(np.float32)})


class WithLoss(nn.Module):
    """Tells its loss, too, when it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.linear = nn.Embedding(30, 8), nn.Linear(8, 3)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        weight = torch.ones_like(ids).float() if mask is None else mask.float()
        logits = self.linear((self.embedding(ids) * weight[:, :, None]).sum(1))
        found = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return found | {"logits": logits}


def test_labels_that_a_model_may_be_given_for_its_loss_are_labels(tmp_path: Path) -> None:
    model, rng = WithLoss().eval(), np.random.default_rng(0)
    data = {"ids": rng.integers(0, 30, (80, 6)), "mask": rng.integers(0, 2, (80, 6))}
    data["labels"] = model(*map(torch.from_numpy, data.values()))["logits"].argmax(1).numpy()
    session, report = converted(tmp_path, model, data)
    assert [spec.name for spec in session.manifest.inputs] == ["ids", "mask"]
    assert report["judged"][0]["because"] == "the labels are class numbers"
