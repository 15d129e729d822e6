"""Pages that follow the fleet: parts of a page, sent over one long answer (server-sent events) when they change.

What is made for one viewer is given to all who look at the same page. Making it takes no more than a tenth of a core:
what counts is what it computes, and not how long it waits on a machine that is busy with other things.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from edge.contract.clock import Now

# Between two looks at the database, at least; so many times what the last look cost; and at most.
LOOK_S, _REST, _LAST_S = 1.0, 10.0, 10.0
# A line that says nothing for so long may be cut by what stands between.
_STILL_HERE_S = 15.0
MAX_VIEWERS = 64


@dataclass(frozen=True, slots=True)
class Look:
    """What a page says at a moment.

    Attributes:
        fragments: Its parts as HTML, by the id of the element that holds each.
        cost_s: Seconds of a core that making them took.
    """

    fragments: Mapping[str, str] = field(default_factory=dict)
    cost_s: float = 0.0


@dataclass(slots=True)
class _Shown:
    """The newest look at a page, and when that was."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    made_s: float = -1e9
    look: Look = field(default_factory=Look)
    viewers: int = 0

    @property
    def rest_s(self) -> float:
        """Until the next look."""
        return max(LOOK_S, min(_REST * self.look.cost_s, _LAST_S))


class Live:
    """See the module.

    Args:
        clock: The time.
        sleep: Waits for so many seconds.
    """

    def __init__(self, clock: Callable[[], Now], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._clock, self._sleep = clock, sleep
        self._shown: dict[str, _Shown] = {}
        self._is_closed = False

    def close(self) -> None:
        """End all that is followed: a server waits for them."""
        self._is_closed = True

    @property
    def viewers(self) -> int:
        """Who look now."""
        return sum(each.viewers for each in self._shown.values())

    async def updates(
        self, page: str, make: Callable[[], Awaitable[Look]], may: Callable[[], Awaitable[bool]] | None = None
    ) -> AsyncGenerator[str, None]:
        """Events for one viewer, until they leave.

        Args:
            page: What tells pages apart.
            make: Looks at the database.
            may: Whether they may still look: a token may be revoked meanwhile. None for always.
        """
        shown = self._shown.setdefault(page, _Shown())
        shown.viewers += 1
        sent: dict[str, str] = {}
        said_s = self._clock().s
        try:
            yield "retry: 2000\n\n"
            while not self._is_closed and (may is None or await may()):
                look = await self._newest(shown, make)
                changed = {name: html for name, html in look.fragments.items() if sent.get(name) != html}
                if changed:
                    sent.update(changed)
                    said_s = self._clock().s
                    yield f"data: {json.dumps(changed)}\n\n"
                elif self._clock().s - said_s > _STILL_HERE_S:
                    said_s = self._clock().s
                    yield ": still here\n\n"
                for _ in range(max(1, round(shown.rest_s / LOOK_S))):
                    if not self._is_closed:
                        await self._sleep(LOOK_S)
        finally:
            shown.viewers -= 1
            if not shown.viewers:
                self._shown.pop(page, None)

    async def _newest(self, shown: _Shown, make: Callable[[], Awaitable[Look]]) -> Look:
        async with shown.lock:
            if self._clock().s - shown.made_s >= 0.9 * shown.rest_s:
                shown.look = await make()
                shown.made_s = self._clock().s
            return shown.look
