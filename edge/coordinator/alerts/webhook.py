"""Telling a webhook: one POST, signed, so that who gets it knows that it is ours and not an old one again.

``X-Edgeloop-Signature: t=SECONDS,v1=HEX``: HMAC-SHA256 of ``SECONDS.BODY`` under the shared secret.
"""

from __future__ import annotations

import hmac
import urllib.error
import urllib.request
from typing import Any

from edge.contract.clock import Now

SIGNATURE = "X-Edgeloop-Signature"
_TIMEOUT_S = 10.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What is signed for one address is not sent to another."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def signature(secret: bytes, seconds: int, body: bytes) -> str:
    """What stands in the header.

    >>> signature(b"secret", 1_800_000_000, b"{}")[:24]
    't=1800000000,v1=bb707913'
    """
    return f"t={seconds},v1={hmac.digest(secret, f'{seconds}.'.encode() + body, 'sha256').hex()}"


def post(address: str, secret: str, body: bytes, now: Now) -> str:
    """Tell it.

    Returns:
        Why it was not taken; "" where it was.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "edgeloop"}
    if secret:
        headers[SIGNATURE] = signature(secret.encode(), now.wall_ms // 1000, body)
    request = urllib.request.Request(address, body, headers, method="POST")  # noqa: S310  # http or https, see rules
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as exc:
        exc.close()
        return f"HTTP {exc.code}"
    except (OSError, ValueError) as exc:
        return f"{type(exc).__name__}: {exc}"
