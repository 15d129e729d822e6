"""A ZIP file of stored members that has exactly one way to be written, and a reader that accepts only that way.

Any ZIP tool can list and unpack it. The reader takes the names, sizes and checksums from the central directory,
rebuilds every header from them and compares: so a flipped bit, a trailing byte, a second directory, a compressed or
encrypted member, an overlapping or a hidden one are all the same error, and there is nothing to decompress.

Layout: APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (end record), with
method 0 (stored), the date 1980-01-01 and no extra fields. No ZIP64: an archive stays below 4 GiB.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge.contract.digest import new_sha256
from edge.contract.errors import BundleError, NoBundleError

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_DATE = 0x0021  # 1980-01-01, the first day of the format
_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}")
_MAX_BYTES = 2**32 - 1
_MAX_MEMBERS = 64
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A member: its name, size in bytes, CRC-32 and where its data begins in the file."""

    name: str
    size_bytes: int
    crc: int
    offset: int

    def local_header(self) -> bytes:
        """The bytes that stand before the data."""
        name = self.name.encode()
        fields = (b"PK\3\4", 20, 0, 0, 0, _DATE, self.crc, self.size_bytes, self.size_bytes, len(name), 0)
        return _LOCAL.pack(*fields) + name

    def central_record(self) -> bytes:
        """The entry of the central directory."""
        name = self.name.encode()
        start = self.offset - _LOCAL.size - len(name)
        fields = (b"PK\1\2", 20, 20, 0, 0, 0, _DATE, self.crc, self.size_bytes, self.size_bytes, len(name))
        return _CENTRAL.pack(*fields, 0, 0, 0, 0, 0, start) + name


def _tail(entries: list[Entry]) -> bytes:
    """Central directory and end record."""
    directory = b"".join(entry.central_record() for entry in entries)
    last = entries[-1]
    end = _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), last.offset + last.size_bytes, 0)
    return directory + end


def write_archive(file: BinaryIO, members: Mapping[str, bytes]) -> None:
    """Write the members in the order given.

    Raises:
        BundleError: A name is not allowed, there are no members or more than 64, or the archive would reach 4 GiB.
    """
    if not 0 < len(members) <= _MAX_MEMBERS:
        raise BundleError(f"an archive holds 1 to {_MAX_MEMBERS} members, not {len(members)}")
    entries: list[Entry] = []
    position = 0
    for name, data in members.items():
        if not _NAME.fullmatch(name) or ".." in name:
            raise BundleError(f"member name {name!r} is not allowed: use a-z, 0-9 and ._/-")
        position += _LOCAL.size + len(name)
        entry = Entry(name, len(data), zlib.crc32(data), position)
        position += len(data)
        if position >= _MAX_BYTES:
            raise BundleError("the bundle would be larger than 4 GiB, which the format does not hold")
        file.write(entry.local_header())
        file.write(data)
        entries.append(entry)
    file.write(_tail(entries))


def size_of(members: Mapping[str, bytes]) -> int:
    """Bytes that `write_archive` writes."""
    headers = sum(_LOCAL.size + _CENTRAL.size + 2 * len(name.encode()) for name in members)
    return headers + sum(map(len, members.values())) + _END.size


