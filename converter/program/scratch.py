"""A folder to work in that is gone afterwards, also when Ctrl-C comes while it is being removed."""

from __future__ import annotations

import atexit
import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge.contract.errors import ResourceError
from edge.contract.foreign import shortage

# Asked for the first time, it tries the folder with a small file: an interrupt in between would leave that behind.
with contextlib.suppress(OSError):  # there is none: whoever needs it says so
    tempfile.gettempdir()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a private folder; temporary files of the libraries used meanwhile go into it, too.

    `tempfile.TemporaryDirectory` forgets the folder before it empties it, so that an interrupt in between leaves it
    behind. Here the end of the process removes what an interrupt has left.

    Raises:
        ResourceError: There is no folder that can be written, or what is written does not fit.
    """
    usual = tempfile.tempdir
    try:
        folder = Path(tempfile.gettempdir()).absolute() / f"edgeloop-{secrets.token_hex(8)}"
    except OSError as exc:
        raise ResourceError(f"there is no folder for scratch files: {exc.strerror}; let TMPDIR name one") from exc

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    try:
        try:
            folder.mkdir(mode=0o700)
        except OSError as exc:
            raise ResourceError(f"no folder for scratch files in {folder.parent}: {exc.strerror}") from exc
        tempfile.tempdir = str(folder)
        yield folder
    except OSError as exc:
        if lack := shortage(exc, "scratch files"):
            raise lack from exc
        raise
    finally:
        tempfile.tempdir = usual
        remove()
        atexit.unregister(remove)
