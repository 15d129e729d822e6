"""The whole conversion in one process: what is quantized, what is kept, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from torch import nn

import converter
from converter.arguments import one_input
from converter.head.fitting import correct_for_quantization, training_statistics
from converter.plan import InputOption
from converter.quantization.layers import running_in_int8
from converter.report.describe import lasting
from converter.report.values import notes
from edge.contract import manifest as m
from edge.contract.bundle import Bundle, members_of, write_bundle
from edge.contract.errors import BundleError, ConfigError, ConversionError
from edge.contract.manifest import LinearLayer
from edge.contract.profile import load_profile
from edge.contract.recipe import TrainingRecipe
from edge.inference.onnx_session import EXACT, OnnxSession
from tests.converter.models import cnn, convert, labelled, mlp, one_layer, plan, rng, save, snapshot, temporary_folders

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(),
            nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 4),
        )
"""


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `cnn()` made with labelled calibration data."""
    source = save(cnn(), tmp_path_factory.mktemp("calibrated") / "cnn.pth", (1, 8, 8), calibrated=200)
    convert(plan(source, max_drop=10.0, quantize="int8", torchscript=True))
    return source.with_suffix(".edge")


def candidates(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report["candidates"]}


def chosen(report: dict[str, Any]) -> dict[str, Any]:
    return candidates(report)[report["chosen"]]


def shaped(*shape: int) -> dict[str, Any]:
    return {"inputs": (InputOption(name="", shape=("batch", *shape)),)}


def logits(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    assert bundle.manifest.head is not None
    return OnnxSession(bundle).run({bundle.manifest.inputs[0].name: x})[bundle.manifest.head.output]


def features(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    return OnnxSession(bundle).predict({bundle.manifest.inputs[0].name: x}, bundle.head_parameters())[0]


def test_auto_measures_every_candidate_and_says_why_one_won(tmp_path: Path) -> None:
    source = save(cnn(), tmp_path / "cnn.pth", (1, 8, 8), calibrated=300)
    report = convert(plan(source, max_drop=10.0)).report
    rows = candidates(report)
    assert [row["status"] for row in rows.values()].count("chosen") == 1
    assert {"float", "fp16"} < set(rows)
    assert any(name.startswith("int8 static, ") for name in rows)
    assert "int8 dynamic" not in rows  # never for convolutions
    for row in rows.values():
        assert row["why"]
        assert row["latency_ms"] > 0 or row["status"] == "failed"
    fastest = min(row["latency_ms"] for row in rows.values() if row["status"] in ("chosen", "slower", "not chosen"))
    assert chosen(report)["latency_ms"] <= 1.03 * fastest
    assert all(row["latency_ms"] > chosen(report)["latency_ms"] for row in rows.values() if row["status"] == "slower")
    assert report["reason"]
    assert {row["layer"] for row in report["sensitivity"]}
    assert report["robustness"]


def test_a_linear_network_without_data_is_quantized_dynamically(tmp_path: Path) -> None:
    source = save(mlp(), tmp_path / "mlp.pth", (12,))
    report = convert(plan(source, quantize="int8")).report
    row = chosen(report)
    assert row["scheme"] == "dynamic"
    assert (row["int8_layers"], row["layers"]) == (2, 2)
    assert row["score"] is None
    assert any("no calibration data" in note for note in report["notes"])
    assert not Bundle.open(source.with_suffix(".edge")).has(m.STATISTICS)


def test_convolutions_without_data_stay_float_and_the_report_says_why(tmp_path: Path) -> None:
    source = save(cnn(), tmp_path / "cnn.pth", (1, 8, 8))
    report = convert(plan(source)).report
    assert not [row for row in report["candidates"] if row["scheme"] in ("int8", "dynamic")]
    assert candidates(report)["float"]["layers"] == 2
    assert any("int8 convolutions need calibration data" in note for note in report["notes"])


def test_convolutions_with_data_are_calibrated_and_all_run_in_int8(calibrated: Path) -> None:
    bundle = Bundle.open(calibrated)
    quantization = bundle.manifest.quantization
    assert quantization["scheme"] == "int8"
    assert (quantization["int8_layers"], quantization["layers"]) == (2, 2)
    model = onnx.load_from_string(bundle.read(m.MODEL))
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert running_in_int8(model) == (2, 3)  # the head is float


def test_quantize_none_keeps_float_even_with_data(tmp_path: Path) -> None:
    source = save(cnn(), tmp_path / "cnn.pth", (1, 8, 8), calibrated=100)
    report = convert(plan(source, quantize="none")).report
    assert chosen(report)["scheme"] == "none"
    assert chosen(report)["sqnr_db"] > 60
    assert report["notes"][-1].startswith("statistics of 100")


@pytest.mark.parametrize(("quantize", "error_db"), [("fp16", 45), ("int4", 8)])
def test_fp16_and_int4_are_made_on_request(tmp_path: Path, quantize: str, error_db: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 4)).eval()
    source = save(model, tmp_path / "mlp.pth", (64,), calibrated=200)
    report = convert(plan(source, quantize=quantize, max_drop=100.0)).report
    row, floating = chosen(report), candidates(report)["float"]
    assert row["scheme"] == quantize
    assert error_db < row["sqnr_db"] < floating["sqnr_db"]
    assert row["size_bytes"] < 0.8 * floating["size_bytes"]
    OnnxSession(Bundle.open(source.with_suffix(".edge")))


def test_int8_convolutions_without_data_are_refused_when_int8_was_asked_for(tmp_path: Path) -> None:
    source = save(cnn(), tmp_path / "cnn.pth", (1, 8, 8))
    before, folders = snapshot(tmp_path), temporary_folders()
    with pytest.raises(ConversionError, match="need calibration data"):
        convert(plan(source, quantize="int8"))
    assert snapshot(tmp_path) == before
    assert temporary_folders() <= folders


def test_int8_is_refused_when_nothing_is_frozen(tmp_path: Path) -> None:
    source = save(mlp(), tmp_path / "mlp.pth", (12,))
    before = snapshot(tmp_path)
    with pytest.raises(ConversionError, match="no convolution or matrix product"):
        convert(plan(source, quantize="int8", trainable="last:3"))
    assert snapshot(tmp_path) == before
    report = convert(plan(source, trainable="last:3")).report
    assert any("nothing is quantized" in note for note in report["notes"])


def hard(path: Path) -> Path:
    """A network with one channel of 10,000 times the others' size between two layers, where 8 bits keep just that one.

    SiLU does not let a factor pass, so that it cannot be moved into the next layer's weights.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight[0] *= 1e4
        model[2].weight[:, 0] *= 1e-4
        model[7].bias -= model(labelled(model, (1, 8, 8), 300)[0]).mean(dim=0)  # so that there are several classes
    return save(model, path, (1, 8, 8), calibrated=300)


