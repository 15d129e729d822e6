"""The networks that conversions are compared on, and the script's own arithmetic."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.convert_vs_peers import MIB, Result, Variant, goals, measure_all, ratio, run
from benchmarks.networks.training import LEAST_ACCURACY, NETWORKS, build, digits, enlarge, prepare


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder to work in and that of the smallest network, trained."""
    work = tmp_path_factory.mktemp("work")
    return work, prepare(NETWORKS["mlp"], work)


def test_a_network_is_trained_once_and_well(trained):
    work, folder = trained
    accuracy = float((folder / "ready").read_text().split()[1])
    assert accuracy > LEAST_ACCURACY
    written = (folder / "model.pth").stat().st_mtime_ns
    assert prepare(NETWORKS["mlp"], work) == folder
    assert (folder / "model.pth").stat().st_mtime_ns == written


def test_a_network_that_did_not_learn_is_compared_with_nothing(tmp_path):
    hasty = replace(NETWORKS["mlp"], epochs=1, learning_rate=1e-6)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"mlp is right on .*train it longer"):
            prepare(hasty, tmp_path)


def test_every_network_learns_digits_in_their_size():
    """A few steps on some digits; that all are learned well is seen whenever the benchmark makes its files."""
    images, labels = digits()
    for network in NETWORKS.values():
        if not network.size:
            continue
        x = torch.from_numpy(enlarge(images[:48], network.size).reshape(-1, *network.input_shape))
        y = torch.from_numpy(labels[:48])
        model = build(network)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), build(network).parameters(), strict=True))
        optimizer = torch.optim.AdamW(model.parameters(), network.learning_rate)
        losses = []
        for _ in range(8):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert model(x).shape == (48, 10)
        assert losses[-1] < losses[0] - 0.1, f"{network.name}: {losses}"


def test_stock_conversion_has_the_accuracy_of_the_network(tmp_path, trained):
    network, (_, folder) = NETWORKS["mlp"], trained
    variant = Variant(peer="onnxruntime", name="float", python=sys.executable)
    artifact = variant.artifact(tmp_path)
    converted = run(variant.conversion(network, folder, artifact, "generic-x86_64"), tmp_path / "log", watched=True)
    assert converted.error is None
    assert 100 * MIB < converted.peak_memory_bytes < 1024 * MIB  # torch alone is above the first
    evaluated = run(variant.process("evaluate", artifact, folder), tmp_path / "log")
    assert evaluated.answer["accuracy"] == float((folder / "ready").read_text().split()[1])
    results = {label: Result() for label in (variant.label, "onnxruntime broken")}
    broken = Variant(peer="onnxruntime", name="broken", python=sys.executable)
    (tmp_path / "converted").mkdir()
    artifact.rename(variant.artifact(tmp_path / "converted"))
    (tmp_path / "sample.npy").write_bytes((folder / "sample.npy").read_bytes())
    measure_all([broken, variant], tmp_path, results, 2, 3, 0.001)
    found = results[variant.label]
    assert (len(found.latency_ms), len(found.start_up_s), len(found.memory_bytes)) == (6, 2, 2)
    assert 0 < min(found.latency_ms) < 1e3 * min(found.start_up_s)
    assert min(found.memory_bytes) > 20 * MIB
    assert "exit 1" in (results[broken.label].error or "")
    assert results[broken.label].latency_ms == []


def test_ratios_are_those_of_the_same_moment():
    """A machine that is half as fast in every second turn."""
    ours, other = Result(latency_ms=[1.0, 2.0, 1.0, 2.0]), Result(latency_ms=[2.0, 4.0, 2.0, 4.0])
    assert ratio(ours, other) == 0.5
    assert ratio(ours, Result()) is None


def test_process_that_fails_leaves_its_last_words(tmp_path):
    ended = run([sys.executable, "-c", "raise SystemExit('out of luck')"], tmp_path / "log")
    assert ended.error == "exit 1: out of luck"


def test_memory_of_children_counts(tmp_path):
    child = "import time; x = bytearray(200 << 20); time.sleep(0.3)"
    parent = f"import subprocess, sys; x = bytearray(100 << 20); subprocess.run([sys.executable, '-c', {child!r}])"
    ended = run([sys.executable, "-c", parent], tmp_path / "log", watched=True)
    assert 300 * MIB < ended.peak_memory_bytes < 400 * MIB


def measured(accuracy: float, latency_ms: float, error: str | None = None) -> Result:
    return Result(
        conversion_s=3.0,
        conversion_memory_bytes=500 * MIB,
        accuracy=accuracy,
        latency_ms=[2 * latency_ms, latency_ms],
        error=error,
    )


@pytest.mark.parametrize(
    ("ours", "vnni", "expected"),
    [
        (measured(0.975, 1.0), False, {"loses": True, "latency": True, "1.5 times": True}),
        (measured(0.974, 1.03), False, {"loses": False, "latency": False, "1.5 times": True}),
        (measured(0.975, 1.02), True, {"loses": True, "latency": True, "1.5 times": None}),
        (Result(error="exit 4: broken"), False, {"loses": False, "latency": False, "1.5 times": False}),
    ],
)
def test_goals_compare_with_float_accuracy_and_the_best_peer(ours, vnni, expected):
    rows = {
        "onnxruntime float": measured(0.98, 2.0),
        "onnxruntime static": measured(0.97, 1.0),
        "edge-convert auto": ours,
    }
    found = [goal for goal in goals({"residual_cnn": rows}, vnni) if "edge-convert auto:" in goal.text]
    assert {key: goal.met for key in expected for goal in found if key in goal.text} == expected


def test_unknown_peer_is_refused_before_any_work(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "convert_vs_peers.py"
    line = [sys.executable, str(script), "--peers", "nosuch", "--work", str(tmp_path / "work")]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "nosuch: the peers are onnxruntime" in ended.stderr
    assert not (tmp_path / "work").exists()
