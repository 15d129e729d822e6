"""The attacks that The Update Framework names, each tried on a device's own rules, each refused by its name.

The other end is the coordinator's real repository; between the two stands somebody who may change what is answered.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from edge.channel.messages import Desired, Meta
from edge.channel.updates import Trust, packed
from edge.channel.vetting import Believed, Distrusted, Verdict, Vetting
from edge.contract.clock import Now
from edge.contract.digest import sha256
from edge.contract.errors import ConfigError, RolloutError
from edge.coordinator.signing import ceremony
from edge.coordinator.signing.ceremony import Folders, signed
from edge.coordinator.signing.repository import Repository

BACKBONE = "a" * 64
Between = Callable[[str, Meta], Meta]
TODAY = datetime.now(UTC)


def at(when: datetime) -> Now:
    return Now(0.0, int(when.timestamp() * 1000))


def head(text: str, release: int = 1) -> Desired:
    data = text.encode()
    return Desired(
        release=release,
        kind="head",
        digest=sha256(data),
        size_bytes=len(data),
        chunk_size_bytes=1024,
        index_digest=sha256(data),
        backbone=BACKBONE,
        reason="",
        ts_ms=0,
    )


class Fleet:
    """A coordinator with keys, and a device that was given the root."""

    def __init__(self, folder: Path, begun: datetime = TODAY) -> None:
        self.folders = ceremony.init(folder / "keys", begun)
        self.root = self.folders.device_root.read_bytes()
        self.state = folder / "device"
        self.repository = self.coordinator()
        self.vetting = self.device()
        self.asked: list[str] = []

    def coordinator(self, when: datetime = TODAY, folders: Folders | None = None) -> Repository:
        return Repository((folders or self.folders).base / "coordinator", at(when))

    def device(self) -> Vetting:
        return Vetting(Trust(self.state, self.root, fleet="lab", device="one"))

    def sign(self, desired: Desired, device: str = "one", repository: Repository | None = None) -> Desired:
        signature = (repository or self.repository).sign("lab", device, desired, at(TODAY))
        return dataclasses.replace(desired, signature=signature)

    def offer(self, desired: Desired, between: Between = lambda _, meta: meta) -> Verdict | None:
        """What the device decides; None where it still waits after an hour."""
        now_s = 0.0
        self.vetting.offer("digits", desired)
        while now_s < 3600.0 and not self.vetting.verdicts:
            for request in self.vetting.poll(now_s):
                self.asked.append(request.name)
                answer = between(request.name, self.repository.document(request.name))
                self.vetting.take(answer)
            now_s = max(now_s, self.vetting.next_deadline_s)
        return self.vetting.verdicts.pop() if self.vetting.verdicts else None

    def refused(self, desired: Desired, between: Between = lambda _, meta: meta) -> str:
        """The kind of fault by which the device refuses."""
        verdict = self.offer(desired, between)
        assert isinstance(verdict, Distrusted), verdict
        assert verdict.detail
        return verdict.kind


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_what_is_signed_is_believed_also_after_a_restart_and_by_new_documents(fleet: Fleet) -> None:
    assert isinstance(fleet.offer(fleet.sign(head("one"))), Believed)
    fleet.vetting, fleet.asked = fleet.device(), []
    assert isinstance(fleet.offer(fleet.sign(head("two", 2))), Believed)
    assert not any("targets" in name for name in fleet.asked), "what is known and has not changed is not fetched again"


@pytest.mark.parametrize("n_came", range(6))
def test_a_release_that_comes_while_another_is_looked_at_is_looked_at_with_the_lists_of_then(
    fleet: Fleet, n_came: int
) -> None:
    """Else the device says that no list has it, and keeps to that: a slow one refused what others took."""
    fleet.vetting.offer("digits", fleet.sign(head("one")))
    for _ in range(n_came):
        for request in fleet.vetting.poll(0.0):
            fleet.vetting.take(fleet.repository.document(request.name))
    assert fleet.vetting._waiting
    desired = fleet.sign(head("two", 2))
    for each in [desired, dataclasses.replace(desired, ts_ms=1)]:  # it is said again meanwhile
        fleet.vetting.offer("digits", each)
        fleet.vetting.poll(0.0)
    said = fleet.offer(desired)
    assert isinstance(said, Believed), said


def test_arbitrary_software_is_in_no_list(fleet: Fleet) -> None:
    fleet.sign(head("one"))
    other = head("two")
    keyed = fleet.repository._signer.sign(b"")  # of the right key, over something else
    assert fleet.refused(dataclasses.replace(other, signature=f"{keyed.keyid}:{keyed.signature}")) == "wrong-signer"
    from edge.channel.updates import assigned

    made = fleet.repository._signer.sign(assigned("lab", "one", other))
    assert fleet.refused(dataclasses.replace(other, signature=f"{made.keyid}:{made.signature}")) == "not-listed"


def test_who_has_no_key_and_who_has_another_fleets_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    assert fleet.refused(head("one")) == "unsigned"
    assert fleet.asked == [], "nobody can make a device talk by unsigned releases"
    strangers = ceremony.init(tmp_path / "strangers", TODAY)
    theirs = fleet.coordinator(folders=strangers)
    assert fleet.refused(fleet.sign(head("one"), repository=theirs)) == "wrong-signer"
    ours = fleet.repository
    fleet.repository = theirs
    assert fleet.refused(fleet.sign(head("one"))) == "wrong-signer", "all documents are another fleet's"
    fleet.repository = ours
    assert isinstance(fleet.offer(fleet.sign(head("one"))), Believed), "and nothing of it was kept"


def test_what_another_device_was_told_or_says_something_else_is_refused(fleet: Fleet) -> None:
    told = fleet.sign(head("one"), device="two")
    assert fleet.refused(told) == "wrong-signer"
    mine = fleet.sign(head("one"))
    for change in ({"release": 9}, {"kind": "bundle"}, {"model": "other"}, {"size_bytes": 4}, {"backbone": "b" * 64}):
        assert fleet.refused(dataclasses.replace(mine, **change)) == "wrong-signer"
    assert isinstance(fleet.offer(dataclasses.replace(mine, chunk_size_bytes=4096)), Believed), "how it travels is free"


def test_older_documents_than_were_seen_are_a_rollback(fleet: Fleet, tmp_path: Path) -> None:
    fleet.sign(head("one"))
    shutil.copytree(fleet.folders.metadata, tmp_path / "yesterday")
    assert isinstance(fleet.offer(fleet.sign(head("two", 2))), Believed)

    def yesterday(name: str, meta: Meta) -> Meta:
        path = tmp_path / "yesterday" / name
        return packed(name, path.read_bytes()) if path.exists() else meta

    for again in range(2):  # after a restart, too
        assert fleet.refused(fleet.sign(head("one", 3 + again)), yesterday) == "rollback"
        fleet.vetting = fleet.device()


def test_a_frozen_line_is_told_when_what_it_repeats_expires(fleet: Fleet) -> None:
    old = TODAY - timedelta(days=20)
    for path in fleet.folders.metadata.glob("*.heads.json"):
        path.unlink()
    (fleet.folders.metadata / "timestamp.json").unlink()
    fleet.repository = fleet.coordinator(old)
    kept = fleet.repository._folder
    shutil.copytree(kept, fleet.state.parent / "frozen")
    fleet.repository.refresh(at(TODAY))
    desired = fleet.sign(head("one"))

    def frozen(name: str, meta: Meta) -> Meta:
        path = fleet.state.parent / "frozen" / name
        return packed(name, path.read_bytes()) if path.exists() else meta

    assert fleet.refused(desired, frozen) == "expired"
    assert isinstance(fleet.offer(desired), Believed), "a device that was off for long catches up"


def test_documents_that_do_not_belong_together_are_refused(fleet: Fleet) -> None:
    fleet.sign(head("one"))
    before = {path.name: path.read_bytes() for path in fleet.folders.metadata.iterdir()}
    desired = fleet.sign(head("two", 2))
    old_snapshot = max(name for name in before if name.endswith(".snapshot.json"))

    def mixed(name: str, meta: Meta) -> Meta:
        return packed(name, before[old_snapshot]) if name.endswith(".snapshot.json") else meta

    assert fleet.refused(desired, mixed) in ("rollback", "mix-and-match")
    old_heads = max(name for name in before if name.endswith(".heads.json"))

    def mixed_heads(name: str, meta: Meta) -> Meta:
        return packed(name, before[old_heads]) if name.endswith(".heads.json") else meta

    assert fleet.refused(desired, mixed_heads) in ("rollback", "mix-and-match")


def test_a_root_that_too_few_signed_is_refused(fleet: Fleet) -> None:
    desired = fleet.sign(head("one"))
    thief = ceremony.load_key(fleet.folders.roots()[0])
    root = Metadata[Root].from_bytes(fleet.root).signed
    root.version = 2
    root.roles[Root.type].threshold = 1
    root.roles[Root.type].keyids = [thief.public_key.keyid]
    forged = signed(root, [thief]).to_bytes()

    def between(name: str, meta: Meta) -> Meta:
        return packed(name, forged) if name == "2.root.json" else meta

    assert fleet.refused(desired, between) == "wrong-signer"
    assert isinstance(fleet.offer(desired), Believed)


def test_a_list_of_bundles_that_the_coordinators_key_signs_is_refused(fleet: Fleet) -> None:
    """A stolen coordinator ships no graphs: neither does it list them, nor do devices believe its list."""
    data = b"graph"
    bundle = dataclasses.replace(head("graph"), kind="bundle")
    with pytest.raises(RolloutError, match="keys sign"):
        fleet.sign(bundle)
    listed = Metadata[Targets].from_bytes(fleet.repository.bundles()).signed
    from tuf.api.metadata import TargetFile

    listed.targets["bundle/" + bundle.digest] = TargetFile(
        len(data), {"sha256": bundle.digest}, "bundle/" + bundle.digest
    )
    listed.version += 1
    forged = signed(listed, [fleet.repository._signer]).to_bytes()
    with pytest.raises(RolloutError, match="not signed by a key that may"):
        fleet.repository.take_bundles(forged, at(TODAY))
    (fleet.folders.metadata / "2.bundles.json").write_bytes(forged)
    fleet.repository.refresh(at(TODAY))
    assert fleet.refused(fleet.sign(bundle)) == "wrong-signer"


def test_a_stolen_online_key_is_exchanged_and_the_thief_gets_nowhere(fleet: Fleet, tmp_path: Path) -> None:
    """Fast-forward: the thief signs versions that are far ahead; the new key's are believed all the same."""
    shutil.copytree(fleet.folders.base / "coordinator", tmp_path / "thief" / "coordinator")
    thief = fleet.coordinator(TODAY + timedelta(days=3650), Folders(tmp_path / "thief"))
    honest, fleet.repository = fleet.repository, thief
    stolen = fleet.sign(head("bad", 5), repository=thief)
    assert isinstance(fleet.offer(stolen), Believed), "until somebody finds out"
    fleet.repository = honest
    assert fleet.refused(fleet.sign(head("one", 6))) == "rollback"
    ceremony.rotate(fleet.folders.base, "online", TODAY)
    fleet.repository = fleet.coordinator()
    assert isinstance(fleet.offer(fleet.sign(head("one", 7))), Believed)
    assert fleet.refused(fleet.sign(head("bad", 8), repository=thief)) == "wrong-signer"