def test_layers_that_int8_ruins_are_left_in_float_and_only_those(tmp_path: Path) -> None:
    report = convert(plan(hard(tmp_path / "hard.pth"), quantize="int8", max_drop=2.0)).report
    row = chosen(report)
    assert sorted(row["left_in_float"]) == ["/0/Conv", "/2/Conv"]  # before and behind the channel
    assert (row["int8_layers"], row["layers"]) == (1, 3)
    assert row["score"] >= report["candidates"][0]["score"] - 0.02
    refused = [r for r in report["candidates"] if r["status"] == "refused"]
    assert "loses" in refused[0]["why"]
    assert {row["layer"] for row in report["sensitivity"][:2]} == {"/0/Conv", "/2/Conv"}
    assert report["sensitivity"][1]["sqnr_db"] < 10 < 30 < report["sensitivity"][2]["sqnr_db"]


def test_a_network_that_int8_ruins_is_refused_under_int8(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 4)).eval()
    x = torch.randn(300, 12)
    x[:, 0] *= 1e-4
    with torch.no_grad():  # one huge input weight makes the others vanish in their scale; its input is small
        model[0].weight[:, 0] = 1e4
        model[3].bias -= model(x).mean(dim=0)
        labels = model(x).argmax(dim=1)
    source = tmp_path / "hard.pth"
    converter.save_checkpoint(model, source, example_input=x[:1], class_names=list("abcd"), calibration=(x, labels))
    source.with_suffix(".edge").write_bytes(b"an older bundle")
    before, folders = snapshot(tmp_path), temporary_folders()
    with pytest.raises(ConversionError, match=r"too far from the original: .*(loses|dB).*Nothing was written"):
        convert(plan(source, quantize="dynamic", max_drop=0.0))
    assert snapshot(tmp_path) == before
    assert temporary_folders() <= folders


