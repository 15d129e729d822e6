"""Merging changes by a policy, and what is remembered between merges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.contract.training import Parameters
from edge.merging.averaging import Contributed, MergeMemory, account_of, merge_changes
from edge.merging.deltas import Delta, mean_change
from edge.merging.policy import MergePolicy
from edge.merging.privacy import PrivacyAccountant
from edge.merging.server_optimizers import ServerOptimizer

BASE: Parameters = {"w": np.ones((3, 2), np.float32), "b": np.zeros(3, np.float32)}
OPTIMIZERS: dict[str, Any] = {"fedadam": "adam", "fedyogi": "yogi", "fedadagrad": "adagrad"}


def contributed(device: str, value: float, n: int = 10, **options: Any) -> Contributed:
    change = {name: np.full(array.shape, value, np.float32) for name, array in BASE.items()}
    return Contributed(device=device, delta=Delta(change=change, n_samples=n), has=options.get("has", {}))


HONEST = [contributed(f"d{i}", 0.1 + i / 100) for i in range(6)]


def merged(
    policy: MergePolicy, contributions: list[Contributed], memory: MergeMemory | None = None, seed: int = 0
) -> tuple[Parameters, MergeMemory]:
    return merge_changes(policy, BASE, contributions, memory or MergeMemory(), np.random.default_rng(seed))


def test_mean_is_weighted_by_samples() -> None:
    head, _ = merged(MergePolicy(), [contributed("a", 1.0, 10), contributed("b", 3.0, 30)])
    np.testing.assert_allclose(head["b"], 2.5)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum"])
def test_robust_rules_are_not_moved_by_one_garbage_device(rule: str) -> None:
    policy = MergePolicy(rule=rule)
    garbage = contributed("z", 1e6, n=10_000_000)
    head, _ = merged(policy, [*HONEST[:4], garbage])
    assert 0.1 <= head["b"][0] <= 0.14
    moved, _ = merged(MergePolicy(), [*HONEST[:4], garbage])
    assert moved["b"][0] > 1e5, "the mean is"


def test_device_with_many_lineages_has_one_voice() -> None:
    garbage = [contributed("z", 1e3) for _ in range(20)]
    head, _ = merged(MergePolicy(rule="median"), [*HONEST, *garbage])
    assert 0.1 <= head["b"][0] <= 0.16
    outvoted, _ = merged(MergePolicy(rule="median"), [*HONEST, *[contributed(f"z{i}", 1e3) for i in range(20)]])
    assert outvoted["b"][0] == 1e3, "as many devices do outvote"


def test_too_few_devices_for_the_assumed_garbage_are_refused() -> None:
    with pytest.raises(LearningError, match="too few"):
        merged(MergePolicy(rule="krum"), HONEST[:4])


def test_nothing_to_merge_is_refused() -> None:
    for rule in ("mean", "median", "fedadam"):
        with pytest.raises(LearningError):
            merged(MergePolicy(rule=rule), [])


def test_changes_are_clipped_to_the_norm() -> None:
    head, _ = merged(MergePolicy(clip_norm=0.5), [contributed("a", 100.0)])
    norm = np.sqrt(sum(np.square(head[name] - BASE[name]).sum() for name in BASE))
    assert norm == pytest.approx(0.5, rel=1e-5)


def test_row_is_averaged_over_the_devices_that_have_it() -> None:
    partial = np.array([True, True, False])
    zeroed = contributed("b", 3.0, 30, has={"w": partial, "b": partial})
    for array in zeroed.delta.change.values():
        array[2] = 0.0
    head, _ = merged(MergePolicy(), [contributed("a", 1.0, 10), zeroed])
    np.testing.assert_allclose(head["b"], [2.5, 2.5, 1.0])
    np.testing.assert_allclose(head["w"][:, 0] - 1.0, [2.5, 2.5, 1.0])


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_optimizer_goes_on_from_its_memory(rule: str) -> None:
    policy = MergePolicy(rule=rule, server_rate=0.3)
    expected = ServerOptimizer(OPTIMIZERS[rule], 0.3)
    memory = MergeMemory()
    for contributions in (HONEST[:2], HONEST[3:]):
        head, memory = merged(policy, contributions, memory)
        wanted = expected.step(BASE, mean_change(BASE, [each.delta for each in contributions]))
        np.testing.assert_allclose(head["w"], wanted["w"], rtol=1e-6)
    anew, _ = merged(policy, HONEST[3:])
    assert not np.allclose(head["w"], anew["w"], rtol=1e-3), "the memory matters"
    other, _ = merged(MergePolicy(rule=rule), HONEST[3:], MergeMemory(optimizer=b"damaged"))
    np.testing.assert_array_equal(other["w"], merged(MergePolicy(rule=rule), HONEST[3:])[0]["w"])


def test_memory_of_another_rule_or_head_is_not_used() -> None:
    _, memory = merged(MergePolicy(rule="fedadam"), HONEST)
    head, _ = merged(MergePolicy(rule="fedyogi"), HONEST, memory)
    np.testing.assert_array_equal(head["w"], merged(MergePolicy(rule="fedyogi"), HONEST)[0]["w"])
    wider = {"w": np.ones((4, 2), np.float32), "b": np.zeros(4, np.float32)}
    change = {name: np.full(array.shape, 0.1, np.float32) for name, array in wider.items()}
    each = Contributed(device="a", delta=Delta(change=change, n_samples=1), has={})
    grown, _ = merge_changes(MergePolicy(rule="fedadam"), wider, [each], memory, np.random.default_rng(0))
    assert grown["w"].shape == (4, 2)


NOISY = MergePolicy(noise_multiplier=2.0, clip_norm=1.0, expected_devices=6)


def test_noise_is_paid_for_in_every_merge() -> None:
    memory = MergeMemory()
    heads = []
    for _ in range(3):
        head, memory = merged(NOISY, HONEST, memory, seed=len(heads))
        heads.append(head["w"])
    expected = PrivacyAccountant()
    expected.spend(2.0, rounds=3)
    assert account_of(memory).epsilon(1e-5) == pytest.approx(expected.epsilon(1e-5))
    assert account_of(memory).epsilon(1e-5) > account_of(merged(NOISY, HONEST)[1]).epsilon(1e-5) > 0
    assert not np.array_equal(heads[0], heads[1]), "the noise is another one each time"


def test_noise_has_the_promised_size_and_divides_by_the_expected_devices() -> None:
    wide: Parameters = {"w": np.zeros((200, 100), np.float32)}
    change = {"w": np.zeros((200, 100), np.float32)}
    one = Contributed(device="a", delta=Delta(change=change, n_samples=1), has={})
    head, _ = merge_changes(NOISY, wide, [one], MergeMemory(), np.random.default_rng(3))
    assert head["w"].std() == pytest.approx(2.0 * 1.0 / 6, rel=0.02)


def test_without_noise_nothing_is_paid() -> None:
    assert account_of(merged(MergePolicy(clip_norm=1.0), HONEST)[1]).epsilon(1e-5) == 0.0


def test_account_that_cannot_be_read_stops_noisy_merges() -> None:
    with pytest.raises(LearningError, match="not known"):
        merged(NOISY, HONEST, MergeMemory(account=b"damaged"))


def test_optimizer_takes_the_noisy_mean() -> None:
    policy = MergePolicy(rule="fedadam", noise_multiplier=2.0, clip_norm=1.0, expected_devices=6)
    head, memory = merged(policy, HONEST)
    assert memory.account
    assert memory.optimizer
    assert np.isfinite(head["w"]).all()
