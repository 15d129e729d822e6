"""A folder to work in that is gone afterwards, also when Ctrl-C comes while it is being removed."""

from __future__ import annotations

import atexit
import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Asked for the first time, it tries the folder with a small file: an interrupt in between would leave that behind.
tempfile.gettempdir()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a private folder; temporary files of the libraries used meanwhile go into it, too.

    `tempfile.TemporaryDirectory` forgets the folder before it empties it, so that an interrupt in between leaves it
    behind. Here the end of the process removes what an interrupt has left.
    """
    usual = tempfile.tempdir
    folder = Path(tempfile.gettempdir()) / f"edgeloop-{secrets.token_hex(8)}"

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    try:
        folder.mkdir(mode=0o700)
        tempfile.tempdir = str(folder)
        yield folder
    finally:
        tempfile.tempdir = usual
        remove()
        atexit.unregister(remove)