# --- the head --------------------------------------------------------------------------------------------------------

LINEAR = LinearLayer(weight="w", bias="b", input="x")


def test_head_correction_improves_on_samples_that_it_was_not_fitted_on() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    head = {"w": rng.normal(size=(3, 6)).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}
    wanted = x @ head["w"].T + head["b"]
    quantized = (x * 0.9 + 0.05).astype(np.float32)  # a bias that a head can undo
    corrected, left = correct_for_quantization(head, LINEAR, quantized, wanted)
    before = np.square(wanted - quantized @ head["w"].T - head["b"])[1::2].mean()
    after = np.square(wanted - quantized @ corrected["w"].T - corrected["b"])[1::2].mean()
    assert after < 0.1 * before
    assert left == pytest.approx(after / before, rel=1e-2)


def test_head_correction_is_not_kept_when_it_does_not_help() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6)).astype(np.float32)
    head = {"w": rng.normal(size=(3, 6)).astype(np.float32), "b": np.zeros(3, np.float32)}
    wanted = x.astype(np.float64) @ head["w"].T.astype(np.float64)
    wanted[::2] += rng.normal(size=(40, 3)) * 5  # the half that it is fitted on misleads
    corrected, left = correct_for_quantization(head, LINEAR, x, wanted.astype(np.float32))
    assert left == 1.0
    np.testing.assert_array_equal(corrected["w"], head["w"])


def test_head_correction_leaves_a_head_alone_on_few_samples() -> None:
    x = np.ones((63, 2), np.float32)
    head = {"w": np.ones((3, 2), np.float32), "b": np.zeros(3, np.float32)}
    corrected, left = correct_for_quantization(head, LINEAR, x, np.zeros((63, 3), np.float32))
    assert (left, corrected) == (1.0, head)


def test_head_correction_works_without_a_bias() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    head = {"w": rng.normal(size=(3, 4)).astype(np.float32)}
    corrected, left = correct_for_quantization(
        head, LinearLayer(weight="w", bias=None, input="x"), x * 0.9, x @ head["w"].T
    )
    assert left < 0.1
    assert set(corrected) == {"w"}


def test_statistics_equal_a_direct_computation_on_the_shipped_features(calibrated: Path) -> None:
    bundle = Bundle.open(calibrated)
    x, y = labelled(cnn(), (1, 8, 8), 200)
    found = features(bundle, x.numpy()).astype(np.float64)
    gram, moment = np.zeros((37, 37)), np.zeros((37, 4))
    for row, label in zip(found, y.tolist(), strict=True):
        extended = np.append(row, 1.0)
        gram += np.outer(extended, extended) / 200
        moment[:, label] += extended / 200
    shipped = bundle.tensors(m.STATISTICS)
    np.testing.assert_allclose(shipped["gram"], gram[np.triu_indices(37)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shipped["moment"], moment, rtol=1e-5, atol=1e-6)


def test_statistics_summed_in_batches_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, 3, 60)
    targets = np.eye(3)[y]
    hidden = np.abs(x[:, :2])
    whole, n = training_statistics([({"": x, "other.": hidden}, targets)])
    rows = (slice(0, 20), slice(20, 60))
    parts, count = training_statistics([({"": x[r], "other.": hidden[r]}, targets[r]) for r in rows])
    assert n == count == 60
    assert {name: array.shape for name, array in whole.items()} == {
        "gram": (21,),
        "moment": (6, 3),
        "other.gram": (6,),
        "other.moment": (3, 3),
    }
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-4, atol=1e-6)


