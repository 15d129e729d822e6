"""The benchmark of learning in a fleet: its tasks tell nothing they must not, and its baselines are what they say."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.fleet_learning.methods import FedAvg, Frozen, Slda, averaged, baselines, chosen
from benchmarks.fleet_learning.play import answers, played
from benchmarks.fleet_learning.tasks import TASKS, Array, Source, other_labels, rare_class, wrong_labels

MEANS = np.random.default_rng(0).normal(size=(10, 1, 8, 8)).astype(np.float32)


def drawn(n: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 10)
    return (MEANS[y] + rng.normal(size=(n, 1, 8, 8)) * 0.4).astype(np.float32), y


@pytest.fixture(scope="module")
def source() -> Source:
    """Pixels are the features; the head knows upright ones."""
    train, weight = drawn(300, 1), MEANS.reshape(10, 64)
    bias = -0.5 * np.square(weight).sum(axis=1)
    return Source(train, drawn(640, 2), drawn(100, 3), lambda x: x.reshape(len(x), -1), weight, bias)


def test_every_task_is_the_same_again_and_no_stream_has_a_sample_of_a_test(source: Source) -> None:
    for make in TASKS:
        one, again = (make(source, np.random.default_rng(4)) for _ in range(2))
        assert one.name == again.name
        for device, same in zip(one.devices, again.devices, strict=True):
            assert (device.x == same.x).all()
            assert (device.labels == same.labels).all()
            seen = {row.tobytes() for row in device.x}
            assert not seen & {row.tobytes() for row in device.test_x}


def test_tasks_are_what_they_are_called(source: Source) -> None:
    devices = other_labels(source, np.random.default_rng(0)).devices
    assert [len(set(device.y)) for device in devices] == [4] * 5
    assert set(devices[0].test_y) == set(range(10))
    devices = rare_class(source, np.random.default_rng(0)).devices
    assert {int((device.y == 7).sum()) for device in devices} == {2}
    devices = wrong_labels(source, np.random.default_rng(0)).devices
    shares = [float((device.y != device.labels).mean()) for device in devices]
    assert shares[0] > 0.8
    assert all(0.1 < share < 0.3 for share in shares[1:])


def test_baselines_learn_and_average_as_they_say(source: Source) -> None:
    task = other_labels(source, np.random.default_rng(0))
    frozen = played(task, Frozen(task, 0))
    assert frozen["kb"] == 0
    fed = played(task, FedAvg(task, 0, 0.3))
    assert fed["end"] > frozen["end"]
    assert fed["end"] == pytest.approx(fed["worst"]), "all have the server's head"
    assert fed["kb"] > 0
    slda = Slda(task, 0)
    before = slda.predict(0, task.train_x)
    assert (before == task.train_y).mean() > 0.9, "it begins with what the training data say"
    assert played(task, slda)["on_the_way"] > frozen["on_the_way"]
    mean = averaged([([np.ones(2), np.zeros(1)], 1), ([np.zeros(2), np.ones(1)], 3)])
    np.testing.assert_allclose(mean[0], [0.25, 0.25])
    np.testing.assert_allclose(mean[1], [0.75])


OWN = """
import numpy as np

class Mine:
    def __init__(self, task, seed): self.names = len(task.bias)
    def predict(self, device, x): return np.zeros(len(x), int)
    def learn(self, device, x, label): assert x.shape == (64,)
    def exchange(self): return 8

class One(Mine):
    def predict(self, device, x): return 0
"""


def test_a_method_of_somebody_else_runs_whatever_is_chosen_of_ours(source: Source, tmp_path: Path) -> None:
    (tmp_path / "FedAvgOrSo.py").write_text(OWN)
    theirs = f"{tmp_path / 'FedAvgOrSo.py'}:Mine"
    assert list(chosen(baselines(), ["frozen"], [theirs])) == ["frozen", theirs]
    assert list(chosen(baselines(), [], [theirs])) == [*baselines(), theirs]
    task = other_labels(source, np.random.default_rng(0))
    result = played(task, chosen(baselines(), ["frozen"], [theirs])[theirs](task, 0))
    assert result["end"] == pytest.approx(0.1, abs=0.02)
    one = chosen({}, [], [f"{tmp_path / 'FedAvgOrSo.py'}:One"]).popitem()[1](task, 0)
    with pytest.raises(ValueError, match="expected 3 classes for 3 samples"):
        answers(one, 0, task.devices[0].x[:3])


@pytest.mark.parametrize(
    ("only", "theirs", "says"),
    [(["nobody"], [], "no method is called so"), ([], ["gone.py:Mine"], "a file that is there"),
     ([], ["Mine"], "a file that is there"), ([], [f"{__file__}:Nobody"], "has no class 'Nobody'")],
)  # fmt: skip
def test_a_method_that_is_not_there_is_refused(only: list[str], theirs: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        chosen(baselines(), only, theirs)
