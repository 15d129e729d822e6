"""Who may ask: this device only, or who knows the token; and no page of another site through somebody's browser.

A page of any site may send requests to 127.0.0.1 from the browser of whoever looks at it, and with a name of its own
that resolves to 127.0.0.1 read what comes back. So what is asked for must be this agent by an address of this device
(``Host``), and where a browser says whose page it is (``Origin``, ``Sec-Fetch-Site``) it must be the agent's own.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from ipaddress import ip_address

from edge.agent.http.http11 import RefusedError, Request

_MOST_CHARACTERS = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """The rules of one server.

    Attributes:
        token: That requests must bring as ``Authorization: Bearer TOKEN``; None where only this device may ask.
    """

    token: str | None = field(default=None, repr=False)

    def check(self, request: Request, *, is_open: bool = False) -> None:
        """Raise RefusedError for a request that may not be answered.

        Args:
            request: It.
            is_open: Whether it is for something that holds nothing of this device, which needs no token.
        """
        host = request.headers.get("host", "")
        if not 0 < len(host) <= _MOST_CHARACTERS:
            raise RefusedError(400, "Host: expected the address of this agent")
        if self.token is None and not is_loopback(_name(host)):
            raise RefusedError(421, f"Host: expected 127.0.0.1, [::1] or localhost, got {host!r:.80}")
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise RefusedError(403, f"the page is of {origin!r:.80}, another site than this agent's")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            navigates = request.headers.get("sec-fetch-mode") == "navigate" and request.method == "GET" and is_open
            if not navigates:
                raise RefusedError(403, "the page is of another site than this agent's")
        if self.token is not None and not is_open:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if scheme.lower() != "bearer" or not right:
                raise RefusedError(401, "expected Authorization: Bearer TOKEN with the token of this agent")


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this device and nobody else.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "evil.example")]
    [True, True, True, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """Without a port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