def test_a_head_without_a_bias_gets_statistics_and_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)).eval()
    source = save(model, tmp_path / "m.pth", (12,), calibrated=200)
    convert(plan(source, max_drop=20.0))
    bundle = Bundle.open(source.with_suffix(".edge"))
    assert bundle.manifest.head is not None
    assert bundle.manifest.head.linear == LinearLayer(weight="2.weight", bias=None, input="features")
    assert bundle.has(m.STATISTICS)


def test_a_head_with_a_hidden_layer_gets_statistics_of_what_its_first_and_its_last_layer_take(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).eval()
    source = save(model, tmp_path / "m.pth", (12,), calibrated=200)
    convert(plan(source, trainable="last:2", quantize="none", max_drop=20.0))
    bundle = Bundle.open(source.with_suffix(".edge"))
    head = bundle.manifest.head
    assert head is not None
    assert head.linear is not None
    assert (head.is_linear, head.n_inputs) == (False, 6)
    x, y = labelled(model, (12,), 200)
    with torch.no_grad():
        inputs = model[:4](x).double().numpy()
    extended = np.concatenate([inputs, np.ones((200, 1))], axis=1)
    shipped = bundle.tensors(m.STATISTICS)
    expected = extended.T @ extended / 200
    np.testing.assert_allclose(shipped["gram"], expected[np.triu_indices(7)], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shipped["moment"], extended.T @ np.eye(4)[y.numpy()] / 200, rtol=1e-4, atol=1e-5)
    assert head.entry == LinearLayer(weight="2.weight", bias="2.bias", input="features")
    with torch.no_grad():
        extended = np.concatenate([model[:2](x).double().numpy(), np.ones((200, 1))], axis=1)
    expected = extended.T @ extended / 200
    np.testing.assert_allclose(shipped["features.gram"], expected[np.triu_indices(9)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "is_regression"),
    [("mean-squared-error", True), ("binary-cross-entropy", False)],
    ids=["quantities", "yes-or-no"],
)
def test_float_targets_choose_the_loss(tmp_path: Path, loss: str, is_regression: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(120, 12)
    with torch.no_grad():
        logits = model(x)
        targets = logits - logits.mean(dim=0) + 0.1 * torch.randn(120, 3)
        model[2].bias -= logits.mean(dim=0)
    targets = targets if is_regression else (targets > 0).float()
    source = tmp_path / "m.pth"
    converter.save_checkpoint(model, source, example_input=x[:1], calibration=(x, targets))
    convert(plan(source, max_drop=100.0, training=TrainingRecipe(optimizer="adam", clip_norm=1.0)))
    bundle = Bundle.open(source.with_suffix(".edge"))
    head = bundle.manifest.head
    assert head is not None
    assert (head.training.loss, head.training.is_regression) == (loss, is_regression)
    assert (head.training.optimizer, head.training.clip_norm) == ("adam", 1.0)
    assert bundle.manifest.class_names == (() if is_regression else ("0", "1", "2"))
    moment = bundle.tensors(m.STATISTICS)["moment"]
    np.testing.assert_allclose(moment[-1], targets.mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)
    wrong = plan(source, output=tmp_path / "other.edge", loss="cross-entropy")
    with pytest.raises(ConfigError, match="float targets"):
        convert(wrong)
    assert not (tmp_path / "other.edge").exists()


def test_a_bundle_takes_more_classes_than_it_was_made_with(calibrated: Path) -> None:
    bundle = Bundle.open(calibrated)
    session = OnnxSession(bundle)
    head = bundle.manifest.head
    assert head is not None
    assert head.linear is not None
    x, _ = labelled(cnn(), (1, 8, 8), 5)
    parameters = bundle.head_parameters()
    before = session.run({bundle.manifest.inputs[0].name: x.numpy()}, parameters)[head.output]
    for name in (head.linear.weight, head.linear.bias):
        assert name is not None
        parameters[name] = np.concatenate([parameters[name], np.ones_like(parameters[name][:2])])
    after = session.run({bundle.manifest.inputs[0].name: x.numpy()}, parameters)[head.output]
    assert after.shape == (5, 6)
    np.testing.assert_allclose(after[:, :4], before, rtol=1e-5, atol=1e-5)


# --- the bundle ------------------------------------------------------------------------------------------------------


def test_converting_twice_gives_the_same_bytes(calibrated: Path, tmp_path: Path) -> None:
    again = tmp_path / "cnn.edge"
    report = convert(
        plan(calibrated.with_suffix(".pth"), output=again, max_drop=10.0, quantize="int8", torchscript=True)
    ).report
    assert again.read_bytes() == calibrated.read_bytes()
    # That this machine did other work meanwhile is told, and not kept.
    quiet, disturbed = (report | {"latency_spread": spread} for spread in (0.0, 0.4))
    assert "differed by 40%" in notes(disturbed)[-1]
    assert notes(quiet) == report["notes"]
    assert lasting(quiet) == lasting(disturbed)


def test_a_torchscript_file_and_a_python_module_give_the_same_bundle(tmp_path: Path) -> None:
    model = cnn()
    (tmp_path / "net.py").write_text(NET)
    checkpoint = save(model, tmp_path / "checkpoint.pth", (1, 8, 8))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 1, 8, 8)), tmp_path / "script.pt")
    bundles = []
    for source, options in (
        (checkpoint, {}),
        (tmp_path / "weights.pth", {"arch": f"{tmp_path / 'net.py'}:Net", **shaped(1, 8, 8)}),
        (tmp_path / "script.pt", shaped(1, 8, 8)),
    ):
        convert(plan(source, output=tmp_path / f"{source.stem}.edge", quantize="none", **options))
        bundles.append(Bundle.open(tmp_path / f"{source.stem}.edge"))
    x = np.random.default_rng(3).normal(size=(9, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    for bundle in bundles:
        assert set(bundle.head_parameters()) == {"7.weight", "7.bias"}
        np.testing.assert_allclose(logits(bundle, x), expected, rtol=1e-4, atol=1e-5)


def test_the_torchscript_in_a_bundle_is_the_whole_float_model(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(Bundle.open(calibrated).read(m.TORCHSCRIPT))
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "m.pt")(x), cnn()(x))


def altered(path: Path, target: Path, role: str, data: bytes) -> Bundle:
    """The same bundle with one member replaced and every digest made right again."""
    bundle = Bundle.open(path)
    blobs = {name: bundle.read(name) for name in bundle.manifest.members} | {role: data}
    write_bundle(target, replace(bundle.manifest, members=members_of(blobs)), blobs)
    return Bundle.open(target)


def test_a_bundle_whose_golden_outputs_are_not_met_is_refused(calibrated: Path, tmp_path: Path) -> None:
    golden = Bundle.open(calibrated).tensors(m.GOLDEN)
    same = altered(calibrated, tmp_path / "same.edge", m.GOLDEN, safetensors.numpy.save(golden))
    OnnxSession(same)
    golden["output.output"] = np.roll(golden["output.output"], 1, axis=1)
    other = altered(calibrated, tmp_path / "other.edge", m.GOLDEN, safetensors.numpy.save(golden))
    with pytest.raises(BundleError, match="other answers"):
        OnnxSession(other)


def test_a_bundle_whose_head_was_altered_does_not_meet_its_golden_outputs(calibrated: Path, tmp_path: Path) -> None:
    parameters = {name: array * -1 for name, array in Bundle.open(calibrated).head_parameters().items()}
    other = altered(calibrated, tmp_path / "o.edge", m.HEAD_PARAMETERS, safetensors.numpy.save(parameters))
    with pytest.raises(BundleError, match="other answers"):
        OnnxSession(other)


@pytest.mark.parametrize("target", ["generic-x86_64", "generic-arm64", "raspberry-pi-5"])
def test_every_profile_gives_a_bundle_that_this_machine_opens(tmp_path: Path, target: str) -> None:
    source = save(cnn(), tmp_path / "cnn.pth", (1, 8, 8), calibrated=120)
    convert(plan(source, profile=load_profile(target), max_drop=100.0))
    bundle = Bundle.open(source.with_suffix(".edge"))
    OnnxSession(bundle, config=EXACT)  # as a CPU of the target does, also where this one saturates
    assert bundle.manifest.quantization["target"] == target


def test_the_manifest_says_what_the_model_takes_and_gives(calibrated: Path) -> None:
    manifest = Bundle.open(calibrated).manifest
    assert (manifest.inputs[0].sample_shape, manifest.inputs[0].dtype) == ((1, 8, 8), "float32")
    assert manifest.head is not None
    assert manifest.head.features.sample_shape == (36,)
    assert manifest.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert manifest.head.linear == LinearLayer(weight="7.weight", bias="7.bias", input="features")


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, source: Path, error: type[Exception], words: str, **options: object) -> None:
    before, folders = snapshot(tmp_path), temporary_folders()
    with pytest.raises(error, match=words):
        convert(plan(source, **options))
    assert snapshot(tmp_path) == before
    assert temporary_folders() <= folders


