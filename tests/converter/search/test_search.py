"""Which candidate is shipped: by latency where it means something, by rule where not, and never beyond the limits."""

from __future__ import annotations

import importlib
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from torch import nn

import converter
from converter.graph.canonical import canonical
from converter.head.fitting import correct_for_quantization
from converter.quantization.layers import optimize
from converter.report.values import notes
from converter.search import candidates
from converter.search.candidates import Bench, Candidate
from converter.search.search import Search
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.contract.profile import DeviceProfile, load_profile
from edge.inference.onnx_benchmark import Benchmark, compare_here
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import cnn, convert, export, mlp, plan, save


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(cnn(), tmp_path_factory.mktemp("search") / "cnn.pth", (1, 8, 8), calibrated=100)


def converted(source: Path, tmp_path: Path, **options: Any) -> dict[str, Any]:
    return convert(plan(source, **{"output": tmp_path / "out.edge", "max_drop": 10.0, **options})).report


def timed_as(
    monkeypatch: pytest.MonkeyPatch, latency_ms: dict[str, float], named: dict[str, float] | None = None
) -> None:
    """Real measurements of everything, but the latencies of a machine on which schemes, and names, are this fast."""
    measured = Bench.timed

    def latency(candidate: Candidate) -> float:
        return next((ms for part, ms in (named or {}).items() if part in candidate.name), latency_ms[candidate.scheme])

    def timed(self: Bench, *given: Any) -> Any:
        return [
            replace(c, timing=c.timing and replace(c.timing, latency_ms=latency(c))) for c in measured(self, *given)
        ]

    monkeypatch.setattr(Bench, "timed", timed)
    monkeypatch.setattr(Bench, "faster", lambda _self, _base, _others: [])


def this_machine() -> DeviceProfile:
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip(f"no profile is like {platform.machine()}")
    return load_profile("generic-x86_64" if platform.machine() == "x86_64" else "generic-arm64")


def another_machine() -> DeviceProfile:
    return load_profile("generic-arm64" if platform.machine() == "x86_64" else "generic-x86_64")


