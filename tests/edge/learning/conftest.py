"""Every learner over real training steps, made anew as often as a test asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.manifest import LinearLayer
from edge.contract.projection import Projection
from edge.contract.recipe import HUBER, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.contract.training import FloatArray, Parameters, TrainStep
from edge.inference.numpy_trainer import NumpyTrainer
from edge.inference.onnx_trainer import OnnxTrainer
from edge.learning.closed_form import StatisticsLearner
from edge.learning.experts import Product
from edge.learning.layered import LayeredLearner
from edge.learning.learner import Learner
from edge.learning.lift import Lift
from edge.learning.lifted import lifted_learner
from edge.learning.sgd import SgdLearner
from edge.learning.solve import Method
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Targets, Task
from edge.learning.whitening import Whitening

Samples = tuple[FloatArray, Targets]
N_FEATURES, N_CLASSES = 64, 10
LINEAR = LinearLayer(weight="weight", bias="bias", input="features")


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A learner with the head that it learns.

    Attributes:
        name: Of the learner.
        make: A learner anew, for a seed.
        task: What its outputs mean.
        head: Its last layer.
        run: Outputs for features and parameters.
        samples: 96 labelled features.
        is_closed: Whether it solves for the head and knows no seed.
        is_whitened: Whether its parameters go through other coordinates and back, which rounds them.
    """

    name: str
    make: Callable[[int], Learner]
    task: Task
    head: LinearLayer
    run: Callable[[FloatArray, Parameters], FloatArray]
    samples: Samples = field(repr=False)
    is_closed: bool = False
    is_whitened: bool = False

    def new(self, seed: int = 0) -> Learner:
        """A learner anew."""
        return self.make(seed)

    def loss(self, learner: Learner, samples: Samples) -> float:
        """Share of wrong answers; of quantities the mean squared error."""
        outputs = self.run(samples[0], learner.parameters())
        if self.task.is_regression:
            return float(np.square(outputs - samples[1]).mean())
        return 1.0 - float(self.task.right(outputs, samples[1]).mean())


def linear_outputs(head: LinearLayer) -> Callable[[FloatArray, Parameters], FloatArray]:
    """Outputs of a linear layer."""

    def run(features: FloatArray, parameters: Parameters) -> FloatArray:
        assert head.bias is not None
        return np.asarray(features @ parameters[head.weight].T + parameters[head.bias])

    return run


def clouds(n: int, d: int, n_classes: int, seed: int) -> Samples:
    """Labelled features in overlapping clouds, such as a ReLU gives them."""
    rng = np.random.default_rng(seed)
    centers = rng.random((n_classes, d)) * 2
    labels = rng.integers(0, n_classes, n)
    features = np.maximum(centers[labels] + rng.normal(0, 0.5, (n, d)), 0)
    return features.astype(np.float32), labels


# A linear head of ten classes, from a bundle with statistics


def bundle_head(bundle: Bundle) -> LinearLayer:
    """The bundle's last layer."""
    assert bundle.manifest.head is not None
    assert bundle.manifest.head.linear is not None
    return bundle.manifest.head.linear


def shipped_statistics(bundle: Bundle) -> HeadStatistics:
    """Of the features in training."""
    return HeadStatistics.from_tensors(bundle.tensors(m.STATISTICS), N_FEATURES, N_CLASSES)


def new_statistics(
    bundle: Bundle,
    method: Method = "discriminant",
    forgetting: float = 1.0,
    projection: Projection | None = None,
) -> StatisticsLearner:
    """A closed-form learner of the bundle's head."""
    return StatisticsLearner(
        bundle_head(bundle),
        bundle.head_parameters(),
        Task(TrainingRecipe(), N_CLASSES),
        shipped_statistics(bundle).projected(projection),
        method,
        forgetting,
        projection,
    )


def new_lifted(bundle: Bundle, lift: Lift) -> StatisticsLearner:
    """The closed-form learner on lifted features."""
    task = Task(TrainingRecipe(), N_CLASSES)
    return lifted_learner(bundle_head(bundle), bundle.head_parameters(), task, shipped_statistics(bundle), lift)


def onnx_step(bundle: Bundle) -> OnnxTrainer:
    """The bundle's training graph."""
    assert bundle.manifest.head is not None
    return OnnxTrainer(bundle.read(m.HEAD_TRAIN), bundle.manifest.head.features.name, bundle.head_parameters())


def new_sgd(
    bundle: Bundle, seed: int = 0, per_class: int = 5, executor: str = "onnx", rate: float = 0.01
) -> SgdLearner:
    """An SGD learner of the bundle's head, whitened where it replays."""
    head = bundle_head(bundle)
    step: TrainStep = onnx_step(bundle)
    if executor == "numpy":
        step = NumpyTrainer(TrainingRecipe(), head, bundle.head_parameters())
    return SgdLearner(
        step,
        (N_FEATURES,),
        Task(TrainingRecipe(), N_CLASSES),
        rate,
        per_class=per_class,
        seed=seed,
        head=head,
        whitening=Whitening(shipped_statistics(bundle), head) if per_class else None,
    )


