"""The executors compute the same and can take over from each other; the fastest possible one is chosen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from converter.head.gradient.training_graph import build_training_graph
from converter.head.split import FEATURES, Head
from converter.head.torchscript.archive import torch_head
from edge.contract import manifest as m
from edge.contract.bundle import Bundle, members_of, write_bundle
from edge.contract.errors import BundleError, ConfigError, LearningError
from edge.contract.manifest import HeadSpec, LinearLayer, Manifest, ParameterSpec
from edge.contract.recipe import TrainingRecipe
from edge.contract.tensorspec import TensorSpec
from edge.contract.training import FloatArray, TrainStep
from edge.inference.numpy_trainer import NumpyTrainer
from edge.inference.onnx_providers import has_cuda
from edge.inference.trainers import GPU_FILES, open_trainer
from tests.edge.inference.reference import (
    NETWORKS,
    RATES,
    VARIANTS,
    Reference,
    batches,
    distance,
    head_of,
    network,
    onnx_trainer,
    torch_trainer,
)

ROOT = Path(__file__).parents[3]
RECIPES = {
    "sgd": TrainingRecipe(),
    "sgd, everything": TrainingRecipe(loss="huber", **VARIANTS["all"]),
    "nesterov, everything": TrainingRecipe(loss="binary-cross-entropy", optimizer="nesterov", **VARIANTS["all"]),
    "adam": TrainingRecipe(loss="mean-squared-error", optimizer="adam", epsilon=1e-3),
    "adamw, everything": TrainingRecipe(optimizer="adamw", **VARIANTS["all"] | {"epsilon": 1e-3}),
}
IS_LINEAR = ("linear", "linear without bias")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linear_of(head: Head) -> LinearLayer:
    weight, *bias = sorted(head.parameters, key=lambda name: -head.parameters[name].ndim)
    return LinearLayer(weight=weight, bias=bias[0] if bias else None, input=FEATURES)


def numpy_trainer(head: Head, recipe: TrainingRecipe) -> NumpyTrainer:
    return NumpyTrainer(recipe, linear_of(head), head.parameters)


def executors(kind: str, head: Head, recipe: TrainingRecipe) -> dict[str, TrainStep]:
    found: dict[str, TrainStep] = {"onnx": onnx_trainer(head, recipe), "torch": torch_trainer(head, recipe)}
    return found | ({"numpy": numpy_trainer(head, recipe)} if kind in IS_LINEAR else {})


def everything(step: TrainStep) -> dict[str, FloatArray]:
    return {**step.parameters(), **step.memory()}


def head(kind: str) -> Head:
    return head_of(*network(kind))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_all_executors_give_the_same_parameters_and_memory(kind: str, recipe: str) -> None:
    one = head(kind)
    steps = executors(kind, one, RECIPES[recipe])
    reference = Reference(network(kind)[0], RECIPES[recipe])
    rate = RATES[RECIPES[recipe].optimizer]
    for item in batches(RECIPES[recipe].loss, one.features.sample_shape, 4, 30):
        wanted = reference.step(*item, rate)
        for step in steps.values():
            assert step.step(*item, rate) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    for name, step in steps.items():
        assert distance(step.parameters(), reference.parameters()) <= 1e-5, name
        assert distance(everything(step), everything(steps["onnx"])) <= 1e-4, name
    assert distance(steps["onnx"].parameters(), one.parameters) > 1e-3


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_what_is_remembered_moves_between_executors(kind: str, recipe: str) -> None:
    one = head(kind)
    steps, straight = executors(kind, one, RECIPES[recipe]), onnx_trainer(one, RECIPES[recipe])
    current = steps["onnx"]
    for i, item in enumerate(batches(RECIPES[recipe].loss, one.features.sample_shape, 4, 24)):
        taking = list(steps.values())[i // 4 % len(steps)]
        if taking is not current:
            taking.load(current.parameters(), current.memory())
            left, taken = everything(current), everything(taking)
            assert {name: a.tobytes() for name, a in taken.items()} == {name: a.tobytes() for name, a in left.items()}
            current = taking
        current.step(*item, 0.01)
        straight.step(*item, 0.01)
    assert distance(current.parameters(), straight.parameters()) <= 1e-5


@pytest.mark.parametrize("kind", ["linear", "mlp", "attention"])
def test_all_executors_refuse_what_is_not_finite_and_keep_what_they_had(kind: str) -> None:
    one = head(kind)
    for name, step in executors(kind, one, RECIPES["adamw, everything"]).items():
        items = list(batches("cross-entropy", one.features.sample_shape, 4, 2))
        step.step(*items[0], 0.01)
        before = {key: array.tobytes() for key, array in everything(step).items()}
        spoilt = items[1][0].copy()
        spoilt.flat[0] = np.nan
        with pytest.raises(LearningError):
            step.step(spoilt, *items[1][1:], 0.01)
        assert {key: array.tobytes() for key, array in everything(step).items()} == before, name


def bundle_of(kind: str, path: Path, recipe: TrainingRecipe = RECIPES["sgd"], *, with_torch: bool = True) -> Bundle:
    """A bundle with a true head; its model is never opened here."""
    one = head(kind)
    graph = build_training_graph(one.graph, FEATURES, list(one.parameters), recipe)
    blobs = {
        m.MODEL: b"model", m.GOLDEN: b"golden", m.REPORT: b"{}", m.HEAD_INFER: one.graph.SerializeToString(),
        m.HEAD_TRAIN: graph.SerializeToString(), m.HEAD_PARAMETERS: safetensors.numpy.save(one.parameters),
    }  # fmt: skip
    if with_torch:
        blobs[m.HEAD_TORCHSCRIPT] = torch_head(one.graph, FEATURES, one.parameters)
    spec = HeadSpec(
        features=one.features,
        output=one.output,
        parameters=tuple(ParameterSpec(name=name, shape=array.shape) for name, array in one.parameters.items()),
        linear=linear_of(one) if kind in IS_LINEAR else None,
        learning_rate=0.01,
        trainable="*",
        training=recipe,
    )
    manifest = Manifest(
        name="test",
        inputs=(TensorSpec(name="input", dtype="float32", shape=("batch", *one.features.sample_shape)),),
        outputs=(TensorSpec(name=one.output, dtype="float32", shape=("batch", 4)),),
        class_names=tuple("abcd"),
        preprocessing={},
        quantization={},
        head=spec,
        golden_min_sqnr_db=20.0,
        source_digest="0" * 64,
        created_by="tests",
        members=members_of(blobs),
    )
    write_bundle(path, manifest, blobs)
    return Bundle.open(path)


def shipped(bundle: Bundle, step: TrainStep) -> bool:
    """Whether a step is as if it had never run."""
    same = all(np.array_equal(array, step.parameters()[name]) for name, array in bundle.head_parameters().items())
    slots = [array for name, array in step.memory().items() if name.startswith("slot.")]
    return same and not any(array.any() for array in slots)


@pytest.mark.parametrize("recipe", ["sgd", "adamw, everything"])
def test_auto_measures_and_gives_back_the_shipped_head(tmp_path: Path, recipe: str) -> None:
    bundle = bundle_of("linear", tmp_path / "a.edge", RECIPES[recipe])
    opened = open_trainer(bundle, gpu_files=())
    assert set(opened.measured_us) == {"numpy", "onnx"}
    assert opened.executor == min(opened.measured_us, key=lambda name: opened.measured_us[name])
    assert all(0.1 < us < 1e6 for us in opened.measured_us.values())
    assert opened.failed == {}
    assert shipped(bundle, opened.step)


class Ticks:
    """A stopwatch by which the steps of one executor take less than those of the others."""

    def __init__(self, *durations_s: float) -> None:
        self.durations_s, self.readings = durations_s, 0

    def __call__(self) -> float:
        executor, reading = divmod(self.readings, 2 * 18)
        self.readings += 1
        return self.durations_s[executor] if reading % 2 else 0.0


@pytest.mark.parametrize(("durations", "expected"), [((1.0, 2.0), "numpy"), ((2.0, 1.0), "onnx")])
def test_the_fastest_is_taken(tmp_path: Path, durations: tuple[float, ...], expected: str) -> None:
    bundle = bundle_of("linear", tmp_path / "a.edge")
    opened = open_trainer(bundle, clock=Ticks(*durations), gpu_files=())
    assert opened.executor == expected
    assert opened.measured_us == {"numpy": durations[0] * 1e6, "onnx": durations[1] * 1e6}


def test_torch_is_among_the_candidates_where_there_is_an_nvidia_device(tmp_path: Path) -> None:
    bundle = bundle_of("mlp", tmp_path / "a.edge", RECIPES["nesterov, everything"])
    opened = open_trainer(bundle, clock=Ticks(2.0, 1.0, 3.0, 3.0), gpu_files=(tmp_path,))
    expected = {"onnx", "torch"} | ({"torch-cuda"} if torch.cuda.is_available() else set())
    assert expected <= set(opened.measured_us)
    if not has_cuda():
        assert opened.executor == "torch"
    assert shipped(bundle, opened.step)
    assert (
        "torch"
        not in open_trainer(bundle_of("mlp", tmp_path / "b.edge", with_torch=False), gpu_files=(tmp_path,)).measured_us
    )


@pytest.mark.parametrize("executor", ["onnx", "numpy", "torch"])
def test_a_given_executor_is_taken(tmp_path: Path, executor: str) -> None:
    recipe = RECIPES["adamw, everything"]
    bundle = bundle_of("linear", tmp_path / "a.edge", recipe)
    opened = open_trainer(bundle, executor, gpu_files=())
    assert opened.executor.partition("-")[0] == executor
    assert shipped(bundle, opened.step)
    reference = Reference(network("linear")[0], recipe)
    for item in batches(recipe.loss, (6,), 4, 10):
        opened.step.step(*item, 0.01)
        reference.step(*item, 0.01)
    assert distance(opened.step.parameters(), reference.parameters()) <= 1e-5


def test_only_one_possible_executor_is_not_measured(tmp_path: Path) -> None:
    opened = open_trainer(bundle_of("conv", tmp_path / "a.edge"), gpu_files=())
    assert (opened.executor, opened.measured_us) == ("onnx", {})


def test_what_is_not_possible_is_refused_and_what_is_possible_said(tmp_path: Path) -> None:
    mlp = bundle_of("mlp", tmp_path / "mlp.edge", with_torch=False)
    with pytest.raises(ConfigError, match=r"executor 'cuda' is not known; expected one of auto, onnx, numpy, torch$"):
        open_trainer(mlp, "cuda")
    with pytest.raises(
        ConfigError, match=r"numpy cannot train this head: it is not one linear layer; possible: auto, onnx$"
    ):
        open_trainer(mlp, "numpy")
    with pytest.raises(ConfigError, match=r"has no head.torchscript.pt; possible: auto, onnx$"):
        open_trainer(mlp, "torch")


def test_an_executor_that_fails_leaves_the_others(tmp_path: Path) -> None:
    good = bundle_of("linear", tmp_path / "a.edge")
    manifest = good.manifest
    blobs = {role: good.read(role) for role in manifest.members} | {m.HEAD_TRAIN: b"no graph"}
    document = json.loads(manifest.encode())
    document["members"] = {
        role: {"digest": e.digest, "size_bytes": e.size_bytes} for role, e in members_of(blobs).items()
    }
    write_bundle(tmp_path / "b.edge", Manifest.decode(json.dumps(document).encode()), blobs)
    broken = Bundle.open(tmp_path / "b.edge")
    opened = open_trainer(broken, gpu_files=())
    assert opened.executor == "numpy"
    assert "does not load" in opened.failed["onnx"]
    with pytest.raises(BundleError, match="does not load"):
        open_trainer(broken, "onnx", gpu_files=())


PROGRAM = """
import sys
from edge.contract.bundle import Bundle
from edge.inference.trainers import open_trainer
opened = open_trainer(Bundle.open(sys.argv[1]))
print(opened.executor, 'torch' in sys.modules, 'onnx' in sys.modules)
"""


@pytest.mark.skipif(any(path.exists() for path in GPU_FILES), reason="there is an NVIDIA device")
def test_auto_does_not_import_torch_without_an_nvidia_device(tmp_path: Path) -> None:
    bundle = bundle_of("mlp", tmp_path / "a.edge")
    assert bundle.has(m.HEAD_TORCHSCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(bundle.path)],
        capture_output=True, text=True, check=False, timeout=120, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("onnx False False\n", 0), done.stderr


def test_blocked_torch_is_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of("mlp", tmp_path / "a.edge")
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it could not be found
    with pytest.raises(ConfigError, match="torch is not installed; possible: auto, onnx"):
        open_trainer(bundle, "torch", gpu_files=(tmp_path,))


@pytest.mark.skipif(not has_cuda(), reason="this onnxruntime has no CUDA provider")
def test_onnxruntime_on_cuda_is_measured(tmp_path: Path) -> None:
    opened = open_trainer(bundle_of("conv", tmp_path / "a.edge"))
    assert {"onnx", "onnx-cuda"} <= set(opened.measured_us) | set(opened.failed)