def test_refuses_an_input_shape_that_contradicts_the_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path, save(cnn(), tmp_path / "c.pth", (1, 8, 8)), ConfigError, "input", **shaped(1, 9, 9))


def test_refuses_the_wrong_number_of_class_names(tmp_path: Path) -> None:
    source = save(mlp(), tmp_path / "m.pth", (12,))
    refused(tmp_path, source, ConfigError, "3 class names, but the model has 4", class_names=("a", "b", "c"))


def test_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    refused(tmp_path, save(model, tmp_path / "m.pth", (12,)), ConversionError, "not finite")


def test_refuses_a_model_of_another_float_type(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.jit.trace(mlp().double(), torch.zeros(1, 12, dtype=torch.float64)).save(path)
    refused(tmp_path, path, ConversionError, r"call model\.float\(\)", inputs=(one_input("input=batch,12:float64"),))


def test_refuses_to_make_up_inputs_for_a_model_that_takes_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 4)).eval()
    path = tmp_path / "m.pth"
    converter.save_checkpoint(model, path, example_input=torch.zeros(1, 2, dtype=torch.int64), class_names=list("abcd"))
    refused(tmp_path, path, ConversionError, "--calibrate")
    tokens = np.random.default_rng(0).integers(0, 10, (50, 2))
    np.savez(tmp_path / "data.npz", x=tokens)
    convert(plan(path, calibration=str(tmp_path / "data.npz"), max_drop=100.0))
    assert features(Bundle.open(tmp_path / "m.edge"), tokens).shape == (50, 8)
    np.savez(tmp_path / "data.npz", x=tokens / 2)
    refused(tmp_path, path, ConfigError, "int64", calibration=str(tmp_path / "data.npz"))


