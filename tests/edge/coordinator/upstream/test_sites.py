"""Two tiers give the head that one merge of all devices gives, whatever happens to the line and to the sites."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edge.channel import confusion
from edge.channel.messages import Telemetry
from edge.contract.bundle import Bundle
from edge.coordinator.devices.admission import Decision
from edge.coordinator.records import Release
from edge.coordinator.rollout.states import RolloutEvent
from edge.learning.exchange import HeadRelease, HeadUpdate
from tests.support.contributions import Make, merged_head
from tests.support.sites import Tier, Tree, later


@pytest.fixture
def tree(tmp_path: Path, digits_bundle: Path) -> Iterator[Tree]:
    made = Tree(tmp_path, digits_bundle, ["lisbon", "porto"])
    yield made
    made.close()


class Flat:
    """The head of one merge of all these."""

    def __init__(self, bundle: Bundle, updates: list[HeadUpdate]) -> None:
        self.head = merged_head(bundle, updates, screen=False)
        self.largest = max(1.0, *(float(np.abs(array).max()) for array in self.head.parameters.values()))

    def is_that_of(self, tier: Tier, within: float = 1e-6) -> bool:
        found = tier.head()
        if found is None or found.class_names != self.head.class_names:
            return False
        apart = max(np.abs(found.parameters[name] - array).max() for name, array in self.head.parameters.items())
        return bool(apart <= within)

    def is_below(self, site: Tier) -> bool:
        """What comes down to sites is rounded to float32, as it is for devices."""
        return self.is_that_of(site, 1e-5 * self.largest)

    def is_everywhere(self, tree: Tree) -> bool:
        return all(self.is_below(site) for site in tree.sites.values()) and self.is_that_of(tree.top)


def test_two_tiers_are_one_merge_above_and_at_every_site(tree: Tree, bundle: Bundle, statistics_update: Make) -> None:
    one, two, three = (statistics_update(i) for i in range(3))
    four = statistics_update(3, added=["ship"])  # a class that only one device of one site has
    for site, update in (("lisbon", one), ("lisbon", two), ("porto", three), ("porto", four)):
        tree.learn(site, update)
    tree.until(partial(Flat(bundle, [one, two, three, four]).is_everywhere, tree))
    assert len(tree.top.store.contributions.all()) == 2
    assert tree.top.store.devices.get("lisbon").hardware["devices"] == 2  # type: ignore[union-attr]
    model = tree.top.store.devices.models("porto")[0]
    assert (model.state, model.state_release) == ("active", tree.top.store.releases.highest())

    # A device of a site is in its head with the version that the site has of it, so that it does not count it twice.
    head = tree.sites["lisbon"].head()
    assert head is not None
    assert {one.lineage: one.version, two.lineage: two.version}.items() <= dict(head.included).items()
    # One is subtracted again, from all heads.
    tree.sites["lisbon"].core.forget(f"device-{one.lineage}", tree.now)
    tree.until(partial(Flat(bundle, [two, three, four]).is_everywhere, tree))


def test_a_site_that_is_cut_off_goes_on_and_nothing_is_lost_or_doubled(
    tree: Tree, bundle: Bundle, statistics_update: Make
) -> None:
    one, two, more, other = (statistics_update(i) for i in range(4))
    tree.learn("lisbon", one)
    tree.learn("porto", two)
    tree.until(partial(Flat(bundle, [one, two]).is_everywhere, tree))
    tree.sites["porto"].cut_off()
    tree.learn("porto", later(two, more))
    tree.learn("lisbon", other)
    tree.run(20.0)
    tree.run(3 * 86_400.0, dt_s=86_400.0)
    # It merges what its own devices learned with what it knew of the others when it was cut off.
    assert Flat(bundle, [one, later(two, more)]).is_below(tree.sites["porto"])
    assert Flat(bundle, [one, two, other]).is_that_of(tree.top)
    tree.sites["porto"].restart()
    tree.until(partial(Flat(bundle, [one, other, later(two, more)]).is_everywhere, tree))
    released = tree.top.store.releases.highest()
    tree.run(10.0)
    assert released == tree.top.store.releases.highest()  # and that was all


def test_a_site_that_was_set_up_anew_is_counted_once(tree: Tree, bundle: Bundle, statistics_update: Make) -> None:
    one, two, three = (statistics_update(i) for i in range(3))
    for update in (one, two):
        tree.learn("lisbon", update)
    tree.learn("porto", three)
    tree.until(partial(Flat(bundle, [one, two, three]).is_everywhere, tree))
    before = tree.sites["lisbon"]
    before.cut_off()
    before.broker.disconnect("coordinator")
    before.store.close()
    tree.sites["lisbon"] = type(before)(tree.folder / "lisbon-anew", tree.bundle, above=tree.top.broker, site="lisbon")
    tree.learn("lisbon", one)  # the first of its devices is back, and the other one not yet
    tree.until(lambda: len(tree.top.store.contributions.all()) == 3)
    assert Flat(bundle, [one, two, three]).is_that_of(tree.top)
    more = later(two, statistics_update(7))
    tree.learn("lisbon", more)
    tree.until(partial(Flat(bundle, [one, more, three]).is_everywhere, tree))


def test_a_device_that_moves_to_another_site_is_counted_once(
    tree: Tree, bundle: Bundle, statistics_update: Make
) -> None:
    one, two, moving = (statistics_update(i) for i in range(3))
    for site, update in (("lisbon", one), ("lisbon", moving), ("porto", two)):
        tree.learn(site, update)
    tree.until(partial(Flat(bundle, [one, two, moving]).is_everywhere, tree))
    tree.sites["lisbon"].cut_off()
    moved = later(moving, statistics_update(5))
    tree.learn("porto", moved)
    tree.until(lambda: bool(tree.top.told("counted-elsewhere")))
    assert Flat(bundle, [one, moving, two]).is_that_of(tree.top)  # where it was first, while that cannot let it go
    assert "counted with lisbon" in tree.top.told("counted-elsewhere")[0]
    tree.sites["lisbon"].connect()
    tree.until(partial(Flat(bundle, [one, moved, two]).is_everywhere, tree))

    # From a site to the coordinator above: what it had learned counts there, once the site has let it go.
    straight = later(moved, statistics_update(6))
    tree.top.device(f"device-{moved.lineage}", straight, tree.now)
    tree.until(partial(Flat(bundle, [one, straight, two]).is_that_of, tree.top))


def test_nobody_speaks_for_others_whom_no_operator_has_called_a_site(tree: Tree, statistics_update: Make) -> None:
    tree.top.core.tag("porto", {"role": ""}, tree.now)
    tree.learn("porto", statistics_update(1))
    tree.until(lambda: bool(tree.top.told("contribution-refused")))
    assert tree.top.head() is None
    assert "edge-fleet tag porto role=site" in tree.top.told("contribution-refused")[0]
    tree.top.core.tag("porto", {"role": "site"}, tree.now)
    tree.run(3600.0, dt_s=1200.0)
    tree.until(lambda: tree.top.head() is not None)


def test_a_site_in_quarantine_knows_it(tree: Tree) -> None:
    def told() -> list[str]:
        return [each.detail for each in tree.sites["porto"].store.events.newest(9, name="admission-above")[::-1]]

    tree.run(5.0)
    for decision in (Decision.QUARANTINE, Decision.APPROVE):
        tree.top.core.decide("porto", decision, "kim", "odd numbers", tree.now)
        tree.run(5.0)
    assert told() == [
        f"the fleet above says: this site is {stands} by kim: odd numbers" for stands in ("quarantined", "approved")
    ]


def test_changes_of_heads_are_averaged_once_above(tree: Tree, bundle: Bundle, delta_update: Make) -> None:
    rounds = []
    for site, value, n, name in (("lisbon", 0.1, 10, "a"), ("lisbon", 0.2, 30, "b"), ("porto", 0.4, 20, "c")):
        update = delta_update(value, n=n, lineage=name)
        rounds.append(update)
        tree.learn(site, update)
    tree.until(lambda: tree.sites["lisbon"].head() is not None)
    flat = merged_head(bundle, rounds)
    for tier in (tree.top, *tree.sites.values()):
        head = tier.head()
        assert head is not None
        for name, array in flat.parameters.items():
            np.testing.assert_allclose(head.parameters[name], array, atol=1e-6)
    head = tree.sites["lisbon"].head()
    assert head is not None
    assert {"a": 10, "b": 30}.items() <= dict(head.included).items()
    # What was averaged is not averaged again.
    counters = [tier.store.releases.highest() for tier in (tree.top, *tree.sites.values())]
    tree.run(15.0)
    assert counters == [tier.store.releases.highest() for tier in (tree.top, *tree.sites.values())]


def test_a_bundle_from_above_goes_to_the_devices_by_a_rollout_of_the_site(
    tree: Tree, digits_bundle: Path, statistics_update: Make
) -> None:
    for site in tree.sites:
        tree.learn(site, statistics_update(len(site)))
    tree.until(lambda: tree.top.head() is not None)
    lisbon, porto = tree.sites.values()
    digest = tree.top.core.add_artifact(digits_bundle.read_bytes(), digits_bundle)["digest"]
    backbone = tree.top.store.releases.bundles()[0].backbone
    release = tree.top.core.push(digest, "bundle", backbone, [], "spring", tree.now, model="digits")
    tree.until(lambda: bool(lisbon.store.rollouts.all() and porto.store.rollouts.all()))
    assert "of the fleet above: spring" in lisbon.store.releases.all()[0].reason

    def states() -> dict[str, tuple[str, int]]:
        return {each.device: (each.state, each.state_release) for each in tree.top.store.devices.models()}

    assert states() == dict.fromkeys(tree.sites, ("probation", release.counter))
    # It is for the people of a site to end it there, and those above see that.
    lisbon.core.rollouts.order(lisbon.store.rollouts.all()[0].id, RolloutEvent.ABORT, "kim", "not here", tree.now)
    porto.restart()
    tree.until(lambda: states()["lisbon"][0] == "rolled-back")
    assert states()["porto"] == ("probation", release.counter)


def test_what_is_taken_back_above_is_taken_back_at_the_sites(
    tree: Tree, bundle: Bundle, statistics_update: Make
) -> None:
    """Devices of a site judge no head that they had before: they are told what it takes back, by the site's number."""
    for name in tree.sites:
        tree.learn(name, statistics_update(len(name)))
    tree.until(lambda: tree.top.head() is not None)

    def push(scale: float) -> int:
        parameters = {name: np.float32(scale) * array for name, array in bundle.head_parameters().items()}
        data = HeadRelease(backbone=bundle.manifest.backbone_digest, parameters=parameters).encode()
        kept = tree.top.core.add_artifact(data, Path("head"))
        return tree.top.core.push(kept["digest"], kept["kind"], kept["backbone"], [], "by hand", tree.now).counter

    def here(tier: Tier, above: int) -> Release | None:
        said = f"release {above} of the fleet above"
        return next((each for each in tier.store.releases.all() if each.reason.startswith(said)), None)

    sites = list(tree.sites.values())
    older = push(1.5)
    tree.until(lambda: all(here(each, older) for each in sites))
    newer = push(2.0)
    tree.until(lambda: all(here(each, newer) for each in sites))
    sites[1].restart()
    back = tree.top.core.rollback(tree.now)
    assert (back.restores, back.undoes) == (older, newer)
    tree.until(lambda: all(here(each, back.counter) for each in sites))
    for site in sites:
        first, second, third = (here(site, each) for each in (older, newer, back.counter))
        assert first is not None
        assert second is not None
        assert third is not None
        assert (first.undoes, second.undoes, third.undoes) == (0, 0, second.counter)
        assert third.digest == first.digest
        rollout = site.store.rollouts.all()[0]
        assert (rollout.plan.release, rollout.plan.waves) == (third.counter, ("100 %",)), "all at once, as above"


