"""Every kind of file, from the file to a running bundle, whose outputs are those of the original model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.torch
import torch
from onnx import helper, numpy_helper
from torch import nn

import converter
from converter.plan import InputOption
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import cnn, convert, plan

NET = """\
from tests.converter.models import cnn
from torch import nn


class Net(nn.Sequential):
    def __init__(self, classes=4):
        super().__init__(*cnn(classes=classes))
"""


def exported(path: Path, *, free: bool) -> None:
    x = torch.randn(2 if free else 1, 1, 8, 8)
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    torch.export.save(torch.export.export(cnn(), (x,), dynamic_shapes=shapes), path)


def as_onnx(path: Path, opset: int, *, free: bool = True, dynamo: bool = False) -> None:
    torch.onnx.export(
        cnn(), (torch.randn(1, 1, 8, 8),), path, dynamo=dynamo, opset_version=opset, input_names=["image"],
        **({} if dynamo else {"dynamic_axes": {"image": {0: "n"}} if free else None}),
    )  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    return cnn().state_dict()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights().items()}


def lightning(path: Path) -> None:
    document = {
        "epoch": 3,
        "state_dict": prefixed("model."),
        "optimizer_states": [],
        "pytorch-lightning_version": "2.5",
    }
    torch.save(document | {"hyper_parameters": {"classes": 4, "learning_rate": 0.1}}, path)


# A name with "net" needs --arch; the others are whole models.
KINDS: dict[str, Callable[[Path], object]] = {
    "net zip.pth": lambda path: torch.save(weights(), path),
    "net legacy.pt": lambda path: torch.save(weights(), path, _use_new_zipfile_serialization=False),
    "net state_dict.pth": lambda path: torch.save({"state_dict": weights(), "epoch": 3}, path),
    "net model.pth": lambda path: torch.save({"model": prefixed("module."), "ema": None}, path),
    "net model_state.pth": lambda path: torch.save({"model_state": weights()}, path),
    "net model_state_dict.pth": lambda path: torch.save({"model_state_dict": prefixed("_orig_mod.")}, path),
    "net ema.pth": lambda path: torch.save({"ema": prefixed("module.model.")}, path),
    "net lightning.ckpt": lightning,
    "net weights.safetensors": lambda path: safetensors.torch.save_file(weights(), path),
    "traced.pt": lambda path: torch.jit.trace(cnn(), torch.zeros(2, 1, 8, 8)).save(str(path)),
    "scripted.pt": lambda path: torch.jit.script(cnn()).save(str(path)),
    "free.pt2": lambda path: exported(path, free=True),
    "fixed.pt2": lambda path: exported(path, free=False),
    "opset18.onnx": lambda path: as_onnx(path, 18),
    "opset13.onnx": lambda path: as_onnx(path, 13),
    "fixed.onnx": lambda path: as_onnx(path, 17, free=False),
    "newer.onnx": lambda path: as_onnx(path, 20, dynamo=True),
    "checkpoint.pth": lambda path: converter.save_checkpoint(
        cnn(), path, example_input=torch.zeros(1, 1, 8, 8), class_names=list("abcd")
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_a_bundle_with_the_models_outputs_and_a_head(tmp_path: Path, name: str) -> None:
    path = tmp_path / name.rpartition(" ")[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        KINDS[name](path)
    (tmp_path / "net.py").write_text(NET)
    arch = {"arch": f"{tmp_path / 'net.py'}:Net"} if name.startswith("net ") else {}
    report = convert(plan(path, quantize="none", **arch)).report
    bundle = Bundle.open(path.with_suffix(".edge"))
    assert bundle.manifest.inputs[0].shape == ("batch", 1, 8, 8)
    head = bundle.manifest.head
    assert head is not None
    assert sorted(parameter.shape for parameter in head.parameters) == [(4,), (4, 36)]
    assert len(report["trainable"]) == 2
    session = OnnxSession(bundle)
    x = np.random.default_rng(3).normal(size=(5, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = cnn()(torch.from_numpy(x)).numpy()
    found = session.run({session.manifest.inputs[0].name: x})[session.manifest.outputs[0].name]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_whole_module_is_run_when_it_is_trusted_and_its_class_is_given(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"model": cnn(), "epoch": 1}, path)
    with pytest.raises(ConversionError, match=r"torch\.nn\.modules.*--trust-pickle"):
        convert(plan(path))
    assert not path.with_suffix(".edge").exists()
    report = convert(plan(path, trust_pickle=True, quantize="none")).report
    assert report["source_kind"] == "pickled module"
    assert "its pickle was run" in report["notes"]


def test_weights_outside_the_onnx_file_are_read_from_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        as_onnx(path, 18)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    convert(plan(path, quantize="none"))
    (tmp_path / "m.data").unlink()
    with pytest.raises(ConversionError, match="not a valid ONNX model"):
        convert(plan(path, quantize="none"))


def test_a_file_with_operators_of_newer_sets_gives_a_bundle_that_can_be_trained_whole(tmp_path: Path) -> None:
    """As torch's newer exporter writes attention, Gelu and RMSNorm."""
    r = np.random.default_rng(1)
    weights = {"w": (4, 8), "scale": (8,), "v": (8, 3), "b": (3,)}
    nodes = [
        ("MatMul", ["x", "w"], "h", {}),
        ("RMSNormalization", ["h", "scale"], "n", {"axis": -1}),
        ("Attention", ["n", "n", "n"], "a", {"q_num_heads": 2, "kv_num_heads": 2}),
        ("Gelu", ["a"], "g", {}),
        ("ReduceMean", ["g", "axes"], "m", {"keepdims": 0}),
        ("Gemm", ["m", "v", "b"], "y", {}),
    ]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output], **attributes) for op, inputs, output, attributes in nodes],
        "newer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 5, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(r.normal(size=shape).astype(np.float32), name) for name, shape in weights.items()]
        + [numpy_helper.from_array(np.array([1]), "axes")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    report = convert(plan(path, quantize="none", trainable="*")).report
    assert sorted(report["trainable"]) == ["b", "scale", "v", "w"]
    x = r.normal(size=(7, 5, 4)).astype(np.float32)
    (expected,) = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    session = OnnxSession(Bundle.open(path.with_suffix(".edge")))
    np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


# --- shapes and structure --------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    """Tokens and numbers in, a dict of logits and a vector out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.gru = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(11, 4)

    def forward(self, tokens: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        x, _ = self.gru(self.words(tokens))
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        found = torch.cat([x.mean(dim=1), numbers], dim=1)
        return {"logits": self.head(found), "embedding": found}


class Recurrent(nn.Module):
    """Recurrent state in and out, as a device carries it from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 5, num_layers=2), nn.Linear(5, 3)

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        y, state = self.lstm(x.unsqueeze(0), (h, c))
        return self.head(y[-1]), state


class Branching(nn.Module):
    """Control flow on values, which neither tracing nor torch.export keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 2).any()):
            x = x.clamp(max=2)
        return self.a(x)


