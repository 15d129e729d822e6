"""The default plan on 200 agents as they are: their protocol, what they learn, and their own judgement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.channel import topics
from edge.channel.codec import decode, encode
from edge.channel.memory import MemoryTransport
from edge.channel.messages import Pairs, State
from edge.contract.bundle import Bundle, write_bundle
from edge.contract.training import Parameters
from edge.coordinator.http.rollout_views import shown
from edge.coordinator.rollout.states import RolloutEvent
from edge.learning.exchange import HeadRelease
from edge.learning.solve import head_of
from edge.learning.statistics import HeadStatistics
from tests.support.fleet import SimulatedFleet, taken

NAMES = [f"d{i:03}" for i in range(200)]
DAY_S = 86_400.0
# Of what these devices see, in units of the brightest: what was shipped is right on two of three such samples.
NOISE = 0.4
Digits = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


class Line(MemoryTransport):
    """Of a device that may lie: whatever a release does there, it is well and a great deal better."""

    lies = False

    def publish(self, topic: str, payload: bytes, **options: Any) -> bool:
        if self.lies and topics.parse(topic).leaf == topics.UP_STATE:
            said = decode(topics.UP_STATE, payload)
            assert isinstance(said, State)
            if said.state in ("refused", "failed", "held", "rolled-back", "active"):
                best = Pairs(labelled=320, only_new=320.0, compared=320, differ=320)
                payload = encode(replace(said, state="active", detail="probation: well", pairs=best))
        return super().publish(topic, payload, **options)


class Fleet(SimulatedFleet):
    """200 agents that see digits through bad cameras."""

    def __init__(self, folder: Path, bundle: Path, digits: Digits) -> None:
        self.lines: dict[str, Line] = {}
        self.rng, self.digits, self.taught, self.elapsed_s = np.random.default_rng(11), digits, 0, 0.0
        self.slow = ""  # bundle in which a prediction takes twice as long
        super().__init__(
            folder, bundle, NAMES, auto_merge=False, reassert_s=1e9, connect=self.line, stopwatch=self.now_there,
            learner="statistics", executor="numpy", telemetry_interval_s=DAY_S, sync_interval_s=1e6, probation_s=10.0,
        )  # fmt: skip
        with self.store._database._engine.connect() as connection:  # no power is cut here, and the disk is slow
            connection.exec_driver_sql("PRAGMA synchronous=OFF")
        assert self.coordinator is not None
        self.core, self.bundle = self.coordinator, Bundle.open(bundle)

    @property
    def are_known(self) -> bool:
        """Whether all devices have introduced themselves."""
        return sum(device.born for device in self.store.devices.all()) == len(NAMES)

    def line(self, name: str) -> MemoryTransport:
        if name not in NAMES:
            return MemoryTransport(self.broker, name)
        self.lines[name] = Line(self.broker, name)
        return self.lines[name]

    def now_there(self, name: str) -> float:
        """A stopwatch that goes by what is run: what this machine does meanwhile says nothing of a release."""
        runs = self.agents[name].host.model.bundle.digest if name in self.agents else ""
        self.elapsed_s += 0.002 if runs == self.slow else 0.001
        return self.elapsed_s

    def step(self, dt_s: float = 0.25) -> None:
        """As always, but agents are looked at when something came, or when they asked to be."""
        self.now_s += dt_s
        self.broker.deliver()
        for agent in self.agents.values():
            if agent.events or agent.core.next_deadline_s <= self.now_s:
                agent.tick(self.now)
        for event in taken(self.coordinator_events):
            self.core.transport(event, self.now)
        for effect in self.core.tick(self.now):
            self.coordinator_transport.publish(effect.topic, effect.payload, qos=effect.qos, retain=effect.retain)

    def seen(self, n: int) -> Digits:
        """So many samples as devices see them, and what they are."""
        rows = self.rng.integers(len(self.digits[1]), size=n)
        x = self.digits[0][rows]
        return np.asarray(x + self.rng.normal(0.0, NOISE, x.shape), np.float32), self.digits[1][rows]

    def label(self, names: list[str], n: int) -> None:
        """Each device sees so many samples, and is told what they are."""
        for name in names:
            self.taught += 1
            self.teach(name, *self.seen(n), f"t{self.taught}-")

    def features(self, n: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """``(n, features)`` of such samples."""
        x, y = self.seen(n)
        session = self.agents[NAMES[0]].host.model.serving.session
        return session.features({self.bundle.manifest.inputs[0].name: x}), y

    def push(self, path: Path) -> int:
        """As ``edge-fleet push`` does: a rollout with the default plan; its number."""
        kept = self.core.add_artifact(path.read_bytes(), path)
        _, rollout = self.core.roll_out(kept["digest"], kept["kind"], kept["backbone"], [], path.name, self.now)
        return rollout.id

    def push_head(self, parameters: Parameters, name: str) -> int:
        path, backbone = self.folder / name, self.bundle.manifest.backbone_digest
        path.write_bytes(HeadRelease(backbone=backbone, parameters=parameters, origin=name).encode())
        return self.push(path)

    def found(self, rollout: int) -> dict[str, Any]:
        return shown(self.store, rollout)

    def canaries(self, rollout: int) -> list[str]:
        """Devices of the first wave."""
        return [each["device"] for each in self.found(rollout)["targets"] if each["wave"] == 1]

    def goes_out(self, rollout: int, labels: int) -> dict[str, Any]:
        """Days pass, until it has ended or waits for a person; whoever runs it is told what some samples are."""
        told: set[str] = set()
        ends_s = self.now_s + 5 * DAY_S
        while self.now_s < ends_s and (found := self.found(rollout))["state"] in ("ready", "opening", "soaking"):
            runs = [e["device"] for e in found["targets"] if e["state"] in ("probation", "active")]
            if labels:
                self.label([name for name in runs if name not in told], labels)
            told.update(runs)
            self.run(8.0, 1.0) if found["state"] != "soaking" else self.run(DAY_S / 3, DAY_S / 3)
        return self.found(rollout)

    def back(self, rollout: int) -> None:
        """What was touched gets what it had."""
        if self.found(rollout)["state"] != "reverted":
            self.core.rollouts.order(rollout, RolloutEvent.REVERT, "ann", "bad", self.now)
            self.until("a way back", lambda: self.found(rollout)["state"] == "reverted", dt_s=1.0)


@pytest.fixture
def fleet(tmp_path: Path, digits_bundle: Path, digits: Digits) -> Iterator[Fleet]:
    made = Fleet(tmp_path, digits_bundle, digits)
    try:
        made.until("births", lambda: made.are_known, dt_s=1.0)
        yield made
    finally:
        made.close()


@pytest.mark.timeout(600)
def test_bad_releases_stop_by_themselves_at_ten_of_200_agents_and_a_good_one_reaches_all(
    fleet: Fleet, tmp_path: Path
) -> None:
    """faults: 25, 47. The default plan; what judges is what each agent learned from its own labels."""
    shipped, linear = fleet.bundle.head_parameters(), fleet.bundle.manifest.head.linear
    random = {name: fleet.rng.normal(size=array.shape).astype(np.float32) for name, array in shipped.items()}
    x, y = fleet.features(4000)

    def accuracy(head: Parameters) -> float:
        return float(((x @ head[linear.weight].T + head[linear.bias]).argmax(axis=1) == y).mean())

    def less_by(points: float) -> Parameters:
        """The shipped head with as much noise as costs that many points."""
        for scale in np.arange(0.05, 1.0, 0.05):
            head = {name: array + np.float32(scale * array.std()) * random[name] for name, array in shipped.items()}
            if accuracy(head) <= accuracy(shipped) - points / 100:
                return head
        raise AssertionError("no noise costs so much")

    def stops(what: str, rollout: int, labels: int, *reasons: str) -> None:
        found = fleet.goes_out(rollout, labels)
        touched = [each for each in found["targets"] if each["wave"] == 1]
        others = {each["state"] for each in found["targets"] if each["wave"] > 1}
        assert len(touched) == 10, what
        assert others <= {"waiting", "superseded"}, what
        assert found["state"] in ("held", "paused", "reverting", "reverted"), (what, found["state"])
        assert found["reason"].partition(":")[0] in reasons, (what, found["reason"])
        release = found["release"]
        reached = {name for name, agent in fleet.agents.items() if agent.host.slots.record.release == release}
        assert reached <= set(fleet.canaries(rollout)), what
        fleet.back(rollout)

    stops("random numbers and no labels at all", fleet.push_head(random, "random"), 0, "failures")

    fleet.label(NAMES, 24)
    huge = {name: np.full_like(array, 3e38) for name, array in shipped.items()}
    stops("answers that are no numbers", fleet.push_head(huge, "huge"), 40, "failures")

    slow = tmp_path / "slow.edge"
    blobs = {role: fleet.bundle.read(role) for role in fleet.bundle.manifest.members}
    write_bundle(slow, replace(fleet.bundle.manifest, created_by="somebody slow"), blobs)
    fleet.slow = Bundle.open(slow).digest
    rollout = fleet.push(slow)
    fleet.label(fleet.canaries(rollout), 64)
    stops("twice as slow", rollout, 64, "looks-worse-speed")

    worse = less_by(5.0)
    stops("5 points worse", fleet.push_head(worse, "worse"), 40, "looks-worse-accuracy", "failures")
    rollout = fleet.push_head(worse, "worse, one lies")
    liar = fleet.canaries(rollout)[0]
    fleet.lines[liar].lies = True
    stops("5 points worse, one of ten lies", rollout, 40, "looks-worse-accuracy", "failures")
    fleet.lines[liar].lies = False

    good = head_of(HeadStatistics.of(*fleet.features(4000), 10), linear)
    assert accuracy(good) > accuracy(shipped) + 0.05
    found = fleet.goes_out(fleet.push_head(good, "good"), 20)
    assert (found["state"], found["counts"]) == ("completed", {"active": 200}), found["reason"]
    assert [look["decision"] for look in found["looks"]] == ["pass"] * 3
    assert {agent.host.slots.record.release for agent in fleet.agents.values()} == {found["release"]}


def test_a_bundle_that_was_brought_twice_goes_back_to_the_one_before_it(tmp_path: Path, digits_bundle: Path) -> None:
    """It may run the bytes of a release before it is offered it."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    try:
        fleet.until("birth", lambda: (one := fleet.device("one")) is not None and one.born)
        bundle, again = Bundle.open(digits_bundle), tmp_path / "again.edge"
        blobs = {role: bundle.read(role) for role in bundle.manifest.members}
        write_bundle(again, replace(bundle.manifest, created_by="somebody else"), blobs)
        assert fleet.coordinator is not None
        host, numbers = fleet.agents["one"].host, []
        kept = fleet.coordinator.add_artifact(again.read_bytes(), again)
        for _ in range(2):
            what = (kept["digest"], kept["kind"], kept["backbone"])
            _, rollout = fleet.coordinator.roll_out(*what, [], "", fleet.now)
            numbers.append(rollout.id)
            fleet.until("live", lambda: shown(fleet.store, numbers[-1])["counts"] == {"active": 1})
        assert host.model.bundle.digest == Bundle.open(again).digest
        fleet.coordinator.rollouts.order(numbers[-1], RolloutEvent.REVERT, "ann", "bad", fleet.now)
        fleet.until("a way back", lambda: shown(fleet.store, numbers[-1])["state"] == "reverted")
        assert host.model.bundle.digest == bundle.digest
    finally:
        fleet.close()