def bundle_rig(name: str, path: Path) -> Rig:
    """A learner of the digits bundle's head."""
    bundle = Bundle.open(path)
    lift = Lift(shipped_statistics(bundle))
    make: dict[str, Callable[[int], Learner]] = {
        "statistics": lambda _: new_statistics(bundle),
        "lifted": lambda _: new_lifted(bundle, lift),
        "statistics-projected": lambda _: new_statistics(bundle, projection=Projection(N_FEATURES, 48)),
        "statistics-forgetting": lambda _: new_statistics(bundle, forgetting=0.99),
        "ridge": lambda _: new_statistics(bundle, "ridge"),
        "ncm": lambda _: new_statistics(bundle, "means"),
        "sgd-onnx": lambda seed: new_sgd(bundle, seed),
        "sgd-numpy": lambda seed: new_sgd(bundle, seed, executor="numpy"),
        "sgd-plain": lambda seed: new_sgd(bundle, seed, per_class=0),
    }
    return Rig(
        name=name,
        make=make[name],
        task=Task(TrainingRecipe(), N_CLASSES),
        head=bundle_head(bundle),
        run=Product(bundle_head(bundle), lift),
        samples=clouds(96, N_FEATURES, N_CLASSES, 5),
        is_closed=not name.startswith("sgd"),
        is_whitened=name in ("sgd-onnx", "sgd-numpy"),
    )


BUNDLE_RIGS = (
    "statistics",
    "lifted",
    "statistics-projected",
    "statistics-forgetting",
    "ridge",
    "ncm",
    "sgd-onnx",
    "sgd-numpy",
    "sgd-plain",
)

# A head with a hidden layer

MLP_IN, MLP_HIDDEN, MLP_CLASSES = 12, 16, 4
MLP_FIRST = LinearLayer(weight="w1", bias="b1", input="features")
MLP_LAST = LinearLayer(weight="w2", bias="b2", input="hidden")


def mlp_parameters() -> Parameters:
    """A head that knows nothing."""
    rng = np.random.default_rng(2)
    return {
        "w1": rng.normal(0, 0.4, (MLP_HIDDEN, MLP_IN)).astype(np.float32),
        "b1": np.zeros(MLP_HIDDEN, np.float32),
        "w2": rng.normal(0, 0.3, (MLP_CLASSES, MLP_HIDDEN)).astype(np.float32),
        "b2": np.zeros(MLP_CLASSES, np.float32),
    }


def mlp_hidden(features: FloatArray, parameters: Parameters) -> FloatArray:
    """What its last layer takes."""
    return np.asarray(np.maximum(features @ parameters["w1"].T + parameters["b1"], 0.0))


def mlp_outputs(features: FloatArray, parameters: Parameters) -> FloatArray:
    """Its logits."""
    return np.asarray(mlp_hidden(features, parameters) @ parameters["w2"].T + parameters["b2"])


@cache
def mlp_training_graph() -> bytes:
    """Its training graph, as the converter makes it."""
    from onnx import helper

    from converter.graph.build import make_model, tensor_info
    from converter.head.gradient.training_graph import build_training_graph

    nodes = [
        helper.make_node("Gemm", ["features", "w1", "b1"], ["before"], "first", transB=1),
        helper.make_node("Relu", ["before"], ["hidden"], "relu"),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"], "last", transB=1),
    ]
    inputs = [tensor_info("features", ("batch", MLP_IN), np.float32)]
    inputs += [tensor_info(name, array.shape, np.float32) for name, array in mlp_parameters().items()]
    head = make_model("head", nodes, inputs, [tensor_info("logits", ("batch", MLP_CLASSES), np.float32)], [])
    return bytes(build_training_graph(head, "features", list(mlp_parameters())).SerializeToString())


def mlp_whitening() -> Whitening:
    """Of the layer that takes its features, as if statistics of 200 samples had been shipped."""
    features, labels = clouds(200, MLP_IN, MLP_CLASSES, 7)
    last = HeadStatistics.of(mlp_hidden(features, mlp_parameters()), labels, MLP_CLASSES)
    return Whitening(HeadStatistics.of(features, labels, MLP_CLASSES), MLP_FIRST, last)


def new_mlp_sgd(seed: int = 0, whitening: Whitening | None = None, rehearsals: int = 0) -> SgdLearner:
    """SGD on all layers of that head."""
    return SgdLearner(
        OnnxTrainer(mlp_training_graph(), "features", mlp_parameters()),
        (MLP_IN,),
        Task(TrainingRecipe(), MLP_CLASSES),
        0.05,
        per_class=20,
        seed=seed,
        head=MLP_LAST,
        whitening=whitening,
        run=mlp_outputs,
        rehearsals=rehearsals,
    )


