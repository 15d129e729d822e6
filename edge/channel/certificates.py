"""The files of a TLS connection, which may be exchanged while it runs.

A certificate that somebody renews on disk is used by the next connection; one that is there is made anew, so that no
old one runs out unseen. Files that cannot be used (half written, or of different keys) change nothing: they are looked
at again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.channel.url import BrokerUrl
from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    import ssl

LOOK_S = 30.0
_Stamp = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """See the module.

    Args:
        url: Names the files.

    Attributes:
        context: Of what was read last.
        trouble: Why newer files are not used; "" while they are.

    Raises:
        ConfigError: They cannot be used.
    """

    def __init__(self, url: BrokerUrl) -> None:
        self._url = url
        self._stamp = self._seen()
        self.context = self._read()
        self.trouble = ""
        self._next_s = 0.0

    def poll(self, now_s: float, *, at_once: bool = False) -> bool:
        """Look at the files now and then; whether there is a new context.

        Args:
            now_s: Monotonic time.
            at_once: Do not wait for the time to look: a connection is about to be made.
        """
        if now_s < self._next_s and not at_once:
            return False
        self._next_s = now_s + LOOK_S
        seen = self._seen()
        if seen == self._stamp:
            return False
        try:
            self.context = self._read()
        except ConfigError as exc:
            self.trouble = str(exc)
            return False
        self._stamp, self.trouble = seen, ""
        return True

    def _seen(self) -> _Stamp:
        """What tells one state of the files from another."""
        return tuple(_stamp(path) for path in (self._url.ca, self._url.cert, self._url.key) if path is not None)

    def _read(self) -> ssl.SSLContext:
        import ssl  # here: a connection without TLS does without its MiB

        url = self._url
        try:
            context = ssl.create_default_context(cafile=url.ca)
            if url.cert is not None:
                context.load_cert_chain(url.cert, url.key)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"TLS files of {url}: expected PEM certificates and keys, got {exc}; replace them"
            ) from exc
        return context


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
