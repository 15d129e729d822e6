"""A whole fleet in one process: real agents and a real coordinator on an in-memory broker that can be made unfaithful.

The clock is a number. `crash_agent` and `crash_coordinator` throw the objects away without any of their closing code,
which is what `kill -9` leaves: the files, and nothing else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edge.agent.config import AgentConfig
from edge.agent.core import AgentCore
from edge.agent.model.host import ModelHost
from edge.agent.model.model_core import ModelCore
from edge.agent.models import Models
from edge.channel import topics
from edge.channel.memory import Faults, MemoryBroker, MemoryTransport
from edge.channel.transport import Connected, Transport, TransportEvent
from edge.contract.clock import Now
from edge.contract.profile import DeviceProfile, load_profile
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.learning.release_policy import ReleasePolicy
from edge.coordinator.records import Model, as_dict
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.store.store import Store
from edge.merging.policy import MergePolicy
from tests.support.killed import kill

FLEET = "lab"


def unhurried() -> DeviceProfile:
    """A profile on which nothing that this machine does beside the tests makes learning wait."""
    profile = load_profile("generic-x86_64")
    learning = replace(profile.learning, max_load_per_core=1000.0, max_temperature_c=120.0, min_battery_percent=0.0)
    return replace(profile, learning=learning)


@cache
def _empty_database() -> bytes:
    """Of today's tables: to make them takes longer than what many a test does with them."""
    with tempfile.TemporaryDirectory() as folder:
        Store(Path(folder) / "db.sqlite").close()
        return (Path(folder) / "db.sqlite").read_bytes()


def store_in(path: Path | str) -> Store:
    """The database there, or a new one."""
    if isinstance(path, Path) and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_empty_database())
    return Store(path)


def taken(events: list[TransportEvent]) -> list[TransportEvent]:
    """All that came, and no more of it; a network thread may add to it meanwhile."""
    count = len(events)
    found = events[:count]
    del events[:count]
    return found


