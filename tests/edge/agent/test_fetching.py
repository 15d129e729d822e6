"""An artifact arrives by the shortest way that the device can use, and whatever is wrong with that way, it arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.agent.slots.fetching import Fetch
from edge.agent.slots.slots import Slots
from edge.channel.chunks import chunk_digests, index_digest
from edge.channel.download import serve
from edge.channel.frames import HEADER_BYTES
from edge.channel.memory import MemoryTransport
from edge.channel.messages import Desired
from edge.channel.transport import Received, TransportEvent
from edge.contract.bundle import Bundle, write_bundle
from edge.contract.bundle import members_of as members
from edge.contract.digest import sha256
from edge.learning.exchange import HeadRelease
from tests.support.fleet import SimulatedFleet


class Line:
    """Counts the bytes of artifacts on their way to a device."""

    def __init__(self, fleet: SimulatedFleet) -> None:
        self.events: list[TransportEvent] = []
        spy = MemoryTransport(fleet.broker, "spy")
        spy.subscribe([("edge/v1/lab/one/dn/f/+", 0)])
        spy.start(self.events.append)

    def taken(self) -> int:
        """Bytes of chunks and of their digests since the last look."""
        count = sum(len(event.payload) - HEADER_BYTES for event in self.events if isinstance(event, Received))
        self.events.clear()
        return count


@pytest.fixture
def fleet(tmp_path: Path, digits_bundle: Path) -> Iterator[SimulatedFleet]:
    made = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    made.run(2.0)
    yield made
    made.close()


def push(fleet: SimulatedFleet, path: Path) -> tuple[int, str]:
    assert fleet.coordinator is not None
    kept = fleet.coordinator.add_artifact(path.read_bytes(), path)
    release = fleet.coordinator.push(kept["digest"], kept["kind"], kept["backbone"], [], "test", fleet.now)
    return release.counter, kept["digest"]


def with_other_head(bundle: Path, to: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The same bundle but for its head, and what goes with it."""
    import dataclasses

    import safetensors.numpy

    opened = Bundle.open(bundle)
    blobs = {role: opened.read(role) for role in opened.manifest.members}
    parameters = safetensors.numpy.load(blobs["head.safetensors"])
    blobs["head.safetensors"] = safetensors.numpy.save({name: change(value) for name, value in parameters.items()})
    write_bundle(to, dataclasses.replace(opened.manifest, members=members(blobs)), blobs)
    return to


def trained(value: np.ndarray) -> np.ndarray:
    return (value * (1 + 1e-5 * np.random.default_rng(1).normal(size=value.shape))).astype(np.float32)


def test_a_bundle_whose_head_alone_changed_costs_little_more_than_that_head(
    fleet: SimulatedFleet, digits_bundle: Path, tmp_path: Path
) -> None:
    line = Line(fleet)
    changed = with_other_head(digits_bundle, tmp_path / "changed.edge", trained)
    head = len(Bundle.open(changed).read("head.safetensors"))
    counter, _ = push(fleet, changed)
    fleet.until("active", lambda: fleet.converged(counter))
    assert fleet.agents["one"].host.model.bundle.digest == Bundle.open(changed).digest
    assert line.taken() < 1.2 * head
    assert changed.stat().st_size > 10 * head


def test_a_head_comes_as_what_differs_from_the_one_before_also_after_a_restart(
    fleet: SimulatedFleet, digits_bundle: Path, tmp_path: Path
) -> None:
    line, backbone = Line(fleet), Bundle.open(digits_bundle).manifest.backbone_digest
    parameters = fleet.agents["one"].host.model.live_head().parameters
    taken = []
    for number in range(3):
        moved = {name: trained(value) + np.float32(1e-4 * number) for name, value in parameters.items()}
        path = tmp_path / f"{number}.head"
        path.write_bytes(HeadRelease(backbone=backbone, parameters=moved, origin="push", n_samples=1).encode())
        counter, _ = push(fleet, path)
        fleet.until("active", lambda counter=counter: fleet.converged(counter))
        taken.append(line.taken())
        if number == 1:
            fleet.crash_agent("one")
            fleet.start_agent("one")
            fleet.crash_coordinator()
            fleet.start_coordinator()
            fleet.run(2.0)
            line = Line(fleet)
    assert taken[1] < 0.9 * taken[0]
    assert taken[2] < 0.9 * taken[0]


def test_a_form_that_does_not_give_the_artifact_costs_its_bytes_only(
    fleet: SimulatedFleet, digits_bundle: Path, tmp_path: Path
) -> None:
    changed = with_other_head(digits_bundle, tmp_path / "changed.edge", trained)
    agent = fleet.agents["one"]
    # The file that the device came with was changed on disk after it was looked at: what is made of it is wrong.
    own = tmp_path / "own.edge"
    own.write_bytes(digits_bundle.read_bytes())
    agent.host.bases()
    spoiled = bytearray(own.read_bytes())
    spoiled[-3000:-1000] = bytes(2000)
    own.write_bytes(spoiled)
    agent.config.bundles["digits"] = own
    line = Line(fleet)
    counter, _ = push(fleet, changed)
    fleet.until("active", lambda: fleet.converged(counter))
    assert line.taken() > changed.stat().st_size
    assert any("made of its shorter form" in event.detail for event in fleet.store.events.newest(100))


def test_an_artifact_that_changes_on_disk_while_it_is_served_is_an_event_at_once(
    fleet: SimulatedFleet, other_bundle: Path, tmp_path: Path
) -> None:
    agent = fleet.agents["one"]
    counter, digest = push(fleet, other_bundle)
    fleet.until("fetching", lambda: agent.model.deployment._fetch is not None)
    data = bytearray(other_bundle.read_bytes())
    for path in ((tmp_path / "coordinator" / "artifacts").rglob("*"),):
        for each in path:
            if each.is_file() and each.stat().st_size > 10_000:
                each.write_bytes(bytes(each.stat().st_size))
    fleet.until(
        "told", lambda: any(event.name.startswith("artifact-") for event in fleet.store.events.newest(100)), seconds=5.0
    )
    (tmp_path / "coordinator" / "artifacts" / digest).write_bytes(data)  # as the operator pushes it again
    fleet.until("active", lambda: fleet.converged(counter))


def test_a_download_goes_on_where_a_kill_ended_it_also_under_another_number(tmp_path: Path) -> None:
    data, size = np.random.default_rng(0).bytes(100 * 1024), 1024
    index = chunk_digests(data, size)
    wanted = lambda number: Desired(  # noqa: E731
        release=number,
        kind="bundle",
        digest=sha256(data),
        size_bytes=len(data),
        chunk_size_bytes=size,
        index_digest=index_digest(index),
        backbone="",
        reason="",
        ts_ms=0,
    )
    served: list[int] = []
    for number in range(1, 10):  # each life takes 20 chunks, and is killed
        fetch = Fetch(wanted(number), Slots(tmp_path, "one"), {}, 0.0)
        life = 0
        while fetch.arrived is None and fetch.requests and life < 20:
            request = fetch.requests.pop(0)
            for frame in serve(request, lambda a, n: data[a : a + n], len(data), size, index):
                if frame.part == "data":
                    served.append(frame.index)
                    life += 1
                fetch.frame(frame, 0.0)
                if life == 20:
                    break
        if fetch.arrived is not None:
            break
    assert fetch.arrived is not None
    assert fetch.arrived.read_bytes() == data
    assert number == 5
    assert sorted(served) == list(range(100)), "a chunk that is here is not asked for again"