def test_a_site_tells_what_all_its_devices_answered_to_labels(tree: Tree, statistics_update: Make) -> None:
    one, two, three = (statistics_update(i) for i in range(3))
    for site, update in (("lisbon", one), ("lisbon", two), ("porto", three)):
        tree.learn(site, update)

    def answers(site: str, update: HeadUpdate, seq: int, counts: dict[str, dict[str, int]]) -> None:
        model = tree.sites[site].store.devices.models(f"device-{update.lineage}")[0].model
        values = {"model": model, "seq": seq, "boot": 1, confusion.KEY: confusion.told(counts)}
        tree.sites[site].core.dialogue.said(f"device-{update.lineage}", Telemetry(values=values), tree.now)

    def above() -> dict[str, object]:
        return {each.device: each.counts for each in tree.top.store.confusions.all() if each.counts}

    def minutes(n: int) -> None:
        tree.run(60.0 * n, dt_s=60.0 if n < 60 else 1200.0)
        tree.run(3.0)  # downloads come to their end

    tree.run(3.0)
    answers("lisbon", one, 1, {"3": {"3": 9, "8": 1}})
    answers("lisbon", two, 1, {"3": {"3": 5}, "8": {"8": 4}})
    answers("porto", three, 1, {"1": {"7": 2}})
    told = {"lisbon": {"3": {"3": 14, "8": 1}, "8": {"8": 4}}, "porto": {"1": {"7": 2}}}
    minutes(2)
    assert above() == told

    def said() -> int:
        """How often a site has said it."""
        rows = tree.top.store.telemetry.after(0, 1000)
        return sum(each.device == "lisbon" and confusion.KEY in each.values for each in rows)

    before = said()
    minutes(5)
    assert said() == before, "what did not change is not said again at once"
    minutes(60)
    assert before < said() <= before + 2
    # Each device's newest counts, once: who is forgotten is in them no more.
    answers("lisbon", two, 2, {"8": {"8": 2}})
    minutes(2)
    assert above()["lisbon"] == {"3": {"3": 9, "8": 1}, "8": {"8": 2}}
    tree.sites["lisbon"].core.forget(f"device-{one.lineage}", tree.now)
    minutes(2)
    assert above()["lisbon"] == {"8": {"8": 2}}
    tree.sites["lisbon"].core.forget(f"device-{two.lineage}", tree.now)
    minutes(2)
    assert set(above()) == {"porto"}
