"""Memory that only starting needed goes back to the system: free blocks, and pages of libraries.

Half of what the process has in memory after its start are pages of libraries that are mapped from disk: onnxruntime's
optimizers, OpenSSL's tables, what Python ran while it imported. The kernel takes them away only when memory is short.
Who gives them back itself leaves the room to others; what is used again comes back by itself, once.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4; older kernels refuse it, and nothing happens
_MAPS = Path("/proc/self/maps")


def give_back_blocks() -> None:
    """Free blocks: glibc would keep for ever what opening a model needed for a moment."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
    if trim is not None:
        gc.collect()
        trim(0)


def give_back_pages() -> None:
    """Pages of files that are mapped and not written to, and that no other process has mapped."""
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is None or not _MAPS.exists():
        return
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in _MAPS.read_text().splitlines():
        addresses, rights, _, _, inode, *_ = line.split(maxsplit=5)
        if inode == "0" or "r" not in rights or "w" in rights:
            continue
        begin, end = (int(part, 16) for part in addresses.split("-"))
        advise(begin, end - begin, _PAGE_OUT)  # advice: where it is not taken, the pages stay
