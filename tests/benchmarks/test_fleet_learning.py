"""The benchmark of learning in a fleet: its tasks tell nothing they must not, and its baselines are what they say."""

import numpy as np
import pytest

from benchmarks.fleet_learning.methods import FedAvg, Frozen, Slda, averaged
from benchmarks.fleet_learning.play import played
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