def test_refuses_a_head_that_has_no_gradient_and_names_the_largest_that_has(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(12, 6), nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.b(torch.cos(self.a(x)))))

    torch.manual_seed(0)
    source = save(Odd().eval(), tmp_path / "m.pth", (12,))
    refused(
        tmp_path, source, ConversionError, r"operator Cos.*largest that works is --trainable last:2", trainable="last:3"
    )


def test_refuses_to_write_over_the_model_itself(tmp_path: Path) -> None:
    source = save(mlp(), tmp_path / "m.pth", (12,))
    refused(tmp_path, source, ConfigError, "the model itself", output=source)


def test_a_checkpoint_whose_parts_do_not_fit_is_refused(tmp_path: Path) -> None:
    source = save(cnn(), tmp_path / "c.pth", (1, 8, 8), calibrated=20)
    good = torch.load(source, weights_only=True)
    for change, words in (
        ({"edgeloop_checkpoint": 99}, "version 99"),
        ({"edgeloop_checkpoint": torch.zeros(3)}, "version"),
        ({"torchscript": torch.zeros(10, dtype=torch.uint8)}, "damaged"),
        ({"torchscript": "print('x')"}, "torchscript is str"),
        ({"state_dict": {"0.weight": "text"}}, "not a tensor"),
        ({"state_dict": {"0.weight": torch.zeros(1)}}, "missing"),
        ({"state_dict": []}, "state_dict is list"),
        ({"inputs": []}, "example_inputs"),
        ({"inputs": [{"name": "input", "dtype": "text", "shape": []}]}, "dtype must be one of .*got 'text'"),
        ({"example_inputs": torch.zeros(())}, "example_inputs is Tensor"),
        ({"example_inputs": {"other": torch.zeros(1, 1, 8, 8)}}, "example_inputs"),
        ({"example_inputs": {"input": torch.zeros(1, 3)}}, "expected shape"),
        ({"example_inputs": {"input": torch.zeros(2, 1, 8, 8)}}, "not one sample"),
        ({"example_inputs": {"input": torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16)}}, "bfloat16"),
        ({"example_inputs": {"input": torch.zeros(1).expand(1, 1, 8, 2**40)}}, "damaged"),
        ({"outputs": ["a", "b"]}, "returns 1 tensors"),
        ({"class_names": ["a"]}, "1 class names"),
        ({"class_names": None}, "class_names"),
        ({"calibration_x": {"input": torch.zeros(20, 3)}}, "expected shape"),
        ({"calibration_y": torch.zeros(3, dtype=torch.int64)}, "20 samples"),
        ({"calibration_y": torch.full((20,), 9)}, "labels from 9"),
        ({"preprocessing": {"mean": torch.zeros(1)}}, "plain JSON"),
    ):
        torch.save(good | change, source)
        refused(tmp_path, source, (ConfigError, ConversionError), words)  # type: ignore[arg-type]


