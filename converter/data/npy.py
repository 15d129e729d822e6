"""Samples from ``.npy`` files, which stay on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from converter.data.fit import Fitter, reading
from converter.data.header import read_header
from converter.data.samples import Samples


class NpySamples:
    """Samples without labels from one array, for a model with one input."""

    def __init__(self, path: Path, fitter: Fitter) -> None:
        self.origin = path.name
        self.class_names: tuple[str, ...] | None = None
        self._fitter = fitter
        self._spec = fitter.only_input("an .npy")
        with reading(fitter.what, "an .npy of a plain array"):
            with path.open("rb") as file:
                header = read_header(file)
            header.check(path.stat().st_size, fitter.what)
            fitter.check(self._spec, header.shape, header.dtype)
            order: Literal["C", "F"] = "F" if header.fortran else "C"
            self._array = np.memmap(path, header.dtype, "r", header.start, header.shape, order)

    def batches(self, size: int) -> Iterator[Samples]:
        """See `SampleStream`."""
        for start in range(0, len(self._array), size):
            yield self._fitter.fit({self._spec.name: np.asarray(self._array[start : start + size])}, None)