class Archive:
    """An opened archive whose headers have been checked; `read` checks the data.

    Attributes:
        entries: The members by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would be waited for until somebody writes
                raise BundleError(f"{path} cannot be read: expected a plain file, it is a folder, a FIFO or a device")
            with path.open("rb") as file:
                self.entries = {entry.name: entry for entry in _read_headers(file, path)}
                self._opened = _identity(os.fstat(file.fileno()))
        except FileNotFoundError as exc:
            raise NoBundleError(f"{path} does not exist") from exc
        except OSError as exc:
            raise BundleError(f"{path} cannot be read: {exc.strerror}") from exc

    def read(self, name: str, max_bytes: int = _MAX_BYTES) -> bytes:
        """The data of one member, compared with its CRC-32.

        Raises:
            BundleError: No such member, larger than `max_bytes`, or damaged.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise BundleError(f"{self.path} has no member {name!r}")
        if entry.size_bytes > max_bytes:
            raise BundleError(f"{self.path}: {name} has {entry.size_bytes} bytes, at most {max_bytes} are accepted")
        try:
            with self.path.open("rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.size_bytes)
        except OSError as exc:
            raise BundleError(f"{self.path} can no longer be read: {exc.strerror}") from exc
        if len(data) != entry.size_bytes or zlib.crc32(data) != entry.crc:
            raise self._damage(name)
        return data

    def sha256(self, name: str) -> str:
        """SHA-256 of one member, read in pieces so that memory does not grow with it; checks the CRC-32 on the way."""
        entry = self.entries[name]
        digest = new_sha256(entry.size_bytes)
        crc = 0
        left = entry.size_bytes
        try:
            with self.path.open("rb") as file:
                file.seek(entry.offset)
                while left > 0 and (piece := file.read(min(left, _PIECE))):
                    digest.update(piece)
                    crc = zlib.crc32(piece, crc)
                    left -= len(piece)
        except OSError as exc:
            raise BundleError(f"{self.path} can no longer be read: {exc.strerror}") from exc
        if left or crc != entry.crc:
            raise self._damage(name)
        return digest.hexdigest()

    def _damage(self, name: str) -> BundleError:
        try:
            is_other = _identity(self.path.stat()) != self._opened
        except OSError:
            is_other = True
        if is_other:
            why = "the file was written over while it was in use; start again what uses it"
            return BundleError(f"{self.path}: {name} is damaged: {why}")
        return BundleError(f"{self.path}: {name} is damaged")


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _kind(begins: bytes) -> str:
    """What a file is that others write, by its first bytes; "" for what may be a bundle, or nothing known."""
    if begins[:4] == b"PK\3\4" and re.match(rb"[^/]{1,100}/(data\.pkl|byteorder|version|\.data|\.format)", begins[30:]):
        return "a file of PyTorch (a checkpoint, TorchScript or an exported program)"
    if begins[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "a pickle, as PyTorch writes checkpoints"
    if begins[8:10] == b'{"' and int.from_bytes(begins[:8], "little") < _MAX_BYTES:
        return "a safetensors file"
    if begins[:1] == b"\x08" and b"\x12" in begins[:8]:
        return "an ONNX model"
    return ""


def _read_headers(file: BinaryIO, path: Path) -> list[Entry]:
    """Entries of an archive whose every byte outside the data is as `write_archive` writes it."""
    begins = file.read(1 << 10)
    size = file.seek(0, 2)
    if kind := _kind(begins):
        raise NoBundleError(f"{path} is no bundle but {kind}: `edge-convert` makes a bundle of a trained model")
    broken = BundleError(f"{path} is not a whole bundle: {size} bytes that do not end as a bundle does")
    if size < _END.size:
        raise broken
    file.seek(size - _END.size)
    magic, _, _, count, _, directory_size, directory_start, _ = _END.unpack(file.read(_END.size))
    if magic != b"PK\5\6" or directory_start + directory_size + _END.size != size:
        raise broken
    if not 0 < count <= _MAX_MEMBERS or directory_size > count * (_CENTRAL.size + 128):
        raise BundleError(f"{path}: the table of members is not as a bundle has it")
    file.seek(directory_start)
    directory = file.read(directory_size)
    entries: list[Entry] = []
    position = at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise BundleError(f"{path}: the table of members is cut short")
        fields = _CENTRAL.unpack_from(directory, at)
        crc, stored_size, name_size = fields[7], fields[8], fields[10]
        at += _CENTRAL.size
        name = directory[at : at + name_size].decode("ascii", "replace")
        at += name_size
        if not _NAME.fullmatch(name) or ".." in name:
            raise BundleError(f"{path}: a member is named {name!r}, which is not allowed")
        position += _LOCAL.size + name_size
        entry = Entry(name, stored_size, crc, position)
        position += stored_size
        file.seek(entry.offset - _LOCAL.size - name_size)
        if file.read(_LOCAL.size + name_size) != entry.local_header():
            raise BundleError(f"{path}: the header of {name} is damaged or not as a bundle has it")
        entries.append(entry)
    file.seek(directory_start)
    if position != directory_start or file.read() != _tail(entries):
        raise BundleError(f"{path}: the table of members is damaged or not as a bundle has it")
    if len({entry.name for entry in entries}) != count:
        raise BundleError(f"{path}: two members have the same name")
    return entries
