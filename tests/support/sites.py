"""Coordinators in two tiers in one process, on brokers in memory, under one clock; devices are what they contribute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge.channel import topics
from edge.channel.memory import MemoryBroker, MemoryTransport
from edge.channel.messages import Birth
from edge.channel.transport import TransportEvent
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.coordinator.config import CoordinatorConfig, SiteConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.upstream.uplink import Uplink
from edge.learning.exchange import HeadRelease, HeadUpdate
from tests.support.contributions import policy_of
from tests.support.fleet import store_in


@dataclass
class Tier:
    """One coordinator, with its own broker, and the line to the one above where it is a site."""

    folder: Path
    bundle: Path
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    above: MemoryBroker | None = None
    site: str = ""

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        site = SiteConfig(name=self.site, fleet="all-sites", interval_s=1.0) if self.site else None
        config = CoordinatorConfig(
            fleet="lab" if self.site else "all-sites", name="coordinator", data_dir=self.folder, merge_delay_s=1.0,
            reassert_s=5.0, policy=policy_of(screen=False), site=site,
        )  # fmt: skip
        self.store = store_in(self.folder / "db.sqlite")
        self.core = CoordinatorCore(config, self.store, ArtifactStore(self.folder / "artifacts"))
        self.core.add_artifact(self.bundle.read_bytes(), self.bundle)
        self.events: list[TransportEvent] = []
        self.line = MemoryTransport(self.broker, "coordinator")
        self.line.subscribe(topics.coordinator_filters(config.fleet))
        self.line.start(self.events.append)
        self.uplink, self.from_above = None, list[TransportEvent]()
        if site is not None and self.above is not None and self.core.pools is not None:
            self.uplink = Uplink(site, self.core, self.store, self.core.pools, self.folder / "from-above")
            self.connect()

    def connect(self) -> None:
        assert self.above is not None
        self.line_up = MemoryTransport(self.above, self.site)
        self.line_up.subscribe(topics.device_filters("all-sites", self.site))
        self.line_up.start(self.from_above.append)

    def cut_off(self) -> None:
        assert self.above is not None
        self.above.disconnect(self.site)

    def restart(self) -> None:
        """What ``kill -9`` leaves: the files."""
        self.broker.disconnect("coordinator")
        self.cut_off()
        self.store.close()
        self.start()

    def tick(self, now: Now) -> None:
        events, self.events[:] = list(self.events), []
        for event in events:
            self.core.transport(event, now)
        for effect in self.core.tick(now):
            self.line.publish(effect.topic, effect.payload, qos=effect.qos, retain=effect.retain)
        if self.uplink is not None:
            found, self.from_above[:] = list(self.from_above), []
            for event in found:
                self.uplink.transport(event, now)
            for effect in self.uplink.tick(now):
                self.line_up.publish(effect.topic, effect.payload, qos=effect.qos, retain=effect.retain)

    def device(self, name: str, update: HeadUpdate, now: Now) -> None:
        """A device that is there, and what it has learned by now."""
        opened = Bundle.open(self.bundle)
        birth = Birth(
            agent_version="1", boot=1, session=1, ts_ms=now.wall_ms, profile="generic", hardware={},
            bundle=opened.digest, backbone=update.backbone, head="", release=0, n_labels=0, limits={},
        )  # fmt: skip
        self.core.dialogue.said(name, birth, now)
        assert self.core.dialogue.sent(name, "head-update", update.encode(), now) == ""

    def head(self) -> HeadRelease | None:
        """The newest head."""
        found = next((each for each in self.store.releases.all() if each.kind == "head"), None)
        if found is None:
            return None
        return HeadRelease.decode((self.folder / "artifacts" / found.digest).read_bytes(), "the head")

    def told(self, name: str) -> list[str]:
        """What was told of one kind."""
        return [event.detail for event in self.store.events.newest(500) if event.name == name]


class Tree:
    """A coordinator and its sites."""

    def __init__(self, folder: Path, bundle: Path, sites: Sequence[str]) -> None:
        self.now_s = 1000.0
        self.folder, self.bundle = folder, bundle
        self.top = Tier(folder / "top", bundle)
        self.sites = {name: Tier(folder / name, bundle, above=self.top.broker, site=name) for name in sites}
        self.run(1.0)
        for name in sites:
            self.top.core.tag(name, {"role": "site"}, self.now)

    @property
    def now(self) -> Now:
        return Now(self.now_s, int(1_800_000_000_000 + self.now_s * 1000))

    def until(self, ready: Callable[[], bool], seconds: float = 120.0) -> None:
        """Let time pass until something is true, and a little more."""
        end = self.now_s + seconds
        while not ready():
            assert self.now_s < end, "it did not happen"
            self.run(1.0)
        self.run(3.0)

    def run(self, seconds: float, dt_s: float = 0.5) -> None:
        end = self.now_s + seconds
        while self.now_s < end:
            self.now_s += dt_s
            for tier in (self.top, *self.sites.values()):
                tier.broker.deliver()
                tier.tick(self.now)

    def learn(self, site: str, update: HeadUpdate) -> None:
        """A device of a site, called as its lineage, has learned."""
        self.sites[site].device(f"device-{update.lineage}", update, self.now)

    def close(self) -> None:
        for tier in (self.top, *self.sites.values()):
            tier.store.close()


def later(update: HeadUpdate, more: HeadUpdate) -> HeadUpdate:
    """The same lineage with the samples of both."""
    tensors = {name: array + more.tensors[name] for name, array in update.tensors.items()}
    n = update.n_samples + more.n_samples
    return replace(update, tensors=tensors, n_samples=n, version=n)
