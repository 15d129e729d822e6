"""A disk that fills, really: artifacts stop first, telemetry next, it is said, and it heals (fault 52)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.channel.codec import encode
from edge.channel.messages import Conn
from edge.channel.transport import Connected, Received
from edge.contract.clock import Now
from edge.contract.errors import ResourceError
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.machine.room import Level, Room
from edge.coordinator.releases.artifacts import ArtifactStore
from tests.support.fleet import store_in

_MIB = 1 << 20
DISK, KEEP = 16 * _MIB, 4 * _MIB


class Disk:
    """A small disk, with a file in it that takes room."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        self.told: Callable[[], int] = lambda: shutil.disk_usage(folder).free

    def leave(self, n_bytes: int) -> None:
        """Have so much free."""
        self._filler.unlink(missing_ok=True)
        with self._filler.open("wb") as file:
            if (size := self.told() - n_bytes) > 0:
                os.posix_fallocate(file.fileno(), 0, size)


class Quota(Disk):
    """Where no disk can be mounted: a number instead of one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.free = DISK
        self.told = lambda: self.free

    def leave(self, n_bytes: int) -> None:
        self.free = n_bytes


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        yield Disk(folder)
        subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        yield Quota(folder)


def test_artifacts_stop_first_telemetry_next_and_all_goes_on_by_itself(disk: Disk) -> None:
    store = store_in(disk.folder / "db.sqlite")
    config = CoordinatorConfig(fleet="lab", name="c", data_dir=disk.folder, auto_merge=False)
    artifacts = ArtifactStore(disk.folder / "artifacts", Room(disk.told, KEEP, str(disk.folder)))
    core = CoordinatorCore(config, store, artifacts)
    seconds = iter(range(1000, 100_000, 100))

    def say(leaf: str, payload: bytes) -> None:
        now = Now(float(next(seconds)), 1_800_000_000_000)
        core.transport(Received(topic=f"edge/v1/lab/cam/{leaf}", payload=payload, retained=False), now)

    def tick() -> list[str]:
        now = Now(float(next(seconds)), 1_800_000_000_000)
        return [each.topic.split("/", 4)[-1] for each in core.tick(now)]

    def events() -> list[str]:
        # Nothing comes back over this line, which is told as well.
        return [each.name for each in store.events.newest(100, device="")[::-1] if each.name != "broker-silent"]

    def telemetry(seq: int) -> int:
        say("up/tele", b'{"boot":1,"seq":%d,"acc":0.5}' % seq)
        tick()
        return len(store.telemetry.after(-1, 1000))

    def history(seq: int) -> list[str]:
        one = {"boot": 1, "seq": seq, "ts": 0, "acc": 0.5}
        say("up/hist", json.dumps([one]).encode())
        return [leaf for leaf in tick() if leaf == "dn/hist"]

    core.transport(Connected(session_present=False, max_packet_bytes=_MIB), Now(900.0, 1_800_000_000_000))
    artifacts.put(b"a" * _MIB)
    assert telemetry(1) == 1
    assert history(2) == ["dn/hist"]

    disk.leave(KEEP - _MIB // 2)
    assert telemetry(3) == 3, "telemetry goes on"
    with pytest.raises(ResourceError, match=r"an artifact of 1\.0 MiB is not taken"):
        artifacts.put(b"b" * _MIB)
    artifacts.put(b"a" * _MIB)  # what is there already
    assert events() == ["disk-full"]

    disk.leave(KEEP // 5)
    assert telemetry(4) == 3
    assert history(5) == [], "the device keeps it"
    assert events() == ["disk-full", "disk-full", "telemetry-dropped"]
    assert "there is no room for telemetry" in store.events.newest(1, device="cam")[0].detail
    say("up/conn", encode(Conn(online=True, session=1, boot=1, ts_ms=0)))
    device = store.devices.get("cam")
    assert device is not None
    assert device.online, "what decides is still written"

    disk.leave(0)  # not a byte more: nothing ends, whatever can be written or not
    for seq in range(6, 12):
        telemetry(seq)
        say("up/conn", encode(Conn(online=True, session=seq, boot=1, ts_ms=0, state_id=f"{seq:016x}")))

    disk.leave(DISK - 6 * _MIB)
    tick()
    assert telemetry(20) == 4
    assert history(21) == ["dn/hist"]
    artifacts.put(b"b" * _MIB)
    tick()
    assert "disk-healed" in events()
    say("up/conn", encode(Conn(online=True, session=99, boot=9, ts_ms=9, state_id="f" * 16)))
    device = store.devices.get("cam")
    assert device is not None
    assert device.session == 99
    store.close()


def test_a_disk_that_cannot_be_asked_stops_nothing() -> None:
    def broken() -> int:
        raise OSError(5, "Input/output error")

    room = Room(broken, KEEP, "x")
    room.check(1 << 40)
    assert room.now() is Level.ALL
    Room().check(1 << 40)
