"""A state folder of one model, from before there were several, becomes one of today, whenever the process is killed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent import state_folder
from edge.agent.config import AgentConfig
from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.models import Models
from edge.agent.slots.slots import DeviceRecord, ModelRecord, read_record
from edge.agent.state_folder import device_of
from edge.contract import strictjson
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError
from tests.support.fleet import unhurried

OLD_RECORD = {
    "boot": 7, "session": 9, "release": 4, "state": "active", "judged": True, "replaces": False, "bundle": "",
    "previous": "", "trying": False, "attempts": 0,
}  # fmt: skip


def old_folder(folder: Path) -> Path:
    """What the version before wrote: names and contents are all that the take-over looks at."""
    for name, data in (
        ("learned/0123456789abcdef/state.bin", b"a snapshot"),
        ("learned/0123456789abcdef/journal-1.bin", b"events since"),
        ("learned/0123456789abcdef/of-sgd/state.bin", b"another learner"),
        ("bundles/" + "a" * 64 + ".edge", b"a bundle"),
        ("incoming/" + "b" * 64 + ".part", b"half a file"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "artifacts").mkdir()
    (folder / "device.json").write_bytes(strictjson.dumps(OLD_RECORD))
    (folder / "lock").touch()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """All files of what belongs to a model, by their paths."""
    roots = [folder / name for name in state_folder.OLD if (folder / name).is_dir()]
    found = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_at(step: int, patch: pytest.MonkeyPatch, *, error: BaseException | None = None) -> Iterator[list[int]]:
    """Raise at one of the calls that change the disk, before it is done; counts them."""
    made = [0]

    def guarded(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            made[0] += 1
            if made[0] == step:
                raise error or Killed
            return function(*arguments, **options)

        return call

    with patch.context() as inside:
        for name in ("mkdir", "link", "rename", "replace", "unlink", "rmdir", "fsync"):
            inside.setattr(os, name, guarded(getattr(os, name)))
        yield made


def test_take_over_killed_before_any_step_leaves_the_old_or_the_new_folder_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files(old_folder(tmp_path / "whole"))
    assert len(whole) == 5
    sides = {"old": 0, "new": 0}
    step = 0
    while True:
        step += 1
        folder = old_folder(tmp_path / str(step))
        try:
            with killed_at(step, monkeypatch) as made:
                state_folder.take_over(folder, "digits")
                state_folder.clear(folder)
        except Killed:
            is_new = (folder / "models").exists()
            sides["new" if is_new else "old"] += 1
            assert files(folder / "models/digits" if is_new else folder) == whole
        # The next start goes on where it was.
        if state_folder.is_old(folder):
            state_folder.take_over(folder, "digits")
        state_folder.clear(folder)
        assert files(folder / "models/digits") == whole
        assert files(folder) == {}
        assert sorted(path.name for path in folder.iterdir()) == ["device.json", "lock", "models"]
        assert read_record(folder / "models/digits/model.json", ModelRecord).release == 4
        assert read_record(folder / "device.json", DeviceRecord) == DeviceRecord(boot=7, session=9)
        assert not state_folder.is_old(folder)
        if made[0] < step:
            break
        shutil.rmtree(folder)
    assert sides["old"] > 10
    assert sides["new"] > 10


def test_full_disk_and_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = old_folder(tmp_path / "full")
    whole = files(folder)
    full = OSError(errno.ENOSPC, "No space left on device")
    with killed_at(4, monkeypatch, error=full), pytest.raises(ConfigError, match="as it was: No space left"):
        state_folder.take_over(folder, "digits")
    assert files(folder) == whole
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
        state_folder.take_over(folder, "digits")
    state_folder.clear(folder)
    assert files(folder / "models/digits") == whole


def config(folder: Path, **bundles: Path) -> AgentConfig:
    return AgentConfig(bundles=bundles, state_dir=folder, fleet="lab", device="one", profile=unhurried())


def test_what_one_model_learned_goes_on_under_its_name(tmp_path: Path, digits_bundle: Path, other_bundle: Path) -> None:
    folder = tmp_path / "state"
    x = np.random.default_rng(0).random((30, 1, 8, 8), np.float32)
    with OnDeviceModel.open(digits_bundle, folder) as model:  # as the version before, in the folder itself
        assert (folder / "learned").is_dir()
        model.learn(x, model.predict(x).argmax(axis=1))
        lineage = model.learned.lineage
    (folder / "device.json").write_bytes(strictjson.dumps(OLD_RECORD))
    # Of several, the one that learned it; the other begins.
    models = Models(config(folder, other=other_bundle, mine=digits_bundle))
    hosts = models.hosts
    assert {name: host.model.n_samples for name, host in hosts.items()} == {"other": 0, "mine": 30}
    assert hosts["mine"].model.learned.lineage == lineage
    assert (hosts["mine"].slots.record.release, hosts["other"].slots.record.release) == (4, 0)
    assert (models.record.boot, models.record.session) == (8, 9)
    assert len(models.record.state_id) == 16, "an old folder gets an identity"
    models.close()
    assert not (folder / "learned").exists()
    # With one model it is found at its old place, too: by people, and by the version before.
    models = Models(config(folder, mine=digits_bundle))
    assert models.not_served == ["other"]
    models.close()
    (learned,) = (folder / "learned").iterdir()
    assert learned.name == Bundle.open(digits_bundle).digest[:16]
    assert (learned / "state.bin").is_file()
    assert not state_folder.is_old(folder)
    with OnDeviceModel.open(digits_bundle, folder, read_only=True) as model:
        assert model.n_samples == 30
    Models(config(folder, other=other_bundle, mine=digits_bundle)).close()
    with OnDeviceModel.open(digits_bundle, folder / "models" / "mine", read_only=True) as model:
        assert model.n_samples == 30


def test_a_damaged_record_costs_its_counters_only(tmp_path: Path, digits_bundle: Path) -> None:
    folder = tmp_path / "state"
    Models(config(folder, digits=digits_bundle)).close()
    record = folder / "models" / "digits" / "model.json"
    for damaged in (
        b"",
        b"[]",
        b'{"state":"active!"}',
        b'{"bundle":7}',
        b'{"release":9223372036854775807}',
        b'{"x":1}',
    ):
        record.write_bytes(damaged)
        (folder / "device.json").write_bytes(damaged)
        models = Models(config(folder, digits=digits_bundle))
        assert models.hosts["digits"].slots.record.name == "digits"
        assert models.hosts["digits"].slots.record.release == 0
        assert models.record.boot == 1
        models.close()


def test_a_device_without_a_name_has_one_of_its_own_and_a_folder_keeps_what_it_had(tmp_path: Path) -> None:
    new = tmp_path / "new"
    names = {device_of(new, "raspberrypi", machine) for machine in ("a" * 32, "b" * 32, "c" * 32)}
    assert len(names) == 3, "three new computers of one host name"
    for name in names:
        assert re.fullmatch("raspberrypi-[0-9a-f]{6}", name), "and nothing of the id"
    assert device_of(new, "raspberrypi", "a" * 32) in names, "always the same"
    assert device_of(new, "raspberrypi", "") == "raspberrypi"
    assert device_of(new, "Büro_7.local", "a" * 32)[:-7] == "b-ro-7"
    assert re.fullmatch("[a-z0-9-]{1,64}", device_of(new, "x" * 300, "a" * 32))
    new.mkdir()
    for record, expected in (
        (b'{"boot": 4, "session": 9}', "raspberrypi"),  # of a version that did not keep it
        (b'{"boot": 4, "session": 9, "device": "camera-1"}', "camera-1"),
        (b'{"boot": 4, "device": "../.."}', "raspberrypi-"),  # damaged: as if it were new
    ):
        (new / "device.json").write_bytes(record)
        assert device_of(new, "raspberrypi", "a" * 32).startswith(expected)
    assert (new / "device.json").exists(), "asking changes nothing"
