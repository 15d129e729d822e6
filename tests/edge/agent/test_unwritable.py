"""faults: 22, 23, 54, 56. Any write of an update can fail, any small file be damaged: the last good model answers."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.contract.errors import ConfigError
from tests.support.fleet import SimulatedFleet

STRIDE = 4  # of the calls that change the disk, of which a file takes three: every one costs two updates


@contextmanager
def full_from(step: int, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The disk takes nothing any more from one of the calls that change it on; counts them."""
    made = [0]

    def guarded(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            path = arguments[0] if arguments else ""
            where = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else path
            if str(where).startswith(str(folder)):
                made[0] += 1
                if made[0] >= step:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **options)

        return call

    with patch.context() as inside:
        for name in ("mkdir", "link", "rename", "replace", "fsync"):
            inside.setattr(os, name, guarded(getattr(os, name)))
        yield made


def push(fleet: SimulatedFleet, bundle: Path) -> int:
    assert fleet.coordinator is not None
    kept = fleet.coordinator.add_artifact(bundle.read_bytes(), bundle)
    return fleet.coordinator.push(kept["digest"], "bundle", kept["backbone"], [], "test", fleet.now).counter


def answers_and_learns(fleet: SimulatedFleet, tag: str) -> None:
    fleet.teach("one", np.random.default_rng(0).random((2, 1, 8, 8), np.float32), np.array([1, 2]), tag)


