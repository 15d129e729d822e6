"""A real coordinator with light devices on its wire, which answer as an agent does; one clock, and no broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.channel import topics
from edge.channel.codec import decode, encode
from edge.channel.messages import Birth, Candidate, Conn, Desired, Pairs, Served, State
from edge.channel.transport import Connected, Received
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.http.rollout_views import shown
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.rollout import plan as plans
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadRelease
from tests.support.fleet import store_in

# What a device does with a release: what it says of it, one after another; None says nothing more.
Behaviour = Callable[["Device", Desired], list[tuple[str, str, Pairs | None]]]


class Device:
    """What is on the wire of an agent: it says where a release stands, as `edge.agent.model.deployment` does."""

    def __init__(self, fleet: Fleet, name: str, behaviour: Behaviour) -> None:
        self.fleet, self.name, self.behaviour = fleet, name, behaviour
        self.release = self.seq = 0
        self.ready: Desired | None = None
        self.told: list[Desired] = []
        self.hardware: dict[str, Any] = {}
        self.labels, self.evaluates = 0, False
        self.bundle = ""  # as devices name it
        self.asked: list[Candidate] = []

    def say(self, leaf: str, message: Any, *, retained: bool = False) -> None:
        topic = f"edge/v1/lab/{self.name}/{leaf}"
        self.fleet.core.transport(Received(topic=topic, payload=encode(message), retained=retained), self.fleet.now)

    def is_there(self, *, retained: bool = False) -> None:
        conn = Conn(online=True, session=1, boot=1, ts_ms=0, state_id="a" * 16)
        self.say("up/conn", conn, retained=retained)

    def connect(self) -> None:
        served = Served(
            model="digits",
            bundle=self.bundle,
            backbone=self.fleet.backbone,
            head="",
            release=self.release,
            n_labels=self.labels,
        )
        birth = Birth(
            agent_version="1", boot=1, session=1, ts_ms=0, profile="p", hardware=self.hardware, bundle="", head="",
            n_labels=self.labels, evaluates=self.evaluates, backbone=self.fleet.backbone, release=self.release,
            limits={}, models=(served,), state_id="a" * 16,
        )  # fmt: skip
        self.is_there()
        self.say("up/birth", birth)

    def state(self, desired: Desired, state: str, detail: str, pairs: Pairs | None) -> None:
        self.seq += 1
        message = State(
            ts_ms=0, seq=self.seq, slot=desired.kind, state=state, release=desired.release, digest=desired.digest,
            detail=detail, model="digits", state_id="a" * 16, pairs=pairs,
        )  # fmt: skip
        self.say("up/state", message)

    def receive(self, desired: Desired) -> None:
        self.told.append(desired)
        if desired.activate == "never":
            if self.ready is not None and self.ready.release == desired.release:
                self.ready = None
                self.state(desired, "idle", "the coordinator took it back", None)
            return
        if desired.release <= self.release:
            return
        is_new = self.ready is None or self.ready.release != desired.release
        self.ready = desired
        if desired.activate == "wait":
            if is_new:
                self.state(desired, "staged", "", None)
            return
        self.release, self.ready = desired.release, None
        for state, detail, pairs in self.behaviour(self, desired):
            self.state(desired, state, detail, pairs)
        if desired.kind == "bundle":  # and says anew what it runs
            known = {each.digest: each.identity for each in self.fleet.store.releases.bundles()}
            self.bundle = known[desired.digest]
            self.connect()


class Fleet:
    """A coordinator that can be killed, its devices, and a clock."""

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        n: int,
        behaviour: Behaviour,
        known: list[str] | None = None,
        *,
        where: Path | str | None = None,
        **options: Any,
    ) -> None:
        self.folder, self.bundle_path = folder, bundle
        self.where, self.options = where or folder / "db.sqlite", options
        opened = Bundle.open(bundle)
        self.backbone = opened.manifest.backbone_digest
        self.head = HeadRelease(backbone=self.backbone, parameters=opened.head_parameters(), origin="test").encode()
        self.now = Now(1000.0, 1_800_000_000_000)
        self.store: Store | None = None
        self.devices: dict[str, Device] = {}
        self.start()
        if known is None:
            self.devices = {f"d{i:03}": Device(self, f"d{i:03}", behaviour) for i in range(n)}
            for device in self.devices.values():
                device.connect()
        else:
            self.devices = {name: Device(self, name, behaviour) for name in known}
        self.deliver()

    def start(self) -> None:
        self.close()
        self.store = store_in(self.where)
        if isinstance(self.where, Path):
            with self.store._database._engine.connect() as connection:  # no power is cut here, and the disk is slow
                connection.exec_driver_sql("PRAGMA synchronous=OFF")
        options = {"auto_merge": False, "reassert_s": 1e9, **self.options}
        config = CoordinatorConfig(fleet="lab", name="c", data_dir=self.folder, **options)
        artifacts = ArtifactStore(self.folder / "artifacts")
        self.core = CoordinatorCore(config, self.store, artifacts, np.random.default_rng(3))
        self.core.add_artifact(self.bundle_path.read_bytes(), self.bundle_path)
        self.core.transport(Connected(session_present=False, max_packet_bytes=1 << 20), self.now)
        for device in self.devices.values():  # what the broker keeps of them
            device.is_there(retained=True)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None

    def deliver(self) -> None:
        """What the coordinator says reaches its devices; what they say reaches it."""
        for publish in self.core.tick(self.now):
            if "/_c/" in publish.topic:  # it is for people
                continue
            topic = topics.parse(publish.topic)
            if topic.leaf.startswith("dn/desired") and topic.device in self.devices:
                message = decode(topic.leaf, publish.payload)
                assert isinstance(message, Desired)
                self.devices[topic.device].receive(message)
            elif topic.leaf == topics.DN_CANDIDATE:
                asked = decode(topic.leaf, publish.payload)
                assert isinstance(asked, Candidate)
                self.devices[topic.device].asked.append(asked)

    def pass_time(self, seconds: float, step_s: float = 60.0) -> None:
        end = self.now.s + seconds
        while self.now.s < end:
            self.now = Now(self.now.s + step_s, self.now.wall_ms + int(step_s * 1000))
            self.deliver()

    def push(self, devices: Sequence[str] = (), **options: Any) -> int:
        kept = self.core.add_artifact(self.head, Path("/nonexistent"))
        _, rollout = self.core.roll_out(
            kept["digest"], kept["kind"], kept["backbone"], [*devices], "test", self.now, **options
        )
        return rollout.id

    @staticmethod
    def plan(**document: Any) -> plans.Plan:
        return plans.of_document(document)

    def start_plan(self, supersede: bool = False, **plan: Any) -> int:
        kept = self.core.add_artifact(self.head, Path("/nonexistent"))
        release = self.core.releases.push(
            kept["digest"], kept["kind"], kept["backbone"], [], "t", self.now, at_once=False
        )
        made = self.plan(release=release.counter, **plan)
        return self.core.rollouts.start(made, "ann", self.now, supersede=supersede).id

    def shown(self, rollout: int) -> dict[str, Any]:
        return shown(self.store, rollout)

    def state(self, rollout: int) -> str:
        return self.shown(rollout)["state"]

    def counts(self, rollout: int) -> dict[str, int]:
        return self.shown(rollout)["counts"]

    @property
    def touched(self) -> int:
        return sum(device.release > 0 for device in self.devices.values())


def ends(state: str, detail: str = "", pairs: Pairs | None = None) -> Behaviour:
    """A device that fetches, and comes to an end."""
    way = {"active": ["probation", "active"], "rolled-back": ["probation", "rolled-back"]}.get(state, [state])

    def behave(_: Device, __: Desired) -> list[tuple[str, str, Pairs | None]]:
        return [(each, detail, pairs if each == way[-1] else None) for each in way]

    return behave
