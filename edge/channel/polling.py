"""Waiting for sockets whose numbers may be large, for a library that waits with `select`.

``select`` takes no file descriptor above 1,023. Where a process has more open files (a coordinator that many look at,
a simulator of hundreds of devices), a new connection is above it, and paho calls that one lost.
"""

from __future__ import annotations

import math
import select as _select
from collections.abc import Sequence
from typing import Any


def select(
    readers: Sequence[Any], writers: Sequence[Any], exceptional: Sequence[Any], timeout_s: float
) -> tuple[list[Any], list[Any], list[Any]]:
    """As `select.select`, by ``poll``: which sockets may be read from, or written to.

    Args:
        readers: Sockets.
        writers: Sockets.
        exceptional: Must be empty.
        timeout_s: How long to wait for one.

    Raises:
        TypeError: A socket is none.
        ValueError: A socket is closed; nothing waits for it.
    """
    assert not exceptional
    wanted: dict[int, int] = {}
    for sockets, event in ((readers, _select.POLLIN), (writers, _select.POLLOUT)):
        for each in sockets:
            if each is None:
                raise TypeError("no socket")
            if (number := each.fileno()) < 0:
                raise ValueError(f"a socket that is closed: {each!r}")
            wanted[number] = wanted.get(number, 0) | event
    waiting = _select.poll()
    for number, events in wanted.items():
        waiting.register(number, events)
    found = dict(waiting.poll(math.ceil(1000 * timeout_s)))
    # What hung up or failed is ready, as for `select`: to read or write says why.
    ready = _select.POLLHUP | _select.POLLERR | _select.POLLNVAL
    return (
        [each for each in readers if found.get(each.fileno(), 0) & (_select.POLLIN | ready)],
        [each for each in writers if found.get(each.fileno(), 0) & (_select.POLLOUT | ready)],
        [],
    )
