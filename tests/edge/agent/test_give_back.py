"""A process gives back pages of files that nobody else uses, and goes on with them."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

import pytest

from edge.agent.give_back import give_back_blocks, give_back_pages

SIZE = 32 << 20


def resident_file_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


def is_able() -> bool:
    """Linux 5.4 was the first to take the advice."""
    return os.uname().sysname == "Linux" and tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 4)


@pytest.mark.skipif(not is_able(), reason="MADV_PAGEOUT is of Linux 5.4")
def test_pages_of_a_file_go_back_and_come_again(tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    if kind.strip() in ("tmpfs", "ramfs", "overlayfs"):
        pytest.skip(f"{tmp_path} is on {kind.strip()}: its pages are not those of a disk")
    part = bytes(range(256)) * 16
    with (tmp_path / "library").open("w+b") as file:
        file.write(part * (SIZE // len(part)))
        file.flush()
        os.fsync(file.fileno())
        with mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ) as mapped:
            assert sum(mapped[i] for i in range(0, SIZE, mmap.PAGESIZE)) == 0  # each page is touched
            before = resident_file_kib()
            give_back_blocks()
            give_back_pages()
            after = resident_file_kib()
            assert after < before - (SIZE >> 11)  # KiB: half of them at least
            assert mapped[SIZE - len(part) :] == part
            assert mapped[:: len(part)] == bytes(SIZE // len(part))