class Agent:
    """One device."""

    def __init__(
        self,
        folder: Path,
        name: str,
        bundles: dict[str, Path],
        connect: Callable[[str], Transport],
        options: dict[str, Any],
        stopwatch: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        self.config = AgentConfig(
            bundles=bundles,
            state_dir=folder / name,
            fleet=FLEET,
            device=name,
            **{
                "profile": unhurried(),
                "telemetry_interval_s": 5.0,
                "sync_interval_s": 1.0,
                "probation_s": 3.0,
                **options,
            },
        )
        self.models = Models(self.config)
        # Learning takes no time here: how fast this machine is must not decide which labels wait for the budget.
        trust = None
        if self.config.trust_root is not None:
            from edge.channel.updates import Trust

            root = self.config.trust_root.read_bytes()
            trust = Trust(self.config.state_dir / "trust", root, fleet=FLEET, device=name)
        self.core = AgentCore(self.config, self.models, stopwatch=lambda: stopwatch(name), trust=trust)
        self.events: list[TransportEvent] = []
        self.transport = connect(name)
        self.states: list[str] = []

    @property
    def model(self) -> ModelCore:
        """Its first model."""
        return next(iter(self.core.models.values()))

    @property
    def host(self) -> ModelHost:
        """Of its first model."""
        return self.model.host

    def start(self, now: Now) -> None:
        will = self.core.will(now)
        self.transport.set_will(will.topic, will.payload, will.qos, will.retain, 0)
        self.transport.subscribe(topics.device_filters(FLEET, self.config.device))
        self.transport.subscribe([(topics.own_conn(FLEET, self.config.device), 1)])
        self.transport.start(self.events.append)

    def tick(self, now: Now) -> None:
        for event in taken(self.events):
            self.core.transport(event, now)
        for effect in self.core.tick(now):
            self.transport.publish(effect.topic, effect.payload, qos=effect.qos, retain=effect.retain)
        state = str(self.model.deployment.state)
        if not self.states or self.states[-1] != state:
            self.states.append(state)


class SimulatedFleet:
    """Agents, a coordinator and a broker under one clock."""

    def __init__(
        self,
        folder: Path,
        bundle: Path | dict[str, Path],
        devices: list[str],
        *,
        faults: Faults | None = None,
        auto_merge: bool = True,
        policy: MergePolicy | None = None,
        release_policy: ReleasePolicy | None = None,
        signing: Path | None = None,
        ask_labels_s: float = 0.0,
        reassert_s: float = 10.0,
        connect: Callable[[str], Transport] | None = None,
        stopwatch: Callable[[str], float] = lambda _: 0.0,
        **agent_options: Any,
    ) -> None:
        self.folder = folder
        self.bundles = {"digits": bundle} if isinstance(bundle, Path) else bundle
        self.broker = MemoryBroker()
        self.broker.fault = faults
        self.connect = connect or (lambda name: MemoryTransport(self.broker, name))
        self.now_s = 1000.0
        self.agent_options, self.auto_merge = agent_options, auto_merge
        self.policy, self.signing, self.ask_labels_s = policy or MergePolicy(), signing, ask_labels_s
        self.release_policy = release_policy or ReleasePolicy()
        self.reassert_s, self.stopwatch = reassert_s, stopwatch
        self.coordinator: CoordinatorCore | None = None
        self.start_coordinator()
        self.agents: dict[str, Agent] = {}
        for name in devices:
            self.start_agent(name)

    @property
    def now(self) -> Now:
        return Now(self.now_s, int(1_800_000_000_000 + self.now_s * 1000))

    def start_coordinator(self) -> CoordinatorCore:
        config = CoordinatorConfig(
            fleet=FLEET,
            name="coordinator",
            data_dir=self.folder / "coordinator",
            auto_merge=self.auto_merge,
            merge_delay_s=5.0,
            reassert_s=self.reassert_s,
            policy=self.policy,
            release_policy=self.release_policy,
            ask_labels_s=self.ask_labels_s,
        )
        self.store = store_in(config.data_dir / "db.sqlite")
        signing = None
        if self.signing is not None:
            from edge.coordinator.signing.repository import Repository

            signing = Repository(self.signing, self.now)
        artifacts = ArtifactStore(config.data_dir / "artifacts")
        self.coordinator = CoordinatorCore(config, self.store, artifacts, signing=signing)
        for bundle in self.bundles.values():
            self.coordinator.add_artifact(bundle.read_bytes(), bundle)
        self.coordinator_events: list[TransportEvent] = []
        self.coordinator_transport = self.connect("coordinator")
        self.coordinator_transport.subscribe(topics.coordinator_filters(FLEET))
        self.set_coordinators_will()
        self.coordinator_transport.start(self.coordinator_events.append)
        return self.coordinator

    def set_coordinators_will(self) -> None:
        assert self.coordinator is not None
        will = self.coordinator.dialogue.line.will(self.now)
        self.coordinator_transport.set_will(will.topic, will.payload, will.qos, will.retain, 0)

    def start_agent(self, name: str) -> Agent:
        agent = Agent(self.folder, name, self.bundles, self.connect, self.agent_options, self.stopwatch)
        agent.start(self.now)
        self.agents[name] = agent
        return agent

    def crash_agent(self, name: str) -> None:
        """What ``kill -9`` does: the kernel closes the files, nothing else happens."""
        agent = self.agents.pop(name)
        self.broker.disconnect(name)
        if (outbox := agent.core._reports._outbox) is not None:
            outbox._shut()
        for host in agent.models.hosts.values():
            kill(host.model)
        for lock in agent.models._locks:
            os.close(lock)

    def close(self) -> None:
        """Give all files free at the end of a test."""
        for name in list(self.agents):
            self.crash_agent(name)
        if self.coordinator is not None:
            self.crash_coordinator()

    def crash_coordinator(self) -> None:
        """What ``kill -9`` does."""
        self.broker.disconnect("coordinator")
        self.coordinator = None
        self.store.close()

    def step(self, dt_s: float = 0.25) -> None:
        """Let time pass and messages flow once."""
        self.now_s += dt_s
        self.broker.deliver()
        for agent in list(self.agents.values()):
            agent.tick(self.now)
        if self.coordinator is not None:
            for event in taken(self.coordinator_events):
                self.coordinator.transport(event, self.now)
                if isinstance(event, Connected):
                    self.set_coordinators_will()
            for effect in self.coordinator.tick(self.now):
                self.coordinator_transport.publish(effect.topic, effect.payload, qos=effect.qos, retain=effect.retain)

    def run(self, seconds: float, dt_s: float = 0.25) -> None:
        """Let time pass."""
        end = self.now_s + seconds
        while self.now_s < end:
            self.step(dt_s)

    def until(self, what: str, ready: Any, seconds: float = 300.0, dt_s: float = 0.25) -> None:
        """Let time pass until something is true."""
        end = self.now_s + seconds
        while not ready():
            assert self.now_s < end, f"{what} did not happen in {seconds} s of simulated time"
            self.step(dt_s)

    def teach(self, name: str, x: np.ndarray, y: np.ndarray, tag: str = "s") -> None:
        """Predict and label samples on a device."""
        for i in range(len(x)):
            self.agents[name].core.request({"op": "predict", "id": f"{tag}{i}", "x": x[i]}, self.now)
            answer = self.agents[name].core.request({"op": "label", "id": f"{tag}{i}", "y": int(y[i])}, self.now)
            assert answer["joined"]

    def device(self, name: str) -> Any:
        """What the coordinator knows of a device and its first model; None while it knows of none."""
        row, models = self.store.devices.get(name), self.store.devices.models(name)
        return None if row is None else SimpleNamespace(**as_dict(models[0] if models else Model()) | as_dict(row))

    def known(self, name: str, model: str) -> Any:
        """What the coordinator knows of a model of a device; None while that is nothing."""
        return next((row for row in self.store.devices.models(name) if row.model == model), None)

    def settled(self) -> bool:
        """Whether all that was learned is merged, and the merge is active everywhere."""
        rows, releases = self.store.contributions.all(), self.store.releases.all()
        merged = len(rows) == len(self.agents) and all(row.version == row.merged_version for row in rows)
        return merged and bool(releases) and self.converged(releases[0].counter)

    def converged(self, counter: int) -> bool:
        """Whether every device has this release active, and the coordinator knows it."""
        rows = ((self.store.devices.models(name) or [Model()])[0] for name in self.agents)
        return all((row.state, row.state_release) == ("active", counter) for row in rows)