def test_float_is_shipped_and_says_so_where_int8_is_slower(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_as(monkeypatch, {"none": 1.0, "int8": 1.5, "fp16": 3.0})
    monkeypatch.setattr(candidates, "_QUICK", float("inf"))  # whatever this machine does besides, all are compared
    compare = Benchmark.compare
    monkeypatch.setattr(Benchmark, "compare", lambda *a, **options: replace(compare(*a, **options), spread=0.3))
    report = converted(source, tmp_path, profile=this_machine())
    assert any("times of one candidate differed by 30%" in note for note in notes(report))
    assert report["chosen"] == "float"
    assert "int8 would be slower here" in report["reason"]
    status = {row["scheme"]: (row["status"], row["why"]) for row in report["candidates"][1:]}
    assert status["int8"] == ("slower", "takes 1.50 times as long as float")


def test_the_fastest_is_shipped_and_of_equals_the_smallest(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_as(monkeypatch, {"none": 1.0, "int8": 0.5, "fp16": 3.0})
    report = converted(source, tmp_path, profile=this_machine())
    assert report["chosen"].startswith("int8 static")
    assert "the fastest of" in report["reason"]
    timed_as(monkeypatch, {"none": 1.0, "int8": 1.5, "fp16": 0.99})
    report = converted(source, tmp_path, profile=this_machine())
    assert report["chosen"] == "fp16"  # as fast as float within 3 %, and smaller
    status = {row["scheme"]: row["status"] for row in report["candidates"][1:]}
    assert status == {"none": "not chosen", "int8": "slower", "fp16": "chosen"}
    assert "equally fast" in report["reason"]


def test_latency_on_another_architecture_does_not_decide(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_as(monkeypatch, {"none": 0.1, "int8": 9.0, "fp16": 0.1})
    report = converted(source, tmp_path, profile=another_machine())
    assert report["chosen"].startswith("int8 static")
    assert "says little about" in report["reason"]
    assert {row["status"] for row in report["candidates"][1:]} == {"chosen", "not chosen"}  # of speed nothing is known


def test_without_data_auto_keeps_the_answers_to_random_inputs_too(tmp_path: Path) -> None:
    """33 dB is enough for who asks for it, but seven of 256 answers are others."""
    torch.manual_seed(0)
    layers = nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 20)
    source = save(nn.Sequential(*layers), tmp_path / "net.pth", (64,), classes=20)
    report = convert(plan(source, trainable="none")).report
    row = next(c for c in report["candidates"] if c["name"] == "int8 dynamic")
    assert row["status"] == "refused"
    assert row["column_db"] > 30
    assert "of the samples on random inputs; what it loses on real ones only data can tell" in row["why"]
    assert convert(plan(source, trainable="none", quantize="dynamic")).report["chosen"] == "int8 dynamic"


def test_what_needs_more_memory_than_the_target_has_is_refused(source: Path, tmp_path: Path) -> None:
    report = converted(source, tmp_path)
    assert report["candidates"][1]["status"] in ("chosen", "slower", "not chosen")
    profile = load_profile("generic-x86_64")
    small = replace(profile, memory_mb=64, inference=replace(profile.inference, max_bundle_mb=16))
    with pytest.raises(ConversionError, match="half of the target's memory is 32 MiB"):
        converted(source, tmp_path, profile=small, quantize="none")


def test_a_bundle_that_is_too_large_for_the_target_is_refused(tmp_path: Path) -> None:
    source = save(nn.Sequential(nn.Linear(12, 90_000), nn.ReLU(), nn.Linear(90_000, 4)), tmp_path / "m.pth", (12,))
    profile = load_profile("generic-x86_64")
    small = replace(profile, inference=replace(profile.inference, max_bundle_mb=3))
    with pytest.raises(ConversionError, match=r" takes bundles of 3 MiB \(max_bundle_mb\)"):
        convert(plan(source, profile=small, quantize="none"))
    assert not source.with_suffix(".edge").exists()


def test_the_first_layers_may_stay_in_float_where_that_is_faster(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "faster", lambda _self, _base, others: others[-1:])
    finish, made = Search._finished, []

    def corrected(*given: Any) -> tuple[dict[str, np.ndarray], float]:
        return {name: array + 1e-3 for name, array in correct_for_quantization(*given)[0].items()}, 0.5

    def finished(self: Search, sketch: Candidate) -> Candidate:
        made.append((sketch, finish(self, sketch)))
        return made[-1][1]

    monkeypatch.setattr("converter.search.candidates.correct_for_quantization", corrected)
    monkeypatch.setattr(Search, "_finished", finished)
    report = converted(source, tmp_path, profile=this_machine())
    assert made
    for sketch, found in made:  # it was timed with the head as it was, and is judged with its own
        assert (sketch.head_error, sketch.deviation) == (1.0, None)
        assert found.head_error == 0.5
        assert found.deviation is not None
        assert all((found.parameters[name] != array).all() for name, array in sketch.parameters.items())
    (row,) = [c for c in report["candidates"] if c["name"].endswith(", 1 in float")]
    assert row["left_in_float"] == ["/0/Conv"]
    assert (row["int8_layers"], row["layers"]) == (1, 2)
    assert any("faster with 1 of its first convolutions in float" in note for note in report["notes"])


class Upward(nn.Module):
    """A transposed convolution, around which onnxruntime's own recipe puts pairs and ours does not."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 2, 2)
        self.last = nn.Linear(256, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(torch.relu(self.up(torch.relu(self.down(x)))).flatten(1))
        return found


def test_a_stock_recipe_that_is_faster_is_shipped_unless_it_loses_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine where onnxruntime's own recipe is the fastest and float the slowest."""
    torch.manual_seed(0)
    source = save(Upward().eval(), tmp_path / "up.pth", (1, 8, 8), calibrated=100)
    timed_as(monkeypatch, {"none": 1.0, "int8": 0.5, "fp16": 3.0, "int4": 3.0}, {"onnxruntime": 0.4})
    monkeypatch.setattr(
        Bench, "faster", lambda _self, _base, others, *_: [c for c in others if "onnxruntime" in c.name]
    )
    report = converted(source, tmp_path, profile=this_machine())
    assert "onnxruntime's recipe" in report["chosen"]
    (row,) = [row for row in report["candidates"] if row["name"] == report["chosen"]]
    assert (row["scheme"], row["int8_layers"], row["layers"]) == ("int8", 1, 2)
    assert OnnxSession(Bundle.open(tmp_path / "out.edge")).run({"input": np.ones((2, 1, 8, 8), np.float32)})

    def fault(self: Search, candidate: Candidate) -> str | None:
        return "loses too much" if "onnxruntime" in candidate.name else judged(self, candidate)

    judged = Search._fault
    monkeypatch.setattr(Search, "_fault", fault)
    report = converted(source, tmp_path, profile=this_machine())
    assert "onnxruntime" not in report["chosen"]
    refused = [row["why"] for row in report["candidates"] if "onnxruntime" in row["name"]]
    assert refused == ["loses too much"] * 2  # with a scale for each channel, and with one for all


def deadly(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph behind an int8 product of nothing, at which onnxruntime 1.32 ends its process on two threads."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    output = made.graph.output[0].name
    for node in made.graph.node:
        node.output[:] = ["alive" if name == output else name for name in node.output]
        node.input[:] = ["alive" if name == output else name for name in node.input]
    arrays = {"none": np.zeros(1, np.int64), "half": np.float32(0.5), "zero": np.uint8(0), "one": np.uint8(1)}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    node = onnx.helper.make_node
    made.graph.node.extend([
        node("Shape", ["alive"], ["shape"]),
        node("Mul", ["shape", "none"], ["empty"]),
        node("ConstantOfShape", ["empty"], ["nothing"]),
        node("QuantizeLinear", ["nothing", "half", "zero"], ["q"]),
        node("QLinearMul", ["q", "half", "zero", "one", "half", "zero", "half", "zero"], ["product"],
             domain="com.microsoft"),
        node("DequantizeLinear", ["product", "half", "zero"], ["float"]),
        node("ReduceSum", ["float"], ["sum"], keepdims=0),
        node("Add", ["alive", "sum"], [output]),
    ])  # fmt: skip
    if all(known.domain != "com.microsoft" for known in made.opset_import):
        made.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return made


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("static_int8.quantize_static", "int8 static"),
        ("static_int8.quantize_stock", "onnxruntime's recipe"),
        ("search.to_float16", "fp16"),
    ],
)
def test_whatever_ends_the_process_that_runs_it_is_left_out(
    where: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real crash of onnxruntime, in another process each time; on one thread, as latency is measured, it is none."""
    torch.manual_seed(0)
    source = save(Upward().eval(), tmp_path / "up.pth", (1, 8, 8), calibrated=100)
    monkeypatch.setattr(candidates, "available_threads", lambda: 2)
    module, _, function = where.rpartition(".")
    module = f"converter.search.{module}"
    made = getattr(importlib.import_module(module), function)
    monkeypatch.setattr(f"{module}.{function}", lambda *given, **known: deadly(made(*given, **known)))
    monkeypatch.setattr(Bench, "faster", lambda _self, _base, others, *_: list(others))
    report = converted(source, tmp_path, profile=this_machine())
    rows = [row for row in report["candidates"] if named in row["name"]]
    assert rows
    for row in rows:
        assert row["status"] == "failed"
        assert "onnxruntime ended the process that ran it" in row["why"]
    assert named not in report["chosen"]
    assert Bundle.open(tmp_path / "out.edge")
    if named == "int8 static":
        with pytest.raises(ConversionError, match="ended the process"):
            converted(source, tmp_path, profile=this_machine(), quantize="int8")


def test_what_is_shipped_is_as_fast_as_the_files_that_onnxruntime_makes(tmp_path: Path) -> None:
    """Measured here, in turn: wide products run a third faster with one scale for all columns than with one each."""
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(640, 640), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(640, 4)).eval()
    source = save(model, tmp_path / "m.pth", (640,), calibrated=32)
    # By the SQNR, and not by labels that random weights hardly decide.
    converted(source, tmp_path, profile=this_machine(), format="onnx", output=tmp_path / "0.onnx", max_drop=100.0)
    x = np.random.default_rng(0).normal(size=(8, 1, 640)).astype(np.float32)
    unsigned, signed = QuantType.QUInt8, QuantType.QInt8
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(optimize(canonical(export(model, (640,)))).SerializeToString())
    reduced = this_machine().quantization.reduce_range
    for number, per_channel in ((1, False), (2, True)):

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            samples = iter(x)

            def get_next(self) -> dict[str, Any] | None:
                sample = next(self.samples, None)
                return None if sample is None else {"input": sample}

        quantize_static(
            plain,
            tmp_path / f"{number}.onnx",
            Reader(),
            activation_type=unsigned,
            weight_type=signed,
            per_channel=per_channel,
            reduce_range=reduced,
        )
    quantize_dynamic(plain, tmp_path / "3.onnx", reduce_range=reduced)
    files = [(tmp_path / f"{number}.onnx").read_bytes() for number in range(4)]
    ours, *stock = compare_here(files, [{"input": x[0]}] * 4, 1, 2.0).latencies_ms
    assert ours < 1.15 * min(stock)


def test_a_scheme_that_was_asked_for_is_not_left_for_a_faster_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_as(monkeypatch, {"none": 0.1, "int8": 9.0})
    report = converted(source, tmp_path, quantize="int8", profile=this_machine())
    assert report["chosen"].startswith("int8 static")
    assert {c["why"] for c in report["candidates"]} >= {"--quantize int8 was asked for", "not asked for"}


def test_more_loss_than_allowed_is_refused_with_the_layer_that_hurts_most(tmp_path: Path) -> None:
    """Labels that the model gets right by a hair: any rounding loses points."""
    torch.manual_seed(0)
    model = mlp()
    x = torch.randn(4000, 12)
    with torch.no_grad():
        logits = model(x)
        top = logits.topk(2, dim=1).values
        near = (top[:, 0] - top[:, 1]).argsort()[:60]
    np.savez(tmp_path / "data.npz", x=x[near].numpy(), y=logits[near].argmax(dim=1).numpy())
    source = save(model, tmp_path / "m.pth", (12,))
    with pytest.raises(ConversionError, match=r"loses .* points of accuracy.*, at most 0.0 allowed"):
        convert(plan(source, calibration=str(tmp_path / "data.npz"), quantize="int4", max_drop=0.0))
    report = convert(plan(source, calibration=str(tmp_path / "data.npz"), max_drop=0.0)).report
    chosen = next(c for c in report["candidates"] if c["name"] == report["chosen"])
    assert chosen["score"] == 1.0
    assert any(c["status"] == "refused" for c in report["candidates"])


def test_int8_that_was_asked_for_and_loses_too_much_is_refused_for_what_it_loses(tmp_path: Path) -> None:
    """And not for having nothing in int8 once every layer that hurts is left in float."""
    model, x = mlp(), torch.randn(200, 12, generator=torch.Generator().manual_seed(2))
    x[::50] *= 1000  # a few decide the ranges
    source = tmp_path / "mlp.pth"
    converter.save_checkpoint(model, source, example_input=x[:1], calibration=x)
    with pytest.raises(ConversionError, match=r"int8 static, .* (loses|disagrees) .*at most 0\.01 allowed"):
        convert(plan(source, quantize="int8", max_drop=0.01, trainable="none"))


class Sixfold(nn.Module):
    """One layer, six times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.last = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        for _ in range(6):
            x = x + 0.3 * torch.relu(self.shared(x))
        found: torch.Tensor = self.last(x)
        return found


@pytest.mark.parametrize("scheme", ["int8", "dynamic"])
def test_weights_that_layers_share_are_quantized_once(tmp_path: Path, scheme: str) -> None:
    source = save(Sixfold().eval(), tmp_path / "six.pth", (8,), calibrated=100, classes=3)
    report = converted(source, tmp_path, quantize=scheme, max_drop=100.0)
    (row,) = [row for row in report["candidates"] if row["name"] == report["chosen"]]
    assert row["size_bytes"] < 2 * 64 * 64 + 10_000