def test_whichever_write_of_an_update_is_the_first_to_fail_the_last_good_model_answers_and_it_heals(
    tmp_path: Path, digits_bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched, tried, activated, on probation, confirmed: and the same rolled back, by somebody on the device."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, probation_s=1.0)
    fleet.run(2.0)
    try:
        step, ends = 1 - STRIDE, set()
        while True:
            step += STRIDE
            agent = fleet.agents["one"]
            push(fleet, other_bundle)
            with full_from(step, tmp_path / "one", monkeypatch) as made:
                fleet.run(6.0, dt_s=0.5)
                answers_and_learns(fleet, f"full{step}-")
                ends.add(str(agent.model.deployment.state))
                fleet.run(2.0, dt_s=0.5)
                fleet.device("one")
            if made[0] < step:
                break
            told = [row.detail for row in fleet.store.events.newest(30)] + [fleet.device("one").state_detail]
            assert any("No space left" in text for text in told), (step, told)
            counter = push(fleet, other_bundle)
            fleet.until(f"healed after {step}", lambda: fleet.converged(counter), 90.0, dt_s=0.5)  # noqa: B023
            answers_and_learns(fleet, f"healed{step}-")
            record = json.loads((tmp_path / "one" / "models" / "digits" / "model.json").read_bytes())
            assert (record["release"], record["state"]) == (counter, "active")
            while agent.host.slots.record.bundle:  # back to what it came with
                agent.core.request({"op": "rollback"}, fleet.now)
            fleet.run(1.0, dt_s=0.5)
        assert step > 8
        assert {"failed", "active"} <= ends
    finally:
        fleet.close()


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """What `write` itself answers on a full disk, by the kernel: no file of this process may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_whatever_size_write_itself_refuses_the_last_good_model_answers_and_it_heals(
    tmp_path: Path, digits_bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records, journal, index, partial file, snapshot, outbox: each has a size at which its write is torn."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, probation_s=1.0)
    fleet.run(2.0)
    try:
        agent, told_of = fleet.agents["one"], 0
        tick, request = agent.tick, agent.core.request
        sizes = [0, 100, 1000, 16_000, 64_000]
        for size in sizes:
            push(fleet, other_bundle)

            def limited(function: Any, most: int = size) -> Any:
                def call(*arguments: Any) -> Any:
                    with files_at_most(most):
                        return function(*arguments)

                return call

            with monkeypatch.context() as inside:  # the device's writes; the coordinator has another disk
                inside.setattr(agent, "tick", limited(tick))
                inside.setattr(agent.core, "request", limited(request))
                fleet.run(6.0, dt_s=0.5)
                answers_and_learns(fleet, f"torn{size}-")
                assert agent.host.model.learned.lineage
                fleet.run(2.0, dt_s=0.5)
            told = [row.detail for row in fleet.store.events.newest(30)] + [fleet.device("one").state_detail]
            told_of += any("File too large" in text for text in told)
            counter = push(fleet, other_bundle)
            fleet.until(f"healed after {size}", lambda: fleet.converged(counter), 90.0, dt_s=0.5)  # noqa: B023
            answers_and_learns(fleet, f"healed{size}-")
            before = agent.host.model.n_samples
            fleet.crash_agent("one")  # what was acknowledged is there after a restart
            agent = fleet.start_agent("one")
            tick, request = agent.tick, agent.core.request
            assert agent.host.model.n_samples == before, size
            assert agent.host.slots.record.release == counter
            while agent.host.slots.record.bundle:
                agent.core.request({"op": "rollback"}, fleet.now)
            fleet.run(1.0, dt_s=0.5)
        assert told_of >= 3
    finally:
        fleet.close()


def test_a_file_system_that_became_read_only_costs_no_answer_and_heals(
    tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    """A card that wears out is mounted read-only by the kernel; here a mount of its own is."""
    folder = tmp_path / "one"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount")
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, probation_s=1.0)
    try:
        fleet.run(2.0)
        answers_and_learns(fleet, "before-")
        fleet.crash_agent("one")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        with pytest.raises(ConfigError, match="Read-only file system"):  # it does not begin, and says why
            fleet.start_agent("one")
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        fleet.start_agent("one")
        fleet.run(2.0)
        counter = push(fleet, other_bundle)
        fleet.until("healed", lambda: fleet.converged(counter), 90.0)
    finally:
        fleet.close()
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("name", ["device.json", "models/digits/model.json"])
def test_a_small_file_that_is_damaged_is_told_and_put_aside_and_the_pushed_bundle_stays_live(
    tmp_path: Path, digits_bundle: Path, other_bundle: Path, name: str
) -> None:
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, probation_s=1.0)
    try:
        fleet.run(2.0)
        counter = push(fleet, other_bundle)
        fleet.until("active", lambda: fleet.converged(counter))
        path = tmp_path / "one" / name
        live = fleet.agents["one"].host.model.bundle.digest
        good = json.loads(path.read_bytes())
        damages: list[bytes | None] = [b"", path.read_bytes()[:-3], None]
        if name == "device.json":  # one reader reads both
            damages += [b"[]", b"\x00" * 300, b"{" * 40]
        for key, value in good.items():
            bad: list[Any] = {str: [7, None], int: [-1, 2**62, True, "1", 1.5], bool: [1, "yes"]}[type(value)]
            bad += ["xyz"] if key in ("state", "slot", "bundle", "previous", "state_id") else []
            damages.append(json.dumps({**good, key: bad[len(damages) % len(bad)]}).encode())
        for damage in damages:
            fleet.crash_agent("one")
            path.unlink()
            if damage is None:
                (path / "inside").mkdir(parents=True)
            else:
                path.write_bytes(damage)
            agent = fleet.start_agent("one")
            fleet.run(1.0, dt_s=0.5)
            assert fleet.device("one").online or name == "device.json", damage  # that is a new identity
            assert any(f"{path.name} was damaged" in row.detail for row in fleet.store.events.newest(20)), damage
            assert path.with_name(f"{path.name}.damaged").exists()
            assert agent.host.model.bundle.digest == live, damage
            answers_and_learns(fleet, "d")
            assert json.loads(path.read_bytes()).keys() == good.keys(), "it is written again"
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
            fleet.run(11.0, dt_s=2.0)  # events of the next one are new ones
    finally:
        fleet.close()


def test_who_labels_is_told_that_the_disk_has_not_taken_it(tmp_path: Path, digits_bundle: Path) -> None:
    """faults: 22. Somebody deleted the folder of a running agent: its files take writes as before."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    try:
        core, x = fleet.agents["one"].core, np.zeros((1, 8, 8), np.float32)
        answers = []
        for sample_id in "ab":
            core.request({"op": "predict", "id": sample_id, "x": x}, fleet.now)
            answers.append(core.request({"op": "label", "id": sample_id, "y": 1}, fleet.now))
            shutil.rmtree(tmp_path / "one" / "models", ignore_errors=True)
        assert answers[0] == {"joined": True}
        assert answers[1]["joined"] is True
        assert "in memory only" in answers[1]["unsafe"]
        assert core.status()["models"]["digits"]["unsafe"] == answers[1]["unsafe"]
    finally:
        fleet.close()
