"""Samples from folders: one file for each, one sub-folder for each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from converter.data.audio import AudioReader
from converter.data.fit import Fitter
from converter.data.samples import Samples
from converter.program.tensors import Array
from edge.contract.errors import ConfigError
from edge.inference.pictures import SUFFIXES as IMAGES
from edge.inference.pictures import PictureReader

SOUNDS = (".wav",)
_OTHERS = (".gif", ".tif", ".tiff", ".webp", ".heic", ".avif", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus")
_EXPECTED = f"expected {', '.join(IMAGES)} or {', '.join(SOUNDS)}"


class FolderSamples:
    """Images or sounds, read one by one, in the order of their names.

    Sub-folders are classes, numbered in the order of their names (but see `converter.data.classes`); files in the
    folder itself have no labels.
    """

    def __init__(self, folder: Path, fitter: Fitter) -> None:
        self.origin = folder.resolve().name
        self._fitter = fitter
        self._spec = fitter.only_input("a folder")
        try:
            files, names = _listed(folder, fitter.what)
        except OSError as exc:
            raise ConfigError(f"{fitter.what} cannot be read: {exc.strerror}") from exc
        self.class_names = names
        self._files = files
        suffixes = {file.suffix.lower() for file, _ in files}
        if suffixes <= set(IMAGES):
            self._read: Callable[[Path], Array] = PictureReader(self._spec, fitter.what)
        elif suffixes <= set(SOUNDS):
            self._read = AudioReader(self._spec, fitter.what)
        else:
            raise ConfigError(f"{fitter.what} has images and sounds; expected one kind, keep them in two folders")

    def batches(self, size: int) -> Iterator[Samples]:
        """See `SampleStream`."""
        for start in range(0, len(self._files), size):
            files = self._files[start : start + size]
            rows = []
            for file, _ in files:
                row = self._read(file)
                self._fitter.check(self._spec, (1, *row.shape), row.dtype)
                rows.append(row)
            y = None if self.class_names is None else np.array([label for _, label in files], np.int64)
            yield self._fitter.fit({self._spec.name: np.stack(rows)}, y)


def _listed(folder: Path, what: str) -> tuple[list[tuple[Path, int]], tuple[str, ...] | None]:
    """Files with their class numbers, and the names of the classes, if there are any."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = _samples(entries, what)
    classes = [entry for entry in entries if entry.is_dir()]
    if files and classes:
        raise ConfigError(
            f"{what} has samples, e.g. {files[0].name}, and folders, e.g. {classes[0].name}; expected either samples "
            f"or one folder for each class"
        )
    if not files and not classes:
        raise ConfigError(f"{what} has no samples; {_EXPECTED}, or one folder of them for each class")
    if files:
        return [(file, 0) for file in files], None
    found = []
    for number, entry in enumerate(classes):
        inside = _samples(sorted(entry.iterdir()), what)
        if not inside:
            raise ConfigError(f"{what}: the class folder {entry.name} has no samples; {_EXPECTED}, or remove it")
        found += [(file, number) for file in inside]
    return found, tuple(entry.name for entry in classes)


def _samples(entries: Sequence[Path], what: str) -> list[Path]:
    found = []
    for entry in entries:
        suffix = entry.suffix.lower()
        if entry.name.startswith(".") or not entry.is_file():
            continue
        if suffix in _OTHERS:
            raise ConfigError(f"{what}: {entry.name} is a {suffix} file; {_EXPECTED}: convert or remove it")
        if suffix in IMAGES + SOUNDS:
            found.append(entry)
    return found