def test_save_checkpoint_refuses_what_convert_would_refuse_and_writes_nothing(tmp_path: Path) -> None:
    model, example = mlp(), torch.zeros(1, 12)
    for options, words in (
        ({"class_names": ["a"], "example_input": example}, "1 class names"),
        ({"class_names": list("abcd"), "example_input": torch.zeros(1, 9)}, "does not run"),
        ({"class_names": list("abcd"), "example_input": example, "preprocessing": {"f": print}}, "plain JSON"),
    ):
        with pytest.raises(ConversionError, match=words):
            converter.save_checkpoint(model, tmp_path / "m.pth", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_has_a_digest_that_the_conversion_states(tmp_path: Path) -> None:
    source = save(mlp(), tmp_path / "m.pth", (12,))
    digest = convert(plan(source)).report["bundle_digest"]
    assert Bundle.open(source.with_suffix(".edge")).digest == digest


def test_a_model_that_cannot_become_small_enough_is_refused_before_the_work(tmp_path: Path) -> None:
    source = save(one_layer(2000, 2000), tmp_path / "m.pth", (2000,), classes=2000)
    usual = load_profile("generic-x86_64")
    small = replace(usual, inference=replace(usual.inference, max_bundle_mb=1))
    stages: list[str] = []
    with pytest.raises(ConversionError, match=r"15 MiB of weights, at least 1 MiB with --quantize auto; .* of 1 MiB"):
        convert(plan(source, profile=small), stages.append)
    assert stages == ["loading the model"]


class Spelled(nn.Module):
    """Whole numbers in floats that are indices: no noise may come to them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.letters = nn.Embedding(8, 6)
        self.out = nn.Linear(30, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.letters(x.long()).flatten(1))


def test_a_model_that_takes_no_noise_is_converted_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from tests.converter.test_pipeline import Spelled\n")
    torch.save(Spelled().state_dict(), tmp_path / "m.pth")
    x = rng().integers(0, 8, (100, 5)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    report = convert(
        plan(
            tmp_path / "m.pth", arch=f"{tmp_path / 'net.py'}:Spelled", calibration=str(tmp_path / "data.npz"),
            quantize="none", **shaped(5),
        )
    ).report  # fmt: skip
    assert report["robustness"] == []
    assert any("robustness was not measured" in note for note in report["notes"])
    # The size of the original is that of its weights, whatever else its file holds.
    assert candidates(report)["PyTorch"]["size_bytes"] == 4 * (8 * 6 + 30 * 4 + 4)


class Tied(nn.Module):
    """Scores of words by the weights of their embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(3000, 64)
        self.hidden = nn.Linear(64, 64)
        self.out = nn.Linear(64, 3000, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(self.words(tokens).mean(1))))


