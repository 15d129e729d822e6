"""Pages that are followed: what changed is sent, once, and looking costs little. Time is a number."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

from edge.contract.clock import Now
from edge.coordinator.pages.live import Live, Look


class Page:
    """A page whose parts a test changes, and a clock that only sleeping moves."""

    def __init__(self, cost_s: float = 0.0, waits_s: float = 0.0) -> None:
        self.now_s, self.cost_s, self.waits_s, self.looks = 100.0, cost_s, waits_s, 0
        self.parts = {"live_a": "1", "live_b": "2"}
        self.live = Live(lambda: Now(self.now_s, 0), self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)

    async def look(self) -> Look:
        self.looks += 1
        self.now_s += self.cost_s + self.waits_s
        return Look(dict(self.parts), self.cost_s)


def sent(event: str) -> Any:
    assert event.startswith("data: ")
    assert event.endswith("\n\n")
    return json.loads(event.removeprefix("data: "))


def test_only_what_changed_is_sent_and_a_silent_line_is_kept() -> None:
    async def follow() -> None:
        page = Page()
        async with aclosing(page.live.updates("/", page.look)) as events:
            assert (await anext(events)).startswith("retry:")
            assert sent(await anext(events)) == {"live_a": "1", "live_b": "2"}
            page.parts["live_b"] = "3\n<b>"
            assert sent(await anext(events)) == {"live_b": "3\n<b>"}
            begun_s = page.now_s
            assert await anext(events) == ": still here\n\n"
            assert 15 < page.now_s - begun_s < 17
            assert page.live.viewers == 1
        assert page.live.viewers == 0

    asyncio.run(follow())


def test_many_viewers_of_a_page_cost_one_look_and_a_dear_page_is_looked_at_rarely() -> None:
    async def follow() -> None:
        page = Page(cost_s=0.5)
        viewers = [page.live.updates("/", page.look) for _ in range(20)]
        for each in viewers:
            await anext(each)
        assert [sent(await anext(each)) for each in viewers] == [page.parts] * 20
        assert page.looks == 1
        page.parts["live_a"] = "new"
        begun_s = page.now_s
        assert sent(await anext(viewers[0])) == {"live_a": "new"}
        assert page.now_s - begun_s >= 5.0  # a tenth of the time
        for each in viewers:
            await each.aclose()

    asyncio.run(follow())


def test_a_look_that_only_waits_for_its_turn_on_a_busy_machine_is_not_made_more_rarely() -> None:
    async def follow() -> None:
        page = Page(cost_s=0.05, waits_s=0.6)
        async with aclosing(page.live.updates("/", page.look)) as events:
            await anext(events)
            await anext(events)
            page.parts["live_a"] = "new"
            begun_s = page.now_s
            assert sent(await anext(events)) == {"live_a": "new"}
            assert page.now_s - begun_s < 2.0

    asyncio.run(follow())


def test_what_is_followed_ends_when_the_server_does() -> None:
    async def follow() -> None:
        page = Page()
        events = page.live.updates("/", page.look)
        await anext(events)
        await anext(events)
        page.live.close()
        assert [each async for each in events] == []

    asyncio.run(follow())