def new_layered(seed: int = 0) -> LayeredLearner:
    """The last layer from statistics, SGD for all."""
    task = Task(TrainingRecipe(), MLP_CLASSES)
    return LayeredLearner(new_mlp_sgd(seed), MLP_LAST, task, mlp_hidden, None)


def mlp_rig(name: str) -> Rig:
    """A learner of the head with a hidden layer."""
    make: dict[str, Callable[[int], Learner]] = {
        "layered": new_layered,
        "sgd-mlp": new_mlp_sgd,
        "sgd-mlp-whitened": lambda seed: new_mlp_sgd(seed, mlp_whitening(), 1),
    }
    return Rig(
        name=name,
        make=make[name],
        task=Task(TrainingRecipe(), MLP_CLASSES),
        head=MLP_LAST,
        run=mlp_outputs,
        samples=clouds(96, MLP_IN, MLP_CLASSES, 5),
        is_whitened=name == "sgd-mlp-whitened",
    )


# Quantities

N_INPUTS, N_QUANTITIES = 8, 2


def quantities(n: int, seed: int, turn: float = 1.0) -> Samples:
    """Features with two quantities that are linear in them, and noise of 0.1."""
    rng = np.random.default_rng(seed)
    features = rng.normal(1.0, 1.0, (n, N_INPUTS))
    slopes = np.random.default_rng(99).normal(0, 1, (N_INPUTS, N_QUANTITIES))
    targets = turn * (features @ slopes) + 3.0 + rng.normal(0, 0.1, (n, N_QUANTITIES))
    return features.astype(np.float32), targets.astype(np.float32)


def quantity_rig(name: str) -> Rig:
    """A learner of two quantities."""
    task = Task(TrainingRecipe(loss=HUBER if name == "huber" else MEAN_SQUARED_ERROR), N_QUANTITIES)
    shipped = {"weight": np.zeros((N_QUANTITIES, N_INPUTS), np.float32), "bias": np.zeros(N_QUANTITIES, np.float32)}
    before = quantities(200, 1, turn=0.0)
    prior = HeadStatistics.of_targets(*before, np.ones(200))

    def make(seed: int) -> Learner:
        if name == "ridge-quantities":
            return StatisticsLearner(LINEAR, shipped, task, prior, "ridge")
        step = NumpyTrainer(task.recipe, LINEAR, shipped)
        whitening = Whitening(prior, LINEAR)
        return SgdLearner(step, (N_INPUTS,), task, 0.01, per_class=5, seed=seed, head=LINEAR, whitening=whitening)

    return Rig(
        name=name,
        make=make,
        task=task,
        head=LINEAR,
        run=linear_outputs(LINEAR),
        samples=quantities(96, 5),
        is_closed=name == "ridge-quantities",
        is_whitened=name != "ridge-quantities",
    )


QUANTITY_RIGS = ("ridge-quantities", "mean-squared-error", "huber")
MLP_RIGS = ("layered", "sgd-mlp", "sgd-mlp-whitened")
# One of every kind: sgd-onnx is sgd-numpy with the training step of sgd-plain.
CLASS_RIGS = [name for name in (*BUNDLE_RIGS, *MLP_RIGS) if name != "sgd-onnx"]


def make_rig(name: str, digits_bundle: Path) -> Rig:
    """A learner by name."""
    if name in BUNDLE_RIGS:
        return bundle_rig(name, digits_bundle)
    return mlp_rig(name) if name in MLP_RIGS else quantity_rig(name)


@pytest.fixture(params=[*CLASS_RIGS, *QUANTITY_RIGS])
def rig(request: pytest.FixtureRequest, digits_bundle: Path) -> Rig:
    """Each kind of learner."""
    return make_rig(request.param, digits_bundle)


@pytest.fixture(params=CLASS_RIGS)
def class_rig(request: pytest.FixtureRequest, digits_bundle: Path) -> Rig:
    """Each learner of classes."""
    return make_rig(request.param, digits_bundle)


@pytest.fixture(params=["sgd-onnx", "sgd-numpy", "sgd-plain", *MLP_RIGS, "mean-squared-error", "huber"])
def delta_rig(request: pytest.FixtureRequest, digits_bundle: Path) -> Rig:
    """Each learner that contributes its change."""
    return make_rig(request.param, digits_bundle)


@pytest.fixture
def bundle(digits_bundle: Path) -> Bundle:
    """The digits bundle, opened."""
    return Bundle.open(digits_bundle)


@pytest.fixture
def samples() -> Samples:
    """96 labelled features of ten classes."""
    return clouds(96, N_FEATURES, N_CLASSES, 5)


@pytest.fixture
def new_statistics_learner(bundle: Bundle) -> Callable[..., StatisticsLearner]:
    """The closed-form learner only."""
    return lambda **options: new_statistics(bundle, **options)


def same(found: dict[str, npt.NDArray[Any]], expected: dict[str, npt.NDArray[Any]], tolerance: float = 0.0) -> None:
    """Assert that arrays are the same by name, to a part of the largest."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = float(np.abs(array).max(initial=0.0)) or 1.0
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale, err_msg=name)
