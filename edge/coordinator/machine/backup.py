"""A backup: one file with the whole database and all artifacts, made while the coordinator runs, and proved.

The file is a tar of ``database.sqlite`` (whichever database it came from), ``artifacts/SHA256``, keys and, last,
``backup.json`` with the digest and size of each. The database is copied first: an artifact is on disk before the
database names it. It holds what devices learned, so keep it as you keep the data folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edge import __version__
from edge.contract.digest import sha256_file
from edge.contract.errors import BundleError, ConfigError, ResourceError
from edge.contract.files import lock_folder, replace_file, sync_folder
from edge.contract.foreign import shortage
from edge.coordinator.releases.releases import RESTORED
from edge.coordinator.store.database import Database, DatabaseError, make_folder
from edge.coordinator.store.rollouts import RolloutLog

DATABASE, ARTIFACTS = "coordinator.sqlite", "artifacts"
_DATABASE, _CONTENTS = "database.sqlite", "backup.json"
# Keys are made when they are first needed: those that are there, so that what they signed can still be checked.
KEYS = ("authority/authority.key", "authority/authority.pem", "receipts.key")
_NAME = re.compile(rf"database\.sqlite|artifacts/[0-9a-f]{{64}}|{'|'.join(map(re.escape, KEYS))}")
_MAX_CONTENTS_BYTES = 64 << 20
_PIECE = 1 << 20


def back_up(data_dir: Path, database: str, output: Path, *, force: bool = False) -> dict[str, Any]:
    """Make a backup and read it again.

    Args:
        data_dir: Of the coordinator, which may run.
        database: Address of its PostgreSQL database; "" for SQLite in the data folder.
        output: The file; it appears when it is whole.
        force: Also in the place of a file that is there, which may be the only backup.

    Returns:
        ``file``, ``size_bytes``, ``artifacts``, and ``rows`` by table.

    Raises:
        ConfigError: There is no coordinator's data, the output exists, or a file cannot be read or written.
        BundleError: An artifact changed on disk, or the file is not what was written.
    """
    if output.is_file() and not force:
        raise ConfigError(f"{output} exists; give another name, or --force")
    if not database and not (data_dir / DATABASE).exists():
        raise ConfigError(f"{data_dir} is no data folder of a coordinator: there is no {DATABASE}")
    with tempfile.TemporaryDirectory(prefix=".edge-backup-", dir=output.absolute().parent) as scratch:
        copied = Path(scratch) / _DATABASE
        source, target = Database.existing(database or data_dir / DATABASE), Database(copied, journal="DELETE")
        try:
            rows = source.copy_to(target)
        finally:
            source.close()
            target.close()
        members = {_DATABASE: copied}
        for path in sorted((data_dir / ARTIFACTS).glob("*")):
            if _NAME.fullmatch(f"{ARTIFACTS}/{path.name}"):
                members[f"{ARTIFACTS}/{path.name}"] = path
        members |= {name: data_dir / name for name in KEYS if (data_dir / name).exists()}
        contents = {name: _digest(name, path) for name, path in members.items()}
        document = {"edgeloop": __version__, "rows": rows, "members": contents}
        is_new = not output.exists()
        try:
            with replace_file(output) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                if is_new:  # private keys are in it
                    os.fchmod(file.fileno(), 0o600)
                for name, path in members.items():
                    tar.add(path, name, recursive=False, filter=_plain)
                _add(tar, _CONTENTS, json.dumps(document).encode())
        except OSError as exc:
            raise _unwritten(exc, output, "no backup was made") from exc
    with opened(output) as (_, read):
        for _name, _file in read:
            pass
    return {
        "file": str(output),
        "size_bytes": output.stat().st_size,
        "artifacts": sum(name.startswith(ARTIFACTS) for name in members),
        "rows": rows,
    }


def restore(backup: Path, data_dir: Path, database: str) -> dict[str, Any]:
    """Put a backup into an empty data folder, and into an empty database.

    Everything is read and proved before the database is there, so that a coordinator starts with all of it. A restore
    that fails leaves nothing of it.

    Args:
        backup: The file.
        data_dir: An empty folder, created.
        database: Address of an empty PostgreSQL database; "" for SQLite in the data folder.

    Returns:
        ``artifacts``, and ``rows`` by table.

    Raises:
        BundleError: The file is damaged, or no backup.
        ConfigError: The folder or the database is not empty, or cannot be written.
        ResourceError: The disk is full.
    """
    if (data_dir / DATABASE).exists():
        raise ConfigError(f"{data_dir} has a database already; restore into an empty data folder")
    with opened(backup) as (_, read):  # all of it is looked at before anything is written
        for _name, _file in read:
            pass
    with _undone_where_it_fails(data_dir) as made:
        make_folder(data_dir)
        lock = lock_folder(data_dir)
        try:
            scratch = data_dir / f".{_DATABASE}"
            scratch.unlink(missing_ok=True)
            made(scratch.with_name(f"{scratch.name}-journal"))
            n_artifacts = 0
            made(data_dir / ARTIFACTS).mkdir(exist_ok=True)
            with opened(backup) as (_, read):
                for name, file in read:
                    n_artifacts += name.startswith(ARTIFACTS)
                    path = made(scratch if name == _DATABASE else data_dir / name)
                    made(path.parent).mkdir(mode=0o700, exist_ok=True)
                    with replace_file(path) as output:
                        if name in KEYS or path == scratch:
                            os.fchmod(output.fileno(), 0o600)
                        while piece := file.read(_PIECE):
                            output.write(piece)
            rows = _restore_database(scratch, data_dir, database)
        finally:
            os.close(lock)
    return {"artifacts": n_artifacts, "rows": rows}


def _unwritten(exc: OSError | DatabaseError, path: Path, left: str) -> ConfigError:
    why = exc.strerror if isinstance(exc, OSError) else exc.orig
    is_full = isinstance(exc, DatabaseError) or shortage(exc, "") is not None
    return (ResourceError if is_full else ConfigError)(f"{path} cannot be written: {why}; {left}")


@contextmanager
def _undone_where_it_fails(folder: Path) -> Iterator[Callable[[Path], Path]]:
    """Remove what was made in a folder, and the folder where it was not there, should the work inside fail.

    Yields:
        What takes each path before it is made, and gives it back.

    Raises:
        ResourceError: The disk is full.
        ConfigError: Something cannot be written.
    """
    new: list[Path] = []

    def made(path: Path) -> Path:
        if not path.exists() and path not in new:
            new.append(path)
        return path

    for path in (folder, folder / "lock"):
        made(path)
    try:
        try:
            yield made
        except (OSError, DatabaseError) as exc:
            raise _unwritten(exc, folder, "nothing of the backup is left there") from exc
    except BaseException:
        for path in sorted(new, key=lambda path: -len(path.parts)):  # files before their folders
            with suppress(OSError):
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
        raise


def _restore_database(scratch: Path, data_dir: Path, database: str) -> dict[str, int]:
    source = Database(scratch, journal="DELETE")  # one of an earlier version becomes one of today
    try:
        if database:
            target = Database(database)
            try:
                rows = source.copy_to(target)
                RolloutLog(target).set(RESTORED, "1")
                return rows
            finally:
                target.close()
        rows = source.count()
        RolloutLog(source).set(RESTORED, "1")
    finally:
        source.close()
        if database:
            scratch.unlink()
    scratch.rename(data_dir / DATABASE)
    sync_folder(data_dir)
    return rows


@contextmanager
def opened(path: Path) -> Iterator[tuple[dict[str, Any], Iterator[tuple[str, IO[bytes]]]]]:
    """What a backup says that is in it, and its members; each is proved when the next one is asked for.

    Raises:
        ConfigError: It cannot be read.
        BundleError: It is damaged, or no backup.
    """
    try:
        with _tar(path) as tar:
            found = {member.name: member for member in tar.getmembers()}
            if _CONTENTS not in found or found[_CONTENTS].size > _MAX_CONTENTS_BYTES:
                raise BundleError(f"{path} is cut short, or no backup of a coordinator")
            document = json.loads(_file(tar, found.pop(_CONTENTS)).read())
            members = document["members"]
            if set(members) != set(found) or not all(_NAME.fullmatch(name) for name in members):
                raise BundleError(f"{path}: what is in it is not what it says")

            def read() -> Iterator[tuple[str, IO[bytes]]]:
                for name, member in found.items():
                    proved = _Proved(_file(tar, member), path)
                    yield name, proved  # type: ignore[misc]  # of a file it has what is used here
                    if proved.digest() != members[name]:
                        raise BundleError(f"{path}: {name} is damaged")

            yield document, read()
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError) as exc:
        raise BundleError(f"{path} is damaged, or no backup of a coordinator: {exc}") from exc


def _tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, mode="r:")
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc


class _Proved:
    """A file that is hashed as it is read; that it cannot be read is told apart from what its reader cannot write."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        try:
            piece = self._file.read(size)
        except OSError as exc:
            raise ConfigError(f"{self._path} cannot be read: {exc.strerror}") from exc
        self._hash.update(piece)
        return piece

    def digest(self) -> str:
        while self.read(_PIECE):
            pass
        return self._hash.hexdigest()


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    found = tar.extractfile(member) if member.isreg() else None
    if found is None:
        raise BundleError(f"{member.name} is no plain file")
    return found


def _digest(name: str, path: Path) -> str:
    digest = sha256_file(path)
    if name.startswith(ARTIFACTS) and digest != path.name:
        raise BundleError(f"the artifact {path.name[:12]} changed on disk; push it again, or remove {path}")
    return digest


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o600
    tar.addfile(member, io.BytesIO(data))