def zoo() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    conv = nn.Conv2d
    return {
        "conv1d": (
            nn.Sequential(
                nn.Conv1d(2, 6, 5, padding=2), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(84, 3)
            ),
            (2, 16),
        ),
        "depthwise": (
            nn.Sequential(
                conv(2, 8, 1),
                nn.ReLU6(),
                conv(8, 8, 3, groups=8),
                nn.BatchNorm2d(8),
                nn.Hardswish(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(8, 3),
            ),
            (2, 8, 8),
        ),
        "prelu and ceil": (
            nn.Sequential(
                conv(1, 4, 3),
                nn.PReLU(4),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.GroupNorm(2, 4),
                nn.GELU(),
                nn.Flatten(),
                nn.Linear(64, 3),
            ),
            (1, 9, 9),
        ),
        "average ceil": (
            nn.Sequential(conv(1, 4, 3), nn.AvgPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(36, 3)),
            (1, 8, 8),
        ),
        "encoder": (
            nn.Sequential(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), nn.Flatten(), nn.Linear(40, 3)
            ),
            (5, 8),
        ),
        "layernorm": (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3)), (6,)),
        "transposed": (
            nn.Sequential(
                conv(1, 4, 3, stride=2),
                nn.ConvTranspose2d(4, 2, 2, stride=2),
                nn.Sigmoid(),
                nn.Flatten(),
                nn.Linear(72, 3),
            ),
            (1, 8, 8),
        ),
    }