def test_every_key_can_be_exchanged_while_a_device_is_off_for_months(fleet: Fleet, tmp_path: Path) -> None:
    assert isinstance(fleet.offer(fleet.sign(head("one"))), Believed)
    for what in ("online", "bundles", "targets", "root", "online", "root"):
        assert ceremony.rotate(fleet.folders.base, what, TODAY)
    fleet.repository = fleet.coordinator()
    fleet.vetting, fleet.asked = fleet.device(), []
    assert isinstance(fleet.offer(fleet.sign(head("two", 2))), Believed)
    assert [name for name in fleet.asked if "root" in name] == [f"{n}.root.json" for n in range(2, 8)]
    # A power cut took the link that python-tuf replaces: the walk begins at what was given.
    (fleet.state / "root.json").unlink()
    fleet.vetting = fleet.device()
    assert isinstance(fleet.offer(fleet.sign(head("three", 3))), Believed)


@pytest.mark.parametrize("days", [400, 800])  # targets have expired, and the root
def test_who_was_off_for_a_year_or_two_catches_up_or_says_that_nobody_signed_anew(tmp_path: Path, days: int) -> None:
    fleet = Fleet(tmp_path, TODAY - timedelta(days=days))
    assert fleet.refused(fleet.sign(head("one"))) == "expired"
    ceremony.rotate(fleet.folders.base, "targets", TODAY)
    fleet.repository = fleet.coordinator()
    assert isinstance(fleet.offer(fleet.sign(head("one"))), Believed)