class Again(nn.Module):
    """One layer that is used four times, and a recurrent cell that is unrolled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(300, 300)
        self.cell = nn.GRUCell(300, 64)
        self.out = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(x.shape[0], 64)
        for _ in range(4):
            x = torch.relu(self.layer(x))
            state = self.cell(x, state)
        return self.out(state)


def test_weights_that_are_shared_stay_shared(tmp_path: Path) -> None:
    for net, x in ((Tied(), rng().integers(0, 3000, (32, 8))), (Again(), rng().standard_normal((32, 300), np.float32))):
        source = tmp_path / f"{type(net).__name__}.pt"
        torch.jit.trace(net.eval(), torch.from_numpy(x[:1])).save(str(source))
        np.savez(tmp_path / "data.npz", x=x)
        inputs = (InputOption(name="", shape=("batch", *x.shape[1:]), dtype=str(x.dtype)),)
        report = convert(plan(source, calibration=str(tmp_path / "data.npz"), quantize="none", inputs=inputs)).report
        weights = sum(parameter.numel() for parameter in net.parameters()) * 4
        assert candidates(report)["PyTorch"]["size_bytes"] == weights
        golden = Bundle.open(source.with_suffix(".edge")).manifest.members[m.GOLDEN].size_bytes
        assert source.with_suffix(".edge").stat().st_size - golden < 1.1 * weights + 40_000, type(net).__name__


def test_labels_of_the_two_files_belong_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid()).eval(), torch.randn(120, 6)
    with torch.no_grad():
        yes = (model(x) > 0.5).float().numpy()
    path = tmp_path / "m.pth"
    converter.save_checkpoint(model, path, example_input=x[:1])
    for shift, (name, y) in enumerate((("answers", yes), ("numbers", yes.argmax(1)), ("none", None))):
        np.savez(tmp_path / f"{name}.npz", x=x + 1e-3 * shift, **({} if y is None else {"y": y}))
    files = {name: str(tmp_path / f"{name}.npz") for name in ("answers", "numbers", "none")}
    convert(plan(path, calibration=files["answers"], evaluation=files["none"], quantize="none", max_drop=5.0))
    head = Bundle.open(tmp_path / "m.edge").manifest.head
    assert head is not None
    assert head.training.loss == "binary-cross-entropy"
    (tmp_path / "m.edge").unlink()
    refused(tmp_path, path, ConfigError, "gives 5 answers that are yes or no each", calibration=files["numbers"])
    converter.save_checkpoint(model[0], path, example_input=x[:1])
    for one, other in (("numbers", "answers"), ("answers", "numbers")):
        mixed = {"calibration": files[one], "evaluation": files[other]}
        refused(tmp_path, path, ConfigError, "of --calibrate and --evaluate one has class numbers", **mixed)
