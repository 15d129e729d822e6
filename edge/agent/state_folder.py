"""Where things lie in a state folder; one from before an agent served several models is made one of today.

Then what belonged to the one model (`OLD`) lay in the folder itself, and ``device.json`` held what is in it and in
``model.json`` now. The new layout is built beside the old one out of links to the same files, and takes effect by
one rename: killed before it, the old layout is whole; after it the new one is, and what is left of the old one is
deleted, at the next start if need be.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from edge.agent.slots.slots import RECORD, DeviceRecord, old_record, read_record
from edge.contract.digest import sha256
from edge.contract.errors import ResourceError
from edge.contract.files import replace_file, sync_folder
from edge.contract.names import level_of

MODELS = "models"
OLD = ("learned", "bundles", "incoming", "artifacts")
_PART, _MARKER = "models.part", ".taken-over"


def home_of(folder: Path, name: str) -> Path:
    """Where a model keeps what it learned, in a state folder of an agent; in another one the folder itself."""
    found = folder / MODELS / level_of(name)
    return found if found.is_dir() else folder


def device_of(folder: Path, host: str, machine_id: str) -> str:
    """The name of a device that was given none: that of its folder, else one that no other device is likely to have.

    Three new computers are all called ``raspberrypi``: the name has six digits of a hash of the machine's id behind it,
    which say nothing about the id itself. A folder of a version that did not know this keeps the host name.

    Args:
        folder: The state folder; it need not exist.
        host: Name of the computer.
        machine_id: Of ``/etc/machine-id``, "" where there is none.

    >>> device_of(Path("nowhere"), "Raspberry_Pi.local", "4a8d")
    'raspberry-pi-662cab'
    """
    record = read_record(folder / "device.json", DeviceRecord)
    if record.device:
        return record.device
    if record.boot or is_old(folder) or not machine_id:
        return host.lower() or "device"
    plain = re.sub("[^a-z0-9-]+", "-", host.lower().partition(".")[0]).strip("-")[:50]
    return f"{plain or 'device'}-{sha256(f'edgeloop device {machine_id}'.encode())[:6]}"


def is_old(folder: Path) -> bool:
    """Whether there is something of the old layout, and nothing of the new one."""
    return not (folder / MODELS).exists() and any(_is_folder(folder / name) for name in OLD)


def take_over(folder: Path, level: str) -> None:
    """Give what is there to one model.

    Args:
        folder: The state folder, of the old layout.
        level: The folder of that model inside the new one.

    Raises:
        ResourceError: The disk is full; nothing changed.
    """
    part = folder / _PART
    try:
        shutil.rmtree(part, ignore_errors=True)
        home = part / level
        home.mkdir(parents=True)
        for name in OLD:
            if _is_folder(folder / name):
                _copy(folder / name, home / name)
        with replace_file(home / RECORD) as file:
            file.write(old_record(folder / "device.json"))
        (part / _MARKER).touch()
        sync_folder(home)
        sync_folder(part)
        part.rename(folder / MODELS)
        sync_folder(folder)
    except OSError as exc:
        raise ResourceError(f"the state folder {folder} cannot be taken over, it is as it was: {exc.strerror}") from exc


def clear(folder: Path) -> None:
    """Delete what a take-over has left of the old layout."""
    marker = folder / MODELS / _MARKER
    if not marker.exists():
        return
    with suppress(OSError):  # what cannot be deleted now is deleted at another start
        for name in OLD:
            if _is_folder(folder / name):
                shutil.rmtree(folder / name)
        sync_folder(folder)
        marker.unlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _copy(source: Path, target: Path) -> None:
    """A folder with links to the files of another; with copies where the file system knows no links."""
    target.mkdir()
    for path in source.iterdir():
        if _is_folder(path):
            _copy(path, target / path.name)
            continue
        try:
            os.link(path, target / path.name, follow_symlinks=False)
        except OSError:
            shutil.copy2(path, target / path.name)
            with (target / path.name).open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(target)
