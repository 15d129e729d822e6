"""A backup holds all of a coordinator that runs, is proved, and comes back whole or not at all; damage is told."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sqlite3
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge.channel.messages import Conn
from edge.cli.coordinator import coordinator
from edge.contract.clock import Now
from edge.contract.errors import BundleError, ConfigError, ResourceError, RolloutError
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.devices.registry import Registry
from edge.coordinator.events import Events
from edge.coordinator.machine.backup import DATABASE, KEYS, back_up, restore
from edge.coordinator.machine.place import Place
from edge.coordinator.records import Device, KnownDevice, LoggedEvent, Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.store.database import Damaged
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadRelease
from tests.support.light_fleet import Fleet, ends
from tests.support.postgres import PostgresServer

NOW = Now(1.0, 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder of a coordinator that has seen something."""
    folder = tmp_path / "data"
    fill(folder / DATABASE, folder)
    return folder


def fill(where: Path | str, folder: Path) -> None:
    artifacts = ArtifactStore(folder / "artifacts")
    store = Store(where)
    registry = Registry(store, Events(store))
    for i in range(5):
        registry.conn(f"cam-{i}", Conn(online=True, session=1, boot=1, ts_ms=0), NOW)
        registry.telemetry(f"cam-{i}", {"boot": 1, "seq": 1, "acc": 0.5, "name": "ü"}, NOW)
    registry.keep_telemetry(NOW)
    for name in KEYS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"of {name}")
    digest = artifacts.put(b"a head" * 1000).digest
    release = {"kind": "head", "backbone": "b", "devices": ("cam-1",), "reason": "r", "created_ms": 2**41}
    store.releases.add(Release(counter=7, digest=digest, **release))  # type: ignore[arg-type]
    store.events.add(LoggedEvent(device="", name="release", detail="7", at_ms=1))
    store.close()


def kept(store: Store) -> list[Any]:
    return [
        store.devices.all(),
        store.telemetry.after(0, 100),
        store.releases.all(),
        store.events.newest(100),
    ]


@contextlib.contextmanager
def opened(where: Path | str) -> Iterator[Store]:
    store = Store(where)
    yield store
    store.close()


def test_a_backup_is_made_while_the_coordinator_writes_and_comes_back_whole(data: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with opened(data / DATABASE) as store:
            while not stop.is_set():
                store.events.add(LoggedEvent(device="cam-0", name="x", detail="", at_ms=1))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = back_up(data, "", tmp_path / "fleet.tar")
    finally:
        stop.set()
        writer.join()
    assert (done["artifacts"], done["rows"]["device"], done["rows"]["telemetry"]) == (1, 5, 5)
    put = restore(tmp_path / "fleet.tar", tmp_path / "new", "")
    assert put == {"artifacts": 1, "rows": done["rows"]}
    with opened(data / DATABASE) as before, opened(tmp_path / "new" / DATABASE) as after:
        assert kept(after)[:3] == kept(before)[:3]
        assert len(after.events.newest(10_000)) == done["rows"]["event"]
        digest = after.releases.all()[0].digest
    assert ArtifactStore(tmp_path / "new" / "artifacts").get(digest).size_bytes == 6000
    assert sorted(path.name for path in (tmp_path / "new").iterdir() if not path.name.startswith(DATABASE)) == [
        "artifacts",
        "authority",
        "lock",
        "receipts.key",
    ]
    for name in KEYS:  # what they signed can still be checked
        assert (tmp_path / "new" / name).read_text() == f"of {name}"
        assert (tmp_path / "new" / name).stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="has a database already"):
        restore(tmp_path / "fleet.tar", tmp_path / "new", "")


