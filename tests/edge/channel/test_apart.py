"""The process that looks at releases: what it says counts, and nothing else; it may die, hang or talk nonsense."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.channel import apart
from edge.channel.apart import Apart
from edge.channel.messages import Desired, Meta
from edge.channel.updates import packed
from edge.channel.vetting import (
    LONGEST_LOOK_S,
    Believed,
    Distrusted,
    NotJudged,
    NotJudgedError,
    Verdict,
    Vetting,
)
from edge.contract.errors import ConfigError
from tests.edge.channel.test_updates import Fleet, head


class FleetApart(Fleet):
    """As `Fleet`, with the device's libraries in another process."""

    command: list[str] | None = None
    now_s = 0.0

    def device(self) -> Vetting:
        self.trust = Apart(self.state, self.root, fleet="lab", device="one", command=self.command)
        return Vetting(self.trust)

    @property
    def pid(self) -> int:
        assert self.trust._process is not None
        return self.trust._process.pid

    def wait(self) -> None:
        """Until the process has said something."""
        if self.trust._process is not None:
            self.trust._process.wait(30.0)
            time.sleep(0.001)  # what has ended is to be waited for a moment later

    def offer(self, desired: Desired, between: Callable[[str, Meta], Meta] = lambda _, meta: meta) -> Verdict | None:
        self.vetting.offer("digits", desired)
        for _ in range(500):
            requests = self.vetting.poll(self.now_s)
            for request in requests:
                self.vetting.take(between(request.name, self.repository.document(request.name)))
            if self.vetting.verdicts:
                return self.vetting.verdicts.pop()
            if not requests:
                self.wait()
                self.vetting._again_s = self.now_s
        return None


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FleetApart]:
    made = FleetApart(tmp_path)
    yield made
    made.vetting.rest()


def test_it_answers_as_the_library_does_and_forgets_what_was_handed_in_but_not_what_was_believed(
    fleet: FleetApart, tmp_path: Path
) -> None:
    one = fleet.sign(head("one"))
    assert fleet.refused(head("one")) == "unsigned"
    assert fleet.trust._process is None, "nobody can start processes by unsigned releases"
    assert isinstance(fleet.offer(one), Believed)
    process = fleet.pid
    shutil.copytree(fleet.folders.metadata, tmp_path / "yesterday")
    assert fleet.refused(fleet.sign(head("one"), device="two")) == "wrong-signer"
    assert isinstance(fleet.offer(fleet.sign(head("two", 2))), Believed)

    def yesterday(name: str, meta: Meta) -> Meta:
        path = tmp_path / "yesterday" / name
        return packed(name, path.read_bytes()) if path.exists() else meta

    assert fleet.refused(fleet.sign(head("one", 3)), yesterday) == "rollback"
    assert fleet.pid == process, "one process looks at all that come close together"
    os.kill(process, signal.SIGKILL)
    assert isinstance(fleet.offer(fleet.sign(head("one", 4)), yesterday), NotJudged)
    assert fleet.refused(fleet.sign(head("one", 5)), yesterday) == "rollback", "the disk remembers"
    shutil.rmtree(fleet.state)
    fleet.state.write_text("")
    assert fleet.refused(fleet.sign(head("two", 6))) == "storage"