def test_damaged_and_endless_documents_cost_a_wait_and_no_belief(fleet: Fleet) -> None:
    desired = fleet.sign(head("one"))
    bomb = dataclasses.replace(packed("timestamp.json", b"x" * 400_000), size_bytes=2**40)
    assert fleet.offer(desired, lambda _, meta: dataclasses.replace(bomb, name=meta.name)) is None
    assert len(fleet.asked) < 100, "it asks less and less often"
    fleet.vetting = fleet.device()
    for data in ("", "AAAA", "é", "A" * 15_000):

        def garbled(_: str, meta: Meta, data: str = data) -> Meta:
            return dataclasses.replace(meta, size_bytes=99, data=data)

        assert fleet.offer(desired, garbled) is None
        fleet.vetting = fleet.device()
    document = json.loads((fleet.folders.metadata / "timestamp.json").read_text())
    document["signed"]["version"] += 1
    changed = json.dumps(document).encode()
    assert fleet.refused(desired, lambda n, m: packed(n, changed) if n == "timestamp.json" else m) == "wrong-signer"
    assert fleet.refused(desired, lambda n, m: packed(n, b"[]" * 99) if n == "timestamp.json" else m) == "damaged"
    assert isinstance(fleet.offer(desired), Believed)


def test_a_root_that_is_none_and_keys_that_do_not_fit_are_clear_errors(fleet: Fleet, tmp_path: Path) -> None:
    for data in (b"", b"{}", fleet.root[:-40], fleet.root.replace(b'"threshold": 2', b'"threshold": 1')):
        if data != fleet.root:
            with pytest.raises(ConfigError, match="root"):
                Trust(tmp_path / "t", data, fleet="lab", device="one")
    with pytest.raises(ConfigError, match="not empty"):
        ceremony.init(fleet.folders.base, TODAY)
    with pytest.raises(ConfigError, match="threshold"):
        ceremony.init(tmp_path / "new", TODAY, n_root=2, threshold=3)
    shutil.copy(fleet.folders.bundles, fleet.folders.online)
    with pytest.raises(ConfigError, match="may not sign"):
        fleet.coordinator()


def test_a_restored_coordinator_signs_no_version_that_devices_have_seen(fleet: Fleet, tmp_path: Path) -> None:
    """faults: 39."""
    shutil.copytree(fleet.folders.metadata, tmp_path / "backup")
    assert isinstance(fleet.offer(fleet.sign(head("one"))), Believed)
    shutil.rmtree(fleet.folders.metadata)
    shutil.copytree(tmp_path / "backup", fleet.folders.metadata)
    fleet.repository = fleet.coordinator(TODAY + timedelta(seconds=90))
    signature = fleet.repository.sign("lab", "one", head("two", 2), at(TODAY + timedelta(seconds=120)))
    assert isinstance(fleet.offer(dataclasses.replace(head("two", 2), signature=signature)), Believed)
