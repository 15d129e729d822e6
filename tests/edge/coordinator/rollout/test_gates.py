"""What canaries tell: failures, paired answers, and what nobody can tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.channel.messages import Pairs
from edge.coordinator.rollout import gates
from edge.coordinator.rollout.gates import LOOKS, Decision, health
from edge.coordinator.rollout.plan import Health, Model

LIMITS, RULE = Health(), Model()


def canaries(
    mean: float, n: int = 100, pairs: int = 160, liars: int = 0, seed: int = 0, **more: float
) -> dict[str, Pairs]:
    """As the benchmark simulates them."""
    rng = np.random.default_rng(seed)
    gain = np.clip(rng.normal(mean, 0.04, n), -0.4, 0.4)
    differ = 0.06 + np.abs(gain)
    found = rng.multinomial(pairs, np.stack([(differ + gain) / 2, (differ - gain) / 2, 1 - differ], axis=1))
    lie = (pairs, 0) if mean < 0 else (0, pairs)
    return {
        f"c{i}": Pairs(
            labelled=pairs,
            only_new=float(lie[0] if i < liars else new),
            only_old=float(lie[1] if i < liars else old),
            compared=pairs,
            differ=float(new + old),
            **more,
        )
        for i, (new, old, _) in enumerate(found)
    }


def test_failures_stop_above_share_and_number_and_one_of_one_is_all() -> None:
    def decided(counted: int, failed: int) -> tuple[str, bool]:
        found = health(counted, failed, LIMITS)
        return str(found.decision), found.is_severe

    assert [decided(10, failed) for failed in (0, 1, 2)] == [("pass", False), ("pass", False), ("stop", False)]
    assert decided(100, 5) == ("pass", False), "a share must be above the limit"
    assert decided(100, 6) == ("stop", False)
    assert decided(100, 21) == ("stop", True)
    assert decided(10, 5) == ("stop", True)
    assert decided(1, 1) == ("stop", False)
    assert decided(0, 0) == ("pass", False)


@pytest.mark.parametrize("liars", [0, 10])
def test_good_passes_and_bad_is_stopped_whatever_a_tenth_says(liars: int) -> None:
    for seed in range(20):
        assert gates.model(canaries(0.05, liars=liars, seed=seed), RULE).decision is Decision.PASS
        assert gates.model(canaries(-0.05, liars=liars, seed=seed), RULE).decision is Decision.STOP
        assert gates.model(canaries(-0.02, liars=liars, seed=seed), RULE).decision is not Decision.PASS


def test_without_labels_agreement_is_proof_and_difference_is_none() -> None:
    def unlabelled(share: float) -> dict[str, Pairs]:
        return {f"c{i}": Pairs(compared=320, differ=round(320 * share)) for i in range(100)}

    assert gates.model(unlabelled(0.0), RULE).decision is Decision.PASS
    found = gates.model(unlabelled(0.9), RULE)
    assert (found.decision, found.code) == (Decision.UNDECIDED, "few-judges")
    assert found.detail == "0 of 100 canaries have labels, 30 needed; answers agree on 10.0%"
    nothing = gates.model({f"c{i}": Pairs() for i in range(100)}, RULE)
    assert (nothing.decision, nothing.code) == (Decision.UNDECIDED, "few-judges")
    assert "nothing compares" in nothing.detail


def test_reasons_to_hold_have_numbers_and_names() -> None:
    few = dict(list(canaries(0.05).items())[:29]) | {f"x{i}": Pairs() for i in range(71)}
    assert gates.model(few, RULE).code == "few-judges"
    undecided = gates.model(canaries(0.0, liars=10), RULE)
    assert (undecided.code, undecided.decision) == ("undecided", Decision.UNDECIDED)
    assert "points by 100 judges of 100 canaries" in undecided.detail
    hurt = canaries(0.05) | {f"c{i}": Pairs(labelled=160, only_old=60, compared=160, differ=60) for i in range(20)}
    found = gates.model(hurt, replace(RULE, liars=0.0))
    assert (found.code, found.decision) == ("hurt", Decision.UNDECIDED)
    assert "worse on c0, c1" in found.detail
    alike = canaries(0.05) | {f"c{i}": Pairs(labelled=160) for i in range(20)}
    assert gates.model(alike, RULE).code == "few-differ"


def test_slower_stops_and_as_fast_passes() -> None:
    def with_speed(ratio: float) -> dict[str, Pairs]:
        rng = np.random.default_rng(0)
        noise = rng.normal(1.0, 0.05, 100)
        found = canaries(0.05)
        return {
            n: replace(p, old_ms=8.0, new_ms=8.0 * ratio * e) for (n, p), e in zip(found.items(), noise, strict=True)
        }

    assert gates.model(with_speed(1.0), RULE).decision is Decision.PASS
    found = gates.model(with_speed(2.0), RULE)
    assert (found.decision, found.code) == (Decision.STOP, "worse-speed")
    first = {name: replace(Pairs(), old_ms=8.0, new_ms=16.0) for name in map(str, range(10))}
    assert gates.screen(first, RULE).code == "looks-worse-speed"
    few = [
        gates.screen({"a": Pairs(old_ms=8.0, new_ms=16.0), "b": Pairs(old_ms=8.0, new_ms=ms)}, RULE) for ms in (11, 9)
    ]
    assert [each.code for each in few] == ["looks-worse-speed", ""], "as accuracy: on each of them"
    assert few[1].detail == "accuracy not judged: nothing compared its answers with those from before"


def test_every_value_of_a_tag_must_pass_by_itself() -> None:
    bad, good = canaries(-0.05, 40), {f"g{name}": pairs for name, pairs in canaries(0.05, 160).items()}
    groups = {"tag.site = north": list(bad), "tag.site = south": list(good)}
    assert gates.model(bad | good, replace(RULE, liars=0.02)).decision is Decision.PASS
    found = gates.model(bad | good, replace(RULE, liars=0.02), groups)
    assert found.decision is Decision.STOP
    assert found.detail.startswith("tag.site = north: ")


def test_screen_holds_what_looks_worse_and_proves_nothing() -> None:
    held = [gates.screen(canaries(-0.05, 10, seed=seed), RULE).decision is Decision.UNDECIDED for seed in range(40)]
    passed = [gates.screen(canaries(0.05, 10, seed=seed), RULE).decision is Decision.PASS for seed in range(40)]
    lied = [gates.screen(canaries(-0.05, 10, liars=1, seed=seed), RULE).code for seed in range(40)]
    assert sum(held) >= 38, "99.3 % by the benchmark"
    assert sum(passed) == 40
    assert lied.count("looks-worse-accuracy") >= 37
    # The only one there is cannot lie about more than that a person looks; by chance it holds nothing.
    alone = [gates.screen({"a": Pairs(labelled=n, only_old=lost)}, RULE) for n, lost in ((160, 160), (80, 8), (20, 2))]
    assert [each.code for each in alone] == ["looks-worse-accuracy", "looks-worse-accuracy", ""]
    assert alone[2].detail.startswith("accuracy not judged: 1 of 1 canaries have 20 labels")
    assert gates.screen({"a": Pairs(labelled=160, only_old=160), "b": Pairs()}, RULE).decision is Decision.PASS
    assert gates.screen(canaries(-0.05, 10, pairs=12), RULE).decision is Decision.PASS, "too few pairs"
    few = gates.screen({"a": Pairs(labelled=64, only_old=5), "b": Pairs(labelled=64, only_new=1, only_old=4)}, RULE)
    assert (few.code, "on each of them" in few.detail) == ("looks-worse-accuracy", True)
    mixed = gates.screen({"a": Pairs(labelled=64, only_old=30), "b": Pairs(labelled=64, only_old=1)}, RULE)
    assert mixed.decision is Decision.PASS, "one may lie"
    assert mixed.detail == "accuracy not judged: 2 of 2 canaries have 20 labels, 4 needed", (
        "and it is not called judged"
    )
    rest = {"a": Pairs(labelled=80, only_old=8)}, {"a": Pairs(labelled=80, only_old=1)}
    found = [gates.screen(each, RULE, n_failed=1) for each in rest]
    assert [each.code for each in found] == ["looks-worse-accuracy", ""], "who refused it has spoken"
    assert (
        "-10.0 points by 1 judge of 1 canaries: it looks worse on each of them and failed on 1 more" in found[0].detail
    )
    random_head = {str(i): Pairs(compared=64, differ=58) for i in range(10)}
    assert gates.screen(random_head, RULE).code == "looks-different"
    assert gates.screen({str(i): Pairs(compared=64, differ=2) for i in range(10)}, RULE).decision is Decision.PASS


def test_the_gate_looks_five_times_at_the_median_judge() -> None:
    assert gates.look({}, 0) == 0
    assert [gates.look(canaries(0.0, pairs=n), 0) for n in (19, *LOOKS, 5000)] == [0, 1, 2, 3, 4, 5, 5]
    assert gates.look(canaries(0.0, pairs=40), 3) == 3, "what was seen is not unseen"
    few = canaries(0.0, 10, pairs=40) | {f"x{i}": Pairs(compared=90) for i in range(60)}
    assert gates.look(few, 0) == 3, "where too few have labels the answers are compared"