def test_one_that_is_killed_or_hangs_has_decided_nothing_and_is_asked_anew(fleet: FleetApart) -> None:
    desired, vetting = fleet.sign(head("one")), fleet.vetting
    vetting.offer("digits", desired)
    assert vetting.poll(0.0) == []
    os.kill(fleet.pid, signal.SIGSTOP)
    vetting.poll(LONGEST_LOOK_S - 0.1)
    assert not vetting.verdicts
    vetting.poll(LONGEST_LOOK_S)
    (said,) = vetting.verdicts
    assert isinstance(said, NotJudged)
    assert "did not answer within 120 s" in said.detail
    assert "not judged yet" in str(vetting)
    vetting.verdicts.clear()
    now_s = vetting.next_deadline_s
    vetting.offer("digits", desired)
    assert vetting.next_deadline_s == now_s, "who says it again and again gets no process each time"
    for moment in ("while it starts", "after it asked for a document"):
        while moment != "while it starts" and not vetting.poll(now_s):
            fleet.wait()
            now_s = vetting.next_deadline_s
        vetting.poll(now_s)
        os.kill(fleet.pid, signal.SIGKILL)
        vetting._look_at_s(now_s)
        while not vetting.verdicts:
            fleet.wait()
            vetting.poll(now_s := max(now_s, vetting.next_deadline_s))
        (said,) = vetting.verdicts
        assert isinstance(said, NotJudged)
        assert "SIGKILL" in said.detail
        vetting.verdicts.clear()
        vetting._told.clear()
        now_s = vetting.next_deadline_s
    fleet.now_s = now_s + 60.0
    assert isinstance(fleet.offer(dataclasses.replace(desired, ts_ms=1)), Believed)
    assert "not judged" not in str(vetting)
    ended = fleet.pid
    vetting.poll(fleet.now_s + 5.0)
    assert fleet.trust._process is None
    with pytest.raises(ProcessLookupError):
        os.kill(ended, 0)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("exit 3", "ended with 3"),
        ("kill -SEGV $$", "SIGSEGV"),
        ("echo nonsense", "nothing of use"),
        ("yes | tr -d '\\n' | head -c 99999", "nothing of use"),
        ("echo []", "nothing of use"),
        ("echo '{\"ready\": true}'; echo '{\"believed\": 1}'", "nothing of use"),
        ("echo '{\"ready\": true}'; printf '{\"believed\": true'", "ended with 0"),
        ('echo \'{"config": "tuf is not installed"}\'', "tuf is not installed"),
        (None, "cannot be started"),
    ],
)
def test_nothing_that_it_does_instead_of_an_answer_is_one(tmp_path: Path, said: str | None, why: str) -> None:
    command = ["/no/such/program"] if said is None else ["/bin/sh", "-c", f"{said}; :"]
    trust = Apart(tmp_path / "trust", b"root", fleet="lab", device="one", command=command)
    vetting = Vetting(trust)
    vetting.offer("digits", dataclasses.replace(head("one"), signature="a:b"))
    while not vetting.verdicts:
        vetting.poll(0.0)
        vetting._again_s = 0.0
        if trust._process is not None:
            trust._process.wait(10.0)
    (verdict,) = vetting.verdicts
    assert isinstance(verdict, NotJudged), verdict
    assert why in verdict.detail
    vetting.rest()


def test_one_that_takes_long_to_go_leaves_nothing_behind(fleet: FleetApart, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy device: the next release may come in a month."""
    monkeypatch.setattr(apart, "_MOMENTS", 0)
    fleet.vetting.offer("digits", fleet.sign(head("one")))
    fleet.vetting.poll(0.0)
    process = fleet.pid
    fleet.vetting.rest()
    until_s = time.monotonic() + 30.0
    while Path(f"/proc/{process}").exists() and time.monotonic() < until_s:
        time.sleep(0.005)
    assert not Path(f"/proc/{process}").exists()


def test_a_library_that_is_there_and_cannot_be_loaded_is_no_verdict_on_the_root(
    fleet: FleetApart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory is short: an agent that ended of it would stay away until somebody comes."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tuf.abi3.so").write_bytes(b"\x7fELF")
    desired = fleet.sign(head("one"))
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path / "broken")
        with pytest.raises(NotJudgedError, match=r"cannot load what it needs: .*tuf.abi3.so"):
            fleet.trust.check(60.0)
        said = fleet.offer(desired)
    assert isinstance(said, NotJudged)
    assert "tuf.abi3.so" in said.detail
    fleet.now_s = fleet.vetting.next_deadline_s
    assert isinstance(fleet.offer(dataclasses.replace(desired, ts_ms=1)), Believed)


def test_a_root_that_is_none_is_said_and_one_that_was_believed_is_not_looked_at_again(fleet: FleetApart) -> None:
    junk = Apart(fleet.state, b"{}", fleet="lab", device="one")
    with pytest.raises(ConfigError, match="root document"):
        junk.check(60.0)
    assert fleet.trust.check(60.0)
    assert fleet.trust._process is None
    fleet.vetting.offer("digits", fleet.sign(head("one")))
    fleet.vetting.poll(0.0)
    assert fleet.trust.check(60.0)
    assert fleet.trust._process is not None, "it has a release to look at"
    assert isinstance(fleet.offer(fleet.sign(head("one"))), Believed)
    again = Apart(fleet.state, fleet.root, fleet="lab", device="one", command=["/no/such/program"])
    assert again.check()


def test_it_ends_with_whoever_started_it(fleet: FleetApart) -> None:
    assert not fleet.trust.check()
    process = fleet.trust._process
    assert process is not None
    os.close(process._to)
    process._to = -1
    assert os.waitpid(process.pid, 0)[1] == 0
    process.pid = 0


def test_refused_where_the_library_refuses(fleet: FleetApart) -> None:
    """Whatever the kind, its name comes through."""
    desired = fleet.sign(head("one"))
    found = fleet.offer(desired, lambda n, m: packed(n, b"[]" * 99) if n == "timestamp.json" else m)
    assert isinstance(found, Distrusted)
    assert found.kind == "damaged"
