"""A coordinator's folder with a history: what devices said, merges, and rollouts that stand somewhere."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge.channel import confusion
from edge.channel.messages import Birth, Conn, Event, Pairs, Served, State
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.coordinator.machine.backup import DATABASE
from edge.coordinator.records import FleetQuestion, TelemetryEntry
from edge.coordinator.selection import for_devices
from edge.learning.exchange import HeadUpdate
from edge.learning.statistics import HeadStatistics
from tests.edge.coordinator.test_rollouts import gains
from tests.support.contributions import samples
from tests.support.light_fleet import Device, Fleet

SITES = ("north", "south", "east", "west")
# What a page must show as it stands, and never run.
EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'>\"'"


class ShownFleet(Fleet):
    """Its clock begins an hour and a half before now."""

    def start(self) -> None:
        if self.store is None and self.now.wall_ms == 1_800_000_000_000:
            self.now = Now(1000.0, time.time_ns() // 1_000_000 - 7_800_000)
        super().start()


def fill(folder: Path, bundle: Path, n: int) -> list[str]:
    """Make the data folder of a coordinator with so many devices.

    Returns:
        Their names.
    """
    names = [f"d{i:03}" for i in range(n)]
    names[-1] += "x" * (64 - len(names[-1]))  # as long as one may be
    fleet = ShownFleet(folder, bundle, n, gains(0.05), names)
    assert fleet.store is not None
    introduced = birth(fleet.backbone, Bundle.open(bundle).digest)
    with fleet.store.transaction():
        for i, name in enumerate(names):
            fleet.devices[name].say("up/conn", Conn(online=True, session=1, boot=1, ts_ms=0, state_id="a" * 16))
            fleet.devices[name].say("up/birth", introduced)
            fleet.core.tag(name, {"site": SITES[i % len(SITES)], "line": str(i % 3)}, fleet.now)
        fleet.core.tag(names[-1], {"long": "y" * 64}, fleet.now)
    _learn(fleet, Bundle.open(bundle), names[:6])
    _roll_out(fleet, introduced)
    _measure(fleet, names)
    fleet.close()
    (folder / "db.sqlite").rename(folder / DATABASE)
    return names


def _learn(fleet: ShownFleet, bundle: Bundle, names: list[str]) -> None:
    """Contributions, a merge of them, and what devices said of it."""
    for i, name in enumerate(names):
        x, y = samples(bundle.manifest.class_names, i, 60)
        update = HeadUpdate(
            learner="statistics", backbone=fleet.backbone, lineage=f"lineage-{i}", version=60, n_samples=60,
            base_release=0, tensors=dict(HeadStatistics.of(x, y, 10).to_tensors()), model="digits",
        )  # fmt: skip
        fleet.core.learning.take(name, update.encode(), fleet.now)
    (release,) = fleet.core.merge_now(fleet.now)
    said = (
        ("active", "probation: accuracy 0.953 against 0.906 on 32 recent labels"),
        ("active", "probation: accuracy 0.969 against 0.938 on 32 recent labels"),
        ("active", "probation: not judged: 0 recent labels, 20 needed"),
        ("rolled-back", f"accuracy 0.531 against 0.906 on 32 recent labels {EVIL}"),
        ("probation", ""),
    )
    for name, (state, detail) in zip(names, said, strict=False):
        device = fleet.devices[name]
        device.seq += 1
        device.release = release.counter
        message = State(
            ts_ms=0, seq=device.seq, slot="head", state=state, release=release.counter, digest=release.digest,
            detail=detail, model="digits", state_id="a" * 16,
        )  # fmt: skip
        device.say("up/state", message)


def _roll_out(fleet: ShownFleet, introduced: Birth) -> None:
    """A rollout that is through, one that is held for nothing can tell whether it is good, one that devices judge."""
    fleet.push(name="autumn")
    fleet.pass_time(1800, 600)
    fleet.pass_time(1800, 600)

    def unsure(device: Device, desired: object) -> list[tuple[str, str, Pairs | None]]:
        if device.name.endswith("3"):
            return [("refused", f"trial: it gives values that are not finite {EVIL}", None)]
        return [
            ("probation", "", None),
            ("active", "not judged: 0 recent labels, 20 needed", Pairs(compared=64, differ=30)),
        ]

    for device in fleet.devices.values():
        device.behaviour = unsure
    names = list(fleet.devices)
    fleet.push(names[3:], name="winter")
    fleet.pass_time(1800, 900)
    fleet.pass_time(1800, 900)
    for name in names[:3]:
        fleet.devices[name].say("up/birth", replace(introduced, evaluates=True, n_labels=60))
    fleet.start_plan(select=for_devices(names[:3]), waves=["100 %"], start={"judges": 3})


def _measure(fleet: ShownFleet, names: list[str]) -> None:
    """Telemetry of the last hour: much of the first device, a little of all; some are away, one is new."""
    assert fleet.store is not None
    now_ms = time.time_ns() // 1_000_000
    fleet.now = Now(fleet.now.s, now_ms)
    rng = np.random.default_rng(4)
    entries = []
    for i, name in enumerate(names):
        count = 200 if i == 0 else 3
        for j in range(count):
            at = now_ms - (count - j) * 18_000
            right = 0.97 - 0.35 * math.exp(-((j - 110) ** 2) / 900)
            values = {
                "boot": 1, "seq": j + 1, "model": "digits", "release": 2, "samples": j, "state_id": "a" * 16,
                "lat_p50_ms": 0.14 + 0.01 * rng.random(), "lat_p99_ms": 0.5 + 0.2 * rng.random(), "acc": right,
                "mem_mb": 78 + j / 50, "temp_c": 51 + 3 * math.sin(j / 20), "cpu_pct": 4 + 2 * rng.random(),
                "disk_free_mb": 7921.3, "infer_per_s": 4.9, "waiting": int(j % 7 == 0),
                "experts": {
                    "own": [1 - j / 260, 0.9, j], "merge 1": [j / 260, 0.95, max(0, j - 20)], EVIL: [0.0, 0.0, 0.0],
                },
            }  # fmt: skip
            entries.append(
                TelemetryEntry(device=name, boot=1, seq=j + 1, received_ms=at, values=values, state_id="a" * 16)
            )
        if i < 3:
            entries[-1].values["confusion"] = confusion.told(_answers(i))  # type: ignore[index]
            fleet.core.registry.telemetry(name, {**entries[-1].values, "seq": 900}, fleet.now)
    fleet.store.telemetry.add(entries)
    fleet.core.registry.keep_telemetry(fleet.now)
    for name in names[-(len(names) // 20) :]:
        fleet.devices[name].say("up/conn", Conn(online=False, session=1, boot=1, ts_ms=0, state_id="a" * 16))
    # All were heard now; the others are online.
    with fleet.store.transaction():
        for name in names:
            fleet.store.devices.hear(name, now_ms)
    for name, kind, detail in (
        (names[0], "drift", "the error rose from 0.05 to 0.41"),
        (names[1], "data-cap", "20 MB a day are used up"),
        (names[2], "warning", EVIL),
    ):
        event = Event(ts_ms=now_ms, name=kind, detail=detail, model="digits", boot=1, seq=1, state_id="a" * 16)
        fleet.core.registry.event(name, event, replace(fleet.now, wall_ms=now_ms - 1_500_000))
    question = FleetQuestion(
        backbone=fleet.backbone, device=names[0], model="digits", sample=f"shelf {EVIL}", answered_ms=now_ms, said="3",
        confidence=0.91, devices=3, samples=4, asked_ms=now_ms,
    )  # fmt: skip
    kept = fleet.store.questions.add(question, [])
    fleet.store.questions.save(replace(kept, state="answered", label="8", who="ann", closed_ms=now_ms))


def _answers(i: int) -> dict[str, dict[str, int]]:
    """What a device answered to digits: most right, 8 taken for 3 now and then, few labels of 9."""
    found = {str(c): {str(c): 18 + (c + i) % 7} for c in range(9)}
    found["8"]["3"] = 4 + i
    found["4"]["9"] = 2
    return found | {"9": {"9": 2, "4": 1}}


def birth(backbone: str, bundle: str) -> Birth:
    """What a device says of itself."""
    served = Served(model="digits", bundle=bundle, backbone=backbone, head="", release=0, n_labels=0)
    return Birth(
        agent_version="0.1.0", boot=1, session=1, ts_ms=0, profile="raspberry-pi-4", bundle=bundle, head="", n_labels=0,
        hardware={"machine": "aarch64", "cpu_count": 4, "memory_mb": 3792}, backbone=backbone, release=0, limits={},
        models=(served,), state_id="a" * 16,
    )  # fmt: skip
