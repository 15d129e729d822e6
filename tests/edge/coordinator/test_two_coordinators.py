"""Two coordinators of one database: one at a time decides; who dies or sleeps in any state of a rollout costs nothing.

faults: 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.channel.messages import Reply
from edge.channel.transport import Connected
from edge.contract.clock import Now
from edge.contract.errors import ConfigError
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.rollout.states import RolloutEvent, RolloutState
from edge.coordinator.store.database import is_taken
from edge.coordinator.store.lease import LeaseLost
from edge.coordinator.store.store import Store
from tests.support.light_fleet import Fleet, ends
from tests.support.postgres import PostgresServer

E = RolloutEvent


class Pair(Fleet):
    """A fleet whose coordinator is on PostgreSQL; another one can take its place while it still lives."""

    def __init__(self, url: str, *arguments: Any, **options: Any) -> None:
        self.url = url
        self.old: list[tuple[CoordinatorCore, Store]] = []
        super().__init__(*arguments, **options)

    def start(self) -> None:
        self.store = Store(self.url)
        self.store.claim()
        options = {"auto_merge": False, "reassert_s": 1e9, **self.options}
        config = CoordinatorConfig(fleet="lab", name="c", data_dir=self.folder, **options)
        artifacts = ArtifactStore(self.folder / "artifacts")
        self.core = CoordinatorCore(config, self.store, artifacts, np.random.default_rng(3))
        self.core.add_artifact(self.bundle_path.read_bytes(), self.bundle_path)
        self.core.transport(Connected(session_present=False, max_packet_bytes=1 << 20), self.now)

    def take_over(self, server: PostgresServer, *, is_dead: bool) -> None:
        """The coordinator dies, or sleeps until its lease is over; another one takes its place."""
        assert self.store is not None
        self.old.append((self.core, self.store))
        database = self.url.rsplit("/", maxsplit=1)[-1]
        if is_dead:  # its connections end with it
            server.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{database}'")
        else:
            self.store.claim()  # as its thread does while it is awake, every 5 s
            assert is_taken(self.url)
            early = Store(self.url)
            with pytest.raises(ConfigError, match="in use by another coordinator"):
                early.claim()
            early.close()
            server.execute("UPDATE lease SET until_ms = 0", database)
        assert not is_taken(self.url)
        self.start()
        for device in self.devices.values():
            device.connect()

    def wake(self) -> None:
        """Those that slept go on, and change nothing."""
        for core, store in self.old:
            core.rollouts._hurry()
            core.tick(Now(self.now.s + 600, self.now.wall_ms + 600_000))
            with pytest.raises(LeaseLost, match="took this one's place"):
                core.pause_all("ghost", "it slept", self.now)
            with pytest.raises(LeaseLost):
                store.claim()

    def close(self) -> None:
        for _, store in self.old:
            store.close()
        super().close()


@pytest.fixture
def pair(tmp_path: Path, digits_bundle: Path, postgres: PostgresServer) -> Iterator[Pair]:
    made = Pair(postgres.new(), tmp_path, digits_bundle, 4, ends("active"))
    yield made
    made.close()


def test_a_standby_that_takes_over_lets_a_merge_wait_on_and_go_out_after(
    tmp_path: Path, digits_bundle: Path, postgres: PostgresServer, statistics_update: Any
) -> None:
    """The two meet at any moment: dead or asleep, what waits and since when is in the database."""
    pair = Pair(postgres.new(), tmp_path, digits_bundle, 4, ends("active"), auto_merge=True, merge_delay_s=0.0)
    rollout = pair.start_plan(waves=["50 %", "100 %"], soak=["1 h"])
    pair.pass_time(30, 10)
    for i in range(4):
        pair.core.learning.take(f"d00{i}", statistics_update(i).encode(), pair.now)
    pair.pass_time(30, 10)
    since_ms = pair.shown(rollout)["merge_waits_since_ms"]
    assert since_ms > 0
    for is_dead in (True, False):
        pair.take_over(postgres, is_dead=is_dead)
        pair.pass_time(30, 10)
        if not is_dead:
            pair.wake()
        assert pair.shown(rollout)["merge_waits_since_ms"] == since_ms
        assert [each.counter for each in pair.store.releases.all()] == [1]
    pair.pass_time(4000, 100)
    assert (pair.state(rollout), pair.counts(rollout)) == ("completed", {"active": 4})
    assert pair.store.releases.all()[0].reason == "merge of 4 devices, 240 labelled samples"
    assert {device.release for device in pair.devices.values()} == {2}
    assert len(pair.store.events.newest(100, name="merge-waits")) == 1, "it is told once"
    pair.close()


def test_who_takes_over_goes_on_with_what_devices_said_of_a_head_and_decides_once(
    tmp_path: Path, digits_bundle: Path, postgres: PostgresServer
) -> None:
    pair = Pair(postgres.new(), tmp_path, digits_bundle, 4, ends("active"))
    for device in pair.devices.values():
        device.labels, device.evaluates = 40, True
        device.connect()
    rollout = pair.start_plan(waves=["100 %"], start={"judges": 3})
    pair.pass_time(10, 5)
    out = {"labelled": 40, "both": 10, "only_new": 0, "only_old": 20}
    for i, device in enumerate(pair.devices.values()):
        assert pair.state(rollout) == "draft"
        pair.take_over(postgres, is_dead=i % 2 == 0)
        device.say("up/reply", Reply(id=f"candidate-{rollout}", rc=0, detail="", out=out))
        pair.pass_time(10, 5)
    for core, _ in pair.old:
        core.tick(Now(pair.now.s + 600, pair.now.wall_ms + 600_000))
    assert pair.store is not None
    assert (pair.state(rollout), len(pair.store.events.newest(100, name="candidate-lost"))) == ("aborted", 1)
    assert len(pair.store.evaluations.judges(rollout)) == 4
    assert pair.touched == 0
    pair.close()


def to(fleet: Pair, state: str) -> int:
    """A rollout that stands there."""
    rollout = fleet.start_plan(waves=["50 %", "100 %"], soak=["1 min"], supersede=True)
    if state == "ready":
        return rollout
    if state == "opening":  # one has it, and says nothing yet
        for device in fleet.devices.values():
            device.behaviour = ends("probation")
    fleet.pass_time(30, 10)
    for device in fleet.devices.values():
        device.behaviour = ends("active")
    if state == "held":
        assert fleet.store is not None
        fleet.store.rollouts.save(*_held(fleet.store, rollout))  # as a gate would leave it
    if state == "paused":
        fleet.core.rollouts.order(rollout, E.PAUSE, "ann", "", fleet.now)
    if state == "completed":
        fleet.pass_time(120, 60)
    if state == "reverting":
        fleet.core.rollouts.order(rollout, E.REVERT, "ann", "", fleet.now)
    assert fleet.state(rollout) == state
    return rollout


def _held(store: Store, rollout: int) -> Any:
    before = store.rollouts.get(rollout)
    assert before is not None
    return replace(before, state=RolloutState.HELD, before=RolloutState.HELD, version=before.version + 1), before, ()


STATES = ("ready", "opening", "soaking", "held", "paused", "completed", "reverting")


@pytest.mark.parametrize("is_dead", [True, False])
def test_whoever_dies_or_sleeps_in_any_state_of_a_rollout_another_one_ends_it(
    pair: Pair, postgres: PostgresServer, is_dead: bool
) -> None:
    for state in STATES if is_dead else ("opening", "soaking", "reverting"):
        rollout = to(pair, state)
        pair.take_over(postgres, is_dead=is_dead)
        if state in ("held", "paused"):
            pair.core.rollouts.order(rollout, E.RESUME, "ben", "seen", pair.now)
        if state == "opening":  # what they say comes to the new one
            for device in pair.devices.values():
                if device.told and device.told[-1].release == device.release:
                    device.state(device.told[-1], "active", "probation: accuracy", None)
        pair.pass_time(30, 10)
        if not is_dead:
            pair.wake()
        pair.pass_time(150, 30)
        found = pair.shown(rollout)
        wanted = (
            ("reverted", {"reverted": 2, "superseded": 2}) if state == "reverting" else ("completed", {"active": 4})
        )
        assert (found["state"], found["counts"]) == wanted, state
        moved = [(m["event"], m["now"]) for m in found["transitions"] if not m["subject"]]
        passes = sum(event in ("pass", "resume") for event, _ in moved)
        assert passes == (0 if state == "reverting" else 3 if state == "paused" else 2), moved
        ends_of = [(m["subject"], m["now"]) for m in found["transitions"] if m["now"] in ("active", "reverted")]
        outcomes = [each for each in ends_of if each[0]]
        assert len(outcomes) == len(set(outcomes)), "one outcome a device"
        assert not pair.store.rollouts.setting("paused")