@pytest.mark.parametrize("quantize", ["none", "auto"])
@pytest.mark.parametrize("name", zoo())
def test_layers_of_all_kinds(tmp_path: Path, name: str, quantize: str) -> None:
    model, shape = zoo()[name]
    model.eval()
    x = torch.randn(120, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
    path = tmp_path / "m.pth"
    converter.save_checkpoint(
        model, path, example_input=x, class_names=list("abc"), calibration=(x, expected.argmax(dim=1))
    )
    row = convert(plan(path, quantize=quantize, max_drop=5.0)).report["candidates"][1]
    assert row["sqnr_db"] > 90
    found = OnnxSession(Bundle.open(path.with_suffix(".edge"))).run({"input": x.numpy()})["output"]
    agreement = (found.argmax(axis=1) == expected.argmax(dim=1).numpy()).mean()
    assert agreement == 1.0 if quantize == "none" else agreement >= 0.94


@pytest.mark.filterwarnings("ignore")
def test_several_inputs_and_named_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoInputs().eval()
    rng = np.random.default_rng(0)
    tokens, numbers = rng.integers(0, 20, (60, 7)), rng.normal(size=(60, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens), torch.from_numpy(numbers))
    np.savez(tmp_path / "data.npz", tokens=tokens, numbers=numbers, y=expected["logits"].argmax(dim=1).numpy())
    torch.save(model.state_dict(), tmp_path / "m.pth")
    (tmp_path / "net.py").write_text("from tests.converter.load.test_input_kinds import TwoInputs\n")
    inputs = (
        InputOption(name="tokens", shape=("batch", "time"), dtype="int64", sizes={"time": 7}),
        InputOption(name="numbers", shape=("batch", 3)),
    )
    source = plan(
        tmp_path / "m.pth", arch=f"{tmp_path / 'net.py'}:TwoInputs", inputs=inputs, trainable="head.*", max_drop=5.0,
        calibration=str(tmp_path / "data.npz"),
    )  # fmt: skip
    convert(source)
    session = OnnxSession(Bundle.open(tmp_path / "m.edge"))
    assert [spec.name for spec in session.manifest.outputs] == ["logits", "embedding"]
    assert session.manifest.head is not None
    found = session.run({"tokens": tokens[:5, :4], "numbers": numbers[:5]})  # a shorter text than all in the data
    with torch.no_grad():
        shorter = model(torch.from_numpy(tokens[:5, :4]), torch.from_numpy(numbers[:5]))
    for name, tensor in shorter.items():
        np.testing.assert_allclose(found[name], tensor.numpy(), atol=0.1)


def test_recurrent_state_is_carried_in_and_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Recurrent().eval()
    converter.save_checkpoint(
        model, tmp_path / "m.pth",
        example_input={"x": torch.zeros(1, 6), "h": torch.zeros(2, 1, 5), "c": torch.zeros(2, 1, 5)},
        axes={"h": (2, "batch", 5), "c": (2, "batch", 5)},
    )  # fmt: skip
    convert(plan(tmp_path / "m.pth", quantize="none", trainable="none"))
    session = OnnxSession(Bundle.open(tmp_path / "m.edge"))
    x = torch.randn(4, 3, 6)
    h = c = torch.zeros(2, 3, 5)
    state = {"h": h.numpy(), "c": c.numpy()}
    names = [spec.name for spec in session.manifest.outputs]
    for step in x:
        with torch.no_grad():
            expected, (h, c) = model(step, h, c)
        found = session.run({"x": step.numpy(), **state})
        np.testing.assert_allclose(found[names[0]], expected.numpy(), atol=1e-5)
        state = {"h": found[names[1]], "c": found[names[2]]}
    np.testing.assert_allclose(state["c"], c.numpy(), atol=1e-5)


class Remembers(nn.Module):
    """Adds up what it was ever given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.total = nn.Linear(4, 3), torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        self.total = self.total + y.sum(0)
        return y + self.total


def test_torchscript_that_keeps_state_in_itself_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Remembers()).save(str(path))
    with pytest.raises(ConversionError, match=r"changes state that it keeps in itself \(total\)"):
        convert(plan(path, inputs=(InputOption(name="", shape=("batch", 4)),)))


def test_a_branch_on_values_that_no_trace_keeps_is_exported_from_its_source(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    x = torch.randn(64, 6) * 2
    np.savez(tmp_path / "data.npz", x=x.numpy())
    torch.save(model.state_dict(), tmp_path / "m.pth")
    (tmp_path / "net.py").write_text("from tests.converter.load.test_input_kinds import Branching\n")
    source = plan(
        tmp_path / "m.pth", arch=f"{tmp_path / 'net.py'}:Branching", calibration=str(tmp_path / "data.npz"),
        quantize="none", trainable="none",
    )  # fmt: skip
    report = convert(source).report
    assert report["exporter"] == "scripting"
    assert any("keeps branches and sizes" in note for note in report["notes"])
    session = OnnxSession(Bundle.open(tmp_path / "m.edge"))
    for value in (-1.0, 5.0):
        sample = torch.full((1, 6), value)
        with torch.no_grad():
            expected = model(sample).numpy()
        np.testing.assert_allclose(session.run({"input": sample.numpy()})["output"], expected, rtol=1e-5)


# --- what the layers and the data determine --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2)), ("batch", 9)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2)), ("batch", 3, 28, 28)),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 98, 2)), ("batch", 2, 100)),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 35 * 35, 2)), ("batch", 1, 37, 37)),
    ],
)
def test_the_input_follows_from_the_layers_where_they_determine_it(
    tmp_path: Path, model: nn.Module, shape: tuple[object, ...]
) -> None:
    torch.save(model, tmp_path / "m.pth")
    convert(plan(tmp_path / "m.pth", trust_pickle=True, quantize="none"))
    assert Bundle.open(tmp_path / "m.edge").manifest.inputs[0].shape == shape


def test_the_input_follows_from_the_data_where_the_layers_do_not_determine_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    torch.save(model, tmp_path / "m.pth")
    with pytest.raises(ConversionError, match=r"Conv2d.*--input-shape.*--calibrate"):
        convert(plan(tmp_path / "m.pth", trust_pickle=True))
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(40, 3, 20, 24)))
    report = convert(
        plan(tmp_path / "m.pth", trust_pickle=True, calibration=str(tmp_path / "data.npz"), max_drop=50)
    ).report
    assert report["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 3, 20, 24]}]
    assert any("as in --calibrate" in note for note in report["notes"])


def test_several_inputs_are_asked_for_by_their_names(tmp_path: Path) -> None:
    torch.save(TwoInputs(), tmp_path / "m.pth")
    with pytest.raises(ConversionError, match=r"2 inputs.*--input tokens=batch,SIZE --input numbers=batch,SIZE"):
        convert(plan(tmp_path / "m.pth", trust_pickle=True))