def test_after_yesterdays_backup_no_release_gets_a_number_that_devices_know(
    tmp_path: Path, digits_bundle: Path
) -> None:
    """faults: 39. Whatever became of a release on a device: it runs it, is ready for it, or refused it."""
    for last in ("active", "staged", "refused", "rolled-back", "failed"):
        folder = tmp_path / last
        fleet = Fleet(folder, digits_bundle, 2, ends("active"), where=folder / DATABASE)
        fleet.push()
        fleet.pass_time(20, 10)
        back_up(folder, "", tmp_path / f"{last}.tar")
        fleet.head = replace(HeadRelease.decode(fleet.head, ""), origin=last).encode()
        for device in fleet.devices.values():
            device.behaviour = ends(last)
        kept = fleet.core.add_artifact(fleet.head, Path("/nonexistent"))
        for _ in range(3):
            fleet.core.push(kept["digest"], "head", kept["backbone"], [], "since", fleet.now)
        fleet.pass_time(20, 10)
        fleet.core.dialogue.tell("d000", fleet.now)
        fleet.deliver()
        told = fleet.devices["d000"].told[-1]
        assert told.release == 4
        fleet.close()
        restore(tmp_path / f"{last}.tar", tmp_path / f"{last}-new", "")
        fleet.folder = tmp_path / f"{last}-new"
        fleet.where = fleet.folder / DATABASE
        fleet.start()
        kept = fleet.core.add_artifact(fleet.head, Path("/nonexistent"))
        push = lambda: fleet.core.push(kept["digest"], "head", kept["backbone"], [], "t", fleet.now)  # noqa: B023, E731
        with pytest.raises(RolloutError, match="devices have not said yet which releases they know"):
            push()
        one = fleet.devices["d000"]
        one.release = told.release if last in ("active", "rolled-back") else 1
        one.connect()  # as the broker keeps it, and its state
        one.state(told, last, "of before", None)
        fleet.pass_time(3, 1)
        assert push().counter == 5, last
        fleet.close()


