import numpy as np

from edge.simulator.scenario import World
from edge.simulator.world import Recording, camera_of, rows_of, wrong_label

X = np.arange(2 * 1 * 3 * 3, dtype=np.float32).reshape(2, 1, 3, 3)
RECORDING = Recording(X, np.array([0, 1]))


def test_a_plain_world_shows_what_was_recorded() -> None:
    rng = np.random.default_rng(0)
    assert (camera_of(World(), RECORDING, rng).see(X[1], rng) == X[1]).all()


def test_a_camera_changes_what_it_sees_and_keeps_type_and_shape() -> None:
    rng = np.random.default_rng(0)
    world = World(gain=(2.0, 2.0), offset=(1.0, 1.0), turned=1.0)
    seen = camera_of(world, RECORDING, rng).see(X[0], rng)
    expected = np.rot90(X[0], axes=(-2, -1)) * 2 + X.std()
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    noisy = camera_of(World(noise=0.5), RECORDING, rng)
    assert noisy.noise == np.float32(X.std()) * 0.5
    assert (noisy.see(X[0], rng) != X[0]).all()


def test_what_cannot_be_turned_or_brightened_is_shown_as_it_is() -> None:
    rng = np.random.default_rng(0)
    world = World(gain=(3.0, 3.0), noise=1.0, turned=1.0)
    tokens = Recording(np.arange(12).reshape(2, 6), np.array([0, 1]))
    assert (camera_of(world, tokens, rng).see(tokens.x[0], rng) == tokens.x[0]).all()
    wide = Recording(np.zeros((2, 2, 5), np.float32), np.array([0, 1]))
    assert not camera_of(world, wide, rng).is_turned


def test_a_device_sees_so_many_classes_and_wrong_labels_are_of_another_one() -> None:
    y = np.arange(100) % 10
    recording = Recording(np.zeros((100, 2), np.float32), y)
    seen = {tuple(sorted(set(y[rows_of(recording, 3, np.random.default_rng(i))]))) for i in range(20)}
    assert {len(each) for each in seen} == {3}
    assert len(seen) > 1
    assert len(rows_of(recording, 0, np.random.default_rng(0))) == 100
    rng = np.random.default_rng(0)
    assert {wrong_label(2, 5, rng) for _ in range(100)} == {0, 1, 3, 4}
    assert wrong_label(0, 1, rng) == 0
