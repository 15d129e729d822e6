"""Groups that share a head: by tag, by likeness, and whom a release is meant for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edge.contract.bundle import Bundle
from edge.learning.statistics import HeadStatistics
from edge.merging.groups import EVERYBODY, alike, groups, is_meant
from tests.support.contributions import Make

N_CLASSES, N_FEATURES = 6, 20
Generator = np.random.Generator


def device(world: int, classes: list[int], rng: Generator, n: int = 60) -> HeadStatistics:
    """Samples of some classes, which lie elsewhere in each world."""
    means = np.random.default_rng([7, world]).normal(0, 2.0, (N_CLASSES, N_FEATURES))
    labels = np.resize(classes, n)
    return HeadStatistics.of(means[labels] + rng.normal(size=(n, N_FEATURES)), labels, N_CLASSES)


@pytest.mark.parametrize("n", [12, 60])
def test_devices_of_one_world_are_alike_and_those_of_two_are_not(n: int) -> None:
    rng = np.random.default_rng(n)
    everything = list(range(N_CLASSES))
    sums = {f"{world}-{i}": device(world, everything, rng, n) for world in range(3) for i in range(4 - world)}
    assert alike(sums) == [("0-0", "0-1", "0-2", "0-3"), ("1-0", "1-1", "1-2"), ("2-0", "2-1")]
    assert alike({name: each for name, each in sums.items() if name[0] == "0"}) == [("0-0", "0-1", "0-2", "0-3")]


def test_nothing_speaks_against_joining_devices_without_a_common_class() -> None:
    rng = np.random.default_rng(0)
    chain = {"a": device(0, [0, 1], rng), "b": device(0, [2, 3], rng), "c": device(0, [4, 5], rng)}
    assert alike(chain) == [("a", "b", "c")]
    # What they have in common with a third one decides.
    chain |= {"d": device(1, [0, 1, 2], rng), "e": device(0, [1, 2, 4], rng)}
    assert alike(chain) == [("a", "b", "c", "e"), ("d",)]


def test_devices_that_cannot_be_compared_are_one_group() -> None:
    rng = np.random.default_rng(0)
    single = {str(c): device(0, [c], rng, 1) for c in range(3)}
    assert alike(single) == [("0", "1", "2")]
    assert alike({}) == [()]
    plain = {"a": device(0, [0, 1], rng), "b": device(1, [0, 1], rng)}
    impossible = HeadStatistics(-plain["a"].gram, plain["a"].moment)
    assert alike(plain | {"z": impossible}) == [("a", "z"), ("b",)], "it is refused where it is merged"


def test_contributions_are_divided_by_what_was_asked_for(
    bundle: Bundle, statistics_update: Make, delta_update: Make
) -> None:
    sent = [(f"d{seed}", statistics_update(seed)) for seed in range(3)]
    tags = {"d0": {"model": "a", "site": "x"}, "d1": {"model": "b"}}
    assert groups(bundle, sent, "", tags) == {EVERYBODY: sent}
    assert groups(bundle, sent, "tag.model", tags) == {
        ("tag.model=a",): sent[:1],
        ("tag.model=b",): sent[1:2],
        ("tag.model=",): sent[2:],
    }
    assert groups(bundle, sent, "cluster", tags) == {EVERYBODY: sent}, "one world is everybody's"
    gram, moment = (HeadStatistics.from_tensors(sent[2][1].tensors, 64, 10)).gram, sent[2][1].tensors["moment"]
    flipped = np.append(-np.ones(64), 1.0)
    turned = HeadStatistics(gram * np.outer(flipped, flipped), moment * flipped[:, None].astype(np.float32))
    other = ("d2", dataclasses.replace(sent[2][1], tensors=dict(turned.to_tensors())))
    change = ("d3", delta_update(0.1))
    assert groups(bundle, [*sent[:2], other, change], "cluster", {}) == {("d0", "d1"): sent[:2], ("d2",): [other]}
    assert groups(bundle, [change], "cluster", {}) == {EVERYBODY: [change]}, "changes cannot be compared"


def test_a_release_is_meant_for_all_for_names_or_for_a_tag() -> None:
    assert is_meant(["*"], "cam", {})
    assert is_meant(["a", "cam"], "cam", {})
    assert not is_meant(["a", "b"], "cam", {"a": "cam"})
    assert is_meant(["tag.model=a"], "cam", {"model": "a"})
    assert not is_meant(["tag.model=a"], "cam", {"model": "b"})
    assert not is_meant(["tag.model=a"], "cam", {})
    assert is_meant(["tag.model="], "cam", {"site": "a"})
    assert not is_meant(["tag.model="], "cam", {"model": "a"})
    assert not is_meant([], "cam", {})
