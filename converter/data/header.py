"""Headers of arrays as numpy saves them, read without trusting them."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from edge.contract.errors import ConfigError

# Enough for any plain array; a header may call itself up to 4 GiB long.
_MAX_BYTES = 1 << 16
# What numpy writes. The other decompressors of zipfile give all that a piece of input holds at once, however much.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What an array says about itself.

    Attributes:
        shape: Its sizes.
        dtype: Of its elements.
        fortran: Its first axis is the fastest.
        start: Where its elements begin, in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def row_bytes(self) -> int:
        """Size of one sample."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def check(self, size: int, what: str) -> None:
        """Check that an array in a file, or a member of one, of `size` bytes is what its header says.

        Raises:
            ConfigError: It is not, or holds Python objects.
        """
        if self.dtype.hasobject:
            raise ConfigError(f"{what} holds Python objects; save plain arrays of numbers")
        held = size - self.start
        if min(self.shape, default=0) < 0 or math.prod(self.shape) * self.dtype.itemsize != held:
            raise ConfigError(f"{what} is damaged: it says {self.dtype} {self.shape}, but holds {held} bytes")


def read_header(file: IO[bytes]) -> Header:
    """Read the header at the beginning of a file. What is no header may raise anything."""
    head = io.BytesIO(file.read(_MAX_BYTES))
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy says that a file of Python 2 takes longer
        shape, fortran, dtype = read(head)
    return Header(shape=shape, dtype=dtype, fortran=fortran and len(shape) > 1, start=head.tell())


def read_member_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header:
    """Likewise for an array in an archive."""
    if info.compress_type not in _COMPRESSIONS:
        raise ValueError(f"{info.filename} is compressed in a way that numpy does not use; save it with numpy")
    with archive.open(info) as file:
        return read_header(file)