@pytest.mark.parametrize("named_wrongly", [False, True])
def test_a_bundle_is_held_where_it_is_right_less_often_than_the_one_before(
    tmp_path: Path, digits_bundle: Path, digits: Digits, *, named_wrongly: bool
) -> None:
    """It cannot run beside the one before: labels since it is live stand against those from before."""
    names = [f"d{i}" for i in range(8)]
    fleet = SimulatedFleet(tmp_path, digits_bundle, names, auto_merge=False, probation_s=10.0)
    try:
        fleet.until("births", lambda: sum(device.born for device in fleet.store.devices.all()) == len(names))
        for i, name in enumerate(names):
            fleet.teach(name, digits[0][70 * i : 70 * i + 70], digits[1][70 * i : 70 * i + 70], "before-")
        models = [agent.host.model for agent in fleet.agents.values()]
        fleet.until("labels", lambda: all(model.metrics.labels == 70 for model in models))
        bundle, path = Bundle.open(digits_bundle), tmp_path / "again.edge"
        write_bundle(
            path,
            replace(bundle.manifest, created_by="somebody else"),
            {role: bundle.read(role) for role in bundle.manifest.members},
        )
        assert fleet.coordinator is not None
        kept = fleet.coordinator.add_artifact(path.read_bytes(), path)
        what = (kept["digest"], kept["kind"], kept["backbone"])
        _, rollout = fleet.coordinator.roll_out(*what, [], "", fleet.now)

        def found() -> dict[str, Any]:
            return shown(fleet.store, rollout.id)

        canaries = [each["device"] for each in found()["targets"] if each["wave"] == 1]
        fleet.until("canaries", lambda: found()["counts"].get("probation") == len(canaries))
        for i, name in enumerate(canaries):
            y = digits[1][800 + 40 * i : 840 + 40 * i]
            fleet.teach(name, digits[0][800 + 40 * i : 840 + 40 * i], (y + 3 * named_wrongly) % 10, "since-")
        fleet.until("pairs", lambda: [e["pairs"]["labelled"] for e in found()["targets"][:2]] == [40, 40])
        fleet.until("a look", lambda: bool(found()["looks"]), dt_s=60.0)
        assert found()["state"] == ("held" if named_wrongly else "opening")
        assert found()["reason"].startswith("looks-worse-accuracy: accuracy -5.0") is named_wrongly, found()["reason"]
    finally:
        fleet.close()
