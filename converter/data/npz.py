"""Samples from ``.npz`` files: read row by row, so that memory does not grow with the file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from converter.data.fit import LABELS, MAX_BYTES, Fitter, reading
from converter.data.header import Header, read_member_header
from converter.data.samples import Samples
from converter.program.tensors import Array
from edge.contract.errors import ConfigError

_EXPECTED = "an .npz of plain arrays"
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """One array in the archive, as long as its header says."""

    info: zipfile.ZipInfo
    header: Header


class NpzSamples:
    """Samples from an ``.npz``: ``x`` or an array for each input by its name, and ``y`` if labelled (`Fitter.keys`)."""

    def __init__(self, path: Path, fitter: Fitter) -> None:
        self.origin = path.name
        self.class_names: tuple[str, ...] | None = None
        self._path = path
        self._fitter = fitter
        self._whole: dict[str, _Member] = {}
        self._rows: dict[str, _Member] = {}
        self._target: _Member | None = None
        with reading(fitter.what, _EXPECTED), zipfile.ZipFile(path) as archive:
            infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            keys = fitter.keys(infos)
            for spec in fitter.inputs:
                member = _member(archive, infos[keys[spec.name]], fitter.what)
                fitter.check(spec, member.header.shape, member.header.dtype)
                _check_bytes(member, fitter.what, whole=spec.batch_axis is None or member.header.fortran)
                (self._whole if spec.batch_axis is None else self._rows)[spec.name] = member
            count = fitter.count({name: member.header.shape[0] for name, member in self._rows.items()})
            label = next((name for name in LABELS if name in infos and name not in keys.values()), None)
            if label is not None:
                self._target = _member(archive, infos[label], fitter.what)
                fitter.check_target(self._target.header.shape, self._target.header.dtype, count)
                _check_bytes(self._target, fitter.what, whole=self._target.header.fortran)
        taken = [key for name, key in keys.items() if key not in (name, "x", "arr_0")]
        taken += [] if label in (None, "y") else [f"labels from {label}"]
        if taken:  # names that we had to guess at are said
            self.origin = f"{path.name} ({', '.join(taken)})"

    def batches(self, size: int) -> Iterator[Samples]:
        """See `SampleStream`."""
        with reading(self._fitter.what, _EXPECTED), zipfile.ZipFile(self._path) as archive:
            whole = {name: _whole(archive, member) for name, member in self._whole.items()}
            members = [*self._rows.values(), *([] if self._target is None else [self._target])]
            if not self._rows:
                yield self._fitter.fit(whole, None if self._target is None else _whole(archive, self._target))
                return
            most = MAX_BYTES // max(member.header.row_bytes for member in members)
            step = max(1, min(size, most))
            for parts in zip(*(_row_batches(archive, member, step) for member in members), strict=True):
                x = dict(zip(self._rows, parts, strict=False))
                yield self._fitter.fit({**whole, **x}, None if self._target is None else parts[-1])


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, what: str) -> _Member:
    header = read_member_header(archive, info)
    header.check(info.file_size, f"{what}: {info.filename}")
    return _Member(info=info, header=header)


def _check_bytes(member: _Member, what: str, *, whole: bool) -> None:
    header = member.header
    size = member.info.file_size if whole else header.row_bytes
    if size > MAX_BYTES:
        advice = "save it with np.ascontiguousarray" if header.fortran else f"expected at most {MAX_BYTES >> 20} MiB"
        unit = "the array, which can only be read whole," if whole else "one sample"
        raise ConfigError(f"{what}: {member.info.filename}: {unit} takes {size >> 20} MiB: {advice}")


def _row_batches(archive: zipfile.ZipFile, member: _Member, size: int) -> Iterator[Array]:
    count = member.header.shape[0]
    if member.header.fortran:
        array = _whole(archive, member)
        yield from (array[start : start + size] for start in range(0, count, size))
        return
    with archive.open(member.info) as file:
        _read(file, member.header.start)
        for start in range(0, count, size):
            shape = (min(size, count - start), *member.header.shape[1:])
            yield _read(file, shape[0] * member.header.row_bytes).view(member.header.dtype).reshape(shape)
        file.read(1)  # at the end the checksum is compared


def _whole(archive: zipfile.ZipFile, member: _Member) -> Array:
    with archive.open(member.info) as file:
        _read(file, member.header.start)
        values = _read(file, member.info.file_size - member.header.start).view(member.header.dtype)
        file.read(1)
    return values.reshape(member.header.shape, order="F" if member.header.fortran else "C")


def _read(file: IO[bytes], count: int) -> Array:
    buffer = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        piece = file.read(min(_CHUNK, count - start))
        if len(piece) != min(_CHUNK, count - start):
            raise EOFError("it ends too early")
        buffer[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
    return buffer