def test_what_a_coordinator_keeps_is_for_its_owner_only(tmp_path: Path, data: Path) -> None:
    before = os.umask(0o022)
    try:
        Store(tmp_path / "made" / DATABASE).close()
        back_up(data, "", tmp_path / "fleet.tar")
        restore(tmp_path / "fleet.tar", tmp_path / "restored", "")
        with contextlib.suppress(ConfigError):
            place = Place(CoordinatorConfig(fleet="f", name="n", data_dir=tmp_path / "s"), "127.0.0.1", 0, "b")
            place.settle()
            place.close()
    finally:
        os.umask(before)
    for folder in ("made", "restored", "s"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700, folder
    for folder in ("made", "restored"):
        for path in (tmp_path / folder).glob(f"{DATABASE}*"):
            assert path.stat().st_mode & 0o777 == 0o600, path
    (tmp_path / "theirs").mkdir(mode=0o755)
    Store(tmp_path / "theirs" / DATABASE).close()
    assert (tmp_path / "theirs").stat().st_mode & 0o777 == 0o755, "what was there stays as it was"


def test_a_backup_goes_from_one_kind_of_database_into_the_other(tmp_path: Path, postgres: PostgresServer) -> None:
    first, second = postgres.new(), postgres.new()
    fill(first, tmp_path / "data")
    back_up(tmp_path / "data", first, tmp_path / "fleet.tar")
    restore(tmp_path / "fleet.tar", tmp_path / "lite", "")
    restore(tmp_path / "fleet.tar", tmp_path / "new", second)
    with opened(first) as a, opened(tmp_path / "lite" / DATABASE) as b, opened(second) as c:
        assert kept(a) == kept(b) == kept(c)
        c.events.add(LoggedEvent(device="", name="next", detail="", at_ms=1))  # it has a number of its own
        assert c.events.newest(1)[0].name == "next"
    assert not list((tmp_path / "new").glob("*sqlite*"))
    with pytest.raises(ConfigError, match=r"rows already \\(.*device.*restore into an empty one".replace("\\\\", "\\")):
        restore(tmp_path / "fleet.tar", tmp_path / "other", first)


def test_a_backup_that_is_damaged_is_refused_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "fleet.tar"
    back_up(data, "", file)
    whole = file.read_bytes()
    for place in range(600, len(whole), len(whole) // 40):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        file.write_bytes(changed)
        with contextlib.suppress(BundleError):
            restore(file, tmp_path / f"at-{place}", "")
            # What was changed is the padding of the tar: all that counts is as it was.
            with opened(data / DATABASE) as before, opened(tmp_path / f"at-{place}" / DATABASE) as after:
                assert kept(after) == kept(before)
            continue
        assert not (tmp_path / f"at-{place}").exists()
    for size in (0, 10, 5000, len(whole) // 2, len(whole) - 11_000):
        file.write_bytes(whole[:size])
        with pytest.raises(BundleError):
            restore(file, tmp_path / "cut", "")
    with tarfile.open(file, "w") as tar:
        (tmp_path / "evil").write_text("x")
        tar.add(tmp_path / "evil", "artifacts/../../evil")
        (tmp_path / "backup.json").write_text(json.dumps({"members": {"artifacts/../../evil": "0" * 64}}))
        tar.add(tmp_path / "backup.json", "backup.json")
    with pytest.raises(BundleError, match="not what it says"):
        restore(file, tmp_path / "cut", "")
    assert not (tmp_path / "cut").exists()
    with pytest.raises(ConfigError, match="cannot be read"):
        restore(tmp_path / "nothing.tar", tmp_path / "cut", "")


@pytest.mark.parametrize("limit", [100_000, 3_000_000])
@pytest.mark.parametrize("was_there", [True, False])
def test_a_restore_onto_a_disk_without_room_leaves_nothing_and_says_where_it_lacks(
    data: Path, tmp_path: Path, limit: int, was_there: bool
) -> None:
    """The system refuses to write so much: of the database, or of an artifact that is longer."""
    ArtifactStore(data / "artifacts").put(os.urandom(5_000_000))
    back_up(data, "", tmp_path / "fleet.tar")
    assert 100_000 < (data / DATABASE).stat().st_size < 3_000_000
    new = tmp_path / "new"
    if was_there:
        (new / "mine").mkdir(parents=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"/new cannot be written: .*; nothing of the backup is left there"):
            restore(tmp_path / "fleet.tar", new, "")
        with pytest.raises(ConfigError):
            back_up(data, "", tmp_path / "other.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = [path.name for path in new.rglob("*")] if new.exists() else None
    assert left == (["mine"] if was_there else None)
    assert {path.name for path in tmp_path.iterdir()} - {"new"} == {"data", "fleet.tar"}
    restore(tmp_path / "fleet.tar", new, "")


def test_the_commands_say_what_was_done_and_what_is_wrong(data: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(coordinator, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "5 devices, 1 releases, 1 artifacts" in run("backup", tmp_path / "a.tar", "--data-dir", data)
    assert (tmp_path / "a.tar").stat().st_mode & 0o777 == 0o600, "private keys are in it"
    assert json.loads(run("restore", tmp_path / "a.tar", "--data-dir", tmp_path / "n", "--json"))["artifacts"] == 1
    only = (tmp_path / "a.tar").read_bytes()
    with pytest.raises(ConfigError, match=r"a\.tar exists; give another name, or --force"):
        run("backup", tmp_path / "a.tar", "--data-dir", data)
    assert (tmp_path / "a.tar").read_bytes() == only
    assert "read again and whole" in run("backup", tmp_path / "a.tar", "--data-dir", data, "--force")
    with pytest.raises(ConfigError, match="not to the standard output"):
        run("backup", "-", "--data-dir", data)
    with pytest.raises(ConfigError, match="no data folder of a coordinator"):
        run("backup", tmp_path / "b.tar", "--data-dir", tmp_path / "nowhere")
    artifact = next((data / "artifacts").iterdir())
    artifact.write_bytes(b"changed")
    with pytest.raises(BundleError, match="changed on disk"):
        run("backup", tmp_path / "b.tar", "--data-dir", data)
    assert not (tmp_path / "b.tar").exists()
    assert not list(tmp_path.glob(".edge-backup-*"))


def test_a_damaged_page_is_told_with_the_cure_at_the_start_and_in_flight(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    with opened(path) as store:
        for i in range(300):
            store.devices.keep(KnownDevice(device=Device(id=f"cam-{i:03}", hardware={"x": "y" * 200})), None)
    with contextlib.closing(sqlite3.connect(path)) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'device'").fetchone()
    with opened(path) as store:
        with path.open("r+b") as file:
            file.seek((root - 1) * 4096)
            file.write(b"\xff" * 4096)
        store._database._engine.dispose()  # the connection remembers pages
        with pytest.raises(Damaged, match=r"is damaged \(.*malformed.*\).*restore the newest backup"):
            store.devices.all()
        assert store.events.newest(1) == [], "what lies on other pages is there"
    with pytest.raises(Damaged, match=r"is damaged \(.*restore the newest backup"):
        Store(path)
    with pytest.raises(ConfigError, match="is damaged"):
        back_up(tmp_path, "", tmp_path / "fleet.tar")
    assert not (tmp_path / "fleet.tar").exists()
